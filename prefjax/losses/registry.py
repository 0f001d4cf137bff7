"""The zoo by name. To add an objective: write its loss as one function, then add its entry here."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.losses import (
    graded,
    listwise,
    pairwise,
    reference_free,
    reward_models,
    rewarded,
    sided,
    supervised,
    tokenwise,
    transport,
    unpaired,
)
from prefjax.losses.links import LINKS, logistic
from prefjax.losses.reducers import gap, of_groups, of_pairs, pairs, per_token
from prefjax.losses.types import Objective, Responses

LOG2 = math.log(2)  # sp(0), the logistic loss of a margin of 0
REFERENCE = frozenset({"reference_logp"})
TARGET = REFERENCE | {"target"}
LENGTH = frozenset({"length"})
TOKENS = LENGTH | {"token_logp", "token_reference_logp"}
FEATURES = frozenset({"features"})


def _objective(loss: Callable, group_size: int | None, needs: frozenset[str], start=None, **facts) -> Objective:
    """An entry named like its function. `start(r, **options)`, with all options filled in, is the loss at policy ==
    reference from a masked batch: per prompt, or per response where responses are judged alone; or just a number."""
    objective = Objective(loss.__name__, loss, group_size=group_size, needs=needs, **facts)

    def at_init(r: Responses, **options) -> Float[Array, "B"]:
        r = pairs(r, *needs & FEATURES) if group_size == 2 else r.masked(least=objective.least)
        value = start(r, **(objective.options | options)) if callable(start) else start
        if group_size is None and objective.least == 1:
            return r.prompt_mean(jnp.broadcast_to(jnp.asarray(value, r.dtype), r.shape))
        value = jnp.broadcast_to(jnp.asarray(value, r.dtype), r.shape[:1])
        return of_pairs(r, value) if group_size == 2 else of_groups(r, value)

    return objective if start is None else Objective(**(vars(objective) | {"at_init": at_init}))


def _pair(loss: Callable, needs: frozenset[str] = frozenset(), start=None, **facts) -> Objective:
    return _objective(loss, 2, needs, start, **facts)


def _single(loss: Callable, needs: frozenset[str], start=None, **facts) -> Objective:
    return _objective(loss, None, needs, start, **facts)


def _group(loss: Callable, needs: frozenset[str], start=None, **facts) -> Objective:
    return _objective(loss, None, needs, start, least=2, **facts)


def _log_count(r: Responses, **_) -> Float[Array, "B"]:
    return jnp.log(jnp.maximum(jnp.sum(r.valid, axis=-1), 1).astype(r.logp.dtype))


def _log_rankings(r: Responses, **_) -> Float[Array, "B"]:
    """log K! of the valid responses: all rankings are equally likely."""
    earlier = jnp.cumsum(r.valid, axis=-1)
    return jnp.sum(jnp.where(r.valid, jnp.log(jnp.maximum(earlier, 1).astype(r.dtype)), 0), axis=-1)


def _lipo_start(r: Responses, **_) -> Float[Array, "B"]:
    return LOG2 * jnp.sum(listwise.lambda_weights(r, jnp.zeros_like(r.logp)), axis=(1, 2))


def _exo_start(r: Responses, reward_temperature, **_) -> Float[Array, "B"]:
    """The KL from uniform to softmax(psi / beta_r) over the valid responses."""
    x = r.target / reward_temperature
    highest = jnp.max(jnp.where(r.valid, x, -1e30), axis=-1, keepdims=True)
    return jnp.log(r.prompt_mean(jnp.exp(jnp.where(r.valid, x - highest, 0)))) + highest[:, 0] - r.prompt_mean(x)


def _bt_ranking_start(r: Responses, **_) -> Float[Array, "B"]:
    return LOG2 * jnp.any(listwise.ordered_pairs(r), axis=(1, 2))


_ENTRIES = (
    # Pairs, one margin against the reference's.
    _pair(pairwise.dpo, REFERENCE, LOG2),
    _pair(pairwise.dpo_norm, REFERENCE | LENGTH, LOG2),
    _pair(pairwise.r_dpo, REFERENCE | LENGTH, lambda r, alpha, **_: logistic(alpha * gap(r.length))),
    _pair(pairwise.dpop, REFERENCE, LOG2),
    _pair(pairwise.hypo, REFERENCE, lambda r, beta, **_: logistic(beta * jnp.minimum(0, gap(r.reference_logp)))),
    _pair(pairwise.ipo, REFERENCE, lambda r, tau, **_: 1 / (4 * tau**2)),
    _pair(pairwise.rso_sigmoid, REFERENCE, LOG2),
    _pair(pairwise.rso_hinge, REFERENCE, 1.0),
    _pair(pairwise.gpo, REFERENCE, lambda r, link, **_: LINKS[link](jnp.zeros(()))),
    _pair(pairwise.discopop, REFERENCE, (LOG2 + 1) / 2),
    _pair(pairwise.wpo, REFERENCE | LENGTH | {"log_sum_p2"}, lambda r, **_: LOG2 * pairwise.pair_alignment(r)),
    _pair(
        pairwise.rpo_nll,
        REFERENCE | LENGTH,
        lambda r, alpha, **_: LOG2 - alpha * per_token(r, r.reference_logp)[:, 0],
    ),
    _pair(
        pairwise.rationale_dpo, REFERENCE | {"auxiliary_logp"}, lambda r, gamma, **_: LOG2 - gamma * r.auxiliary_logp
    ),
    # Pairs with a graded label.
    _pair(graded.cdpo, REFERENCE, LOG2),
    _pair(graded.rdpo, REFERENCE, LOG2),
    _pair(graded.soft_ce, REFERENCE | {"target_probability"}, LOG2),
    _pair(graded.mmpo, TARGET, LOG2, reads="scores"),
    _pair(graded.margin_dpo, REFERENCE | {"margin"}, lambda r, **_: logistic(-r.margin)),
    _pair(
        graded.odpo,
        TARGET,
        lambda r, alpha, **_: jnp.log1p(jnp.maximum(gap(r.target), 0) ** alpha),  # sp(alpha log d) = log(1 + d^alpha)
        reads="scores",
    ),
    _pair(
        graded.reward_rpo,
        TARGET,
        lambda r, eta, distance, **_: graded.margin_distance(0 * gap(r.target), eta * gap(r.target), distance),
        reads="scores",
    ),
    # Pairs, each side against the reference.
    _pair(sided.apo_zero, REFERENCE, 1.0),
    _pair(sided.apo_down, REFERENCE, 1.0),
    _pair(sided.bco_pair, REFERENCE, 2 * LOG2),
    _pair(sided.nca_pair, REFERENCE, 2 * LOG2),
    _pair(sided.sppo, TARGET, lambda r, beta: jnp.sum((r.target - 0.5) ** 2, axis=-1) / beta**2, reads="scores"),
    _pair(sided.cal_dpo, REFERENCE, lambda r, beta, weight: LOG2 + weight / (2 * beta**2)),
    _pair(
        sided.exo_pair,
        REFERENCE,
        lambda r, label_smoothing, **_: -math.log(4 * label_smoothing * (1 - label_smoothing)) / 2,
    ),
    _pair(sided.fdpo, REFERENCE, LOG2),
    _pair(sided.fdpo_js, REFERENCE, LOG2),
    # Pairs, token by token.
    _pair(tokenwise.tdpo1, REFERENCE | {"kl"}, LOG2),
    _pair(tokenwise.tdpo2, REFERENCE | {"kl"}, LOG2),
    _pair(tokenwise.ld_dpo, TOKENS, LOG2),
    _pair(tokenwise.sampo, TOKENS | {"token_draw"}, LOG2),
    _pair(tokenwise.target_dpo, TOKENS | {"token_weight"}, LOG2),
    _pair(tokenwise.sparsepo, TOKENS | {"token_kl", "token_weight"}, LOG2),
    _pair(
        tokenwise.two_d_dpo,
        TOKENS | {"token_weight", "token_segment"},
        lambda r, **_: LOG2 * tokenwise.segment_pairs(r),
    ),
    # Pairs over the whole batch.
    _pair(transport.aot, REFERENCE, LOG2, coupled=True),
    _pair(transport.aot_unpaired, REFERENCE, LOG2, coupled=True),
    # Pairs without a reference.
    _pair(reference_free.slic, optional=frozenset({"auxiliary_logp"})),
    _pair(reference_free.rso_hinge_raw),
    _pair(reference_free.simpo, LENGTH),
    _pair(reference_free.alphapo, LENGTH),
    _pair(reference_free.cpo),
    _pair(reference_free.orpo, LENGTH),
    # Single responses with labels.
    _single(
        unpaired.kto,
        TARGET | {"baseline_logp", "baseline_reference_logp"},
        lambda r, desirable_weight, undesirable_weight, **_: unpaired.by_label(
            r, desirable_weight / 2, undesirable_weight / 2
        ),
        reads="labels",
        coupled=True,
    ),
    _single(unpaired.apo_zero_unpaired, TARGET, 0.5, reads="labels"),
    _single(unpaired.bco, TARGET, LOG2, reads="labels", coupled=True),
    _single(unpaired.ulma_binary, TARGET, LOG2, reads="labels"),
    _single(unpaired.ulma, TARGET, lambda r, **_: unpaired.by_label(r, -r.reference_logp, LOG2), reads="labels"),
    _single(unpaired.pmpo, frozenset({"target", "kl"}), reads="labels"),
    # Single responses with rewards or scores.
    _single(
        rewarded.dro,
        TARGET | {"value"},
        lambda r, **_: 0.5 * (r.target - r.value[:, None]) ** 2,
        reads="rewards",
    ),
    _single(
        rewarded.dro_p,
        TARGET,
        lambda r, **_: rewarded.half_square_deviation(r, r.target),
        reads="rewards",
        coupled=True,
    ),
    _single(rewarded.ulma_continuous, TARGET, lambda r, **_: r.target**2, reads="rewards"),
    _single(rewarded.gpo_score, TARGET, lambda r, beta: (r.target / beta) ** 2, reads="scores"),
    # Rankings.
    _group(listwise.pl_dpo, TARGET, _log_rankings, reads="scores"),
    _group(listwise.lipo_lambda, TARGET, _lipo_start, reads="scores"),
    _group(listwise.infonca, TARGET, _log_count, reads="scores"),
    _group(listwise.dpo_rw, TARGET, _log_count, reads="scores"),
    _group(listwise.exo_rw, TARGET, _exo_start, reads="scores"),
    _group(listwise.nca, TARGET, 2 * LOG2, reads="scores"),
    _group(listwise.slic_list, frozenset({"target"}), optional=frozenset({"auxiliary_logp"}), reads="scores"),
    # Reward models.
    _pair(reward_models.bt, FEATURES, LOG2),
    _pair(reward_models.bt_margin, FEATURES | {"margin"}, lambda r, **_: logistic(-r.margin)),
    _pair(reward_models.gpm, FEATURES),
    _group(reward_models.bt_ranking, FEATURES | {"target"}, _bt_ranking_start, reads="scores"),
    _group(reward_models.pl_ranking, FEATURES | {"target"}, _log_rankings, reads="scores"),
    # Imitation.
    _single(supervised.sft, LENGTH),
)

OBJECTIVES: dict[str, Objective] = {objective.name: objective for objective in _ENTRIES}
