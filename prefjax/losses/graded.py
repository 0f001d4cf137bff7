"""Objectives on pairs whose label is graded: flipped with a known rate, soft, or with a strength beside it.

Notation as in `pairwise`: h is the margin in nats, sums over tokens, sp(x) = -log sigmoid(-x). s_w and s_l are the
`target` scores of the pair.

>>> pair = Responses(logp=jnp.array([[-10.0, -12.0]]), reference_logp=jnp.array([[-11.0, -11.0]]))  # h = 2
>>> scored = pair.replace(target=jnp.array([[4.0, 3.0]]))
>>> [f"{loss(pair)[0]:.4f}" for loss in (cdpo, rdpo)] + [f"{loss(scored)[0]:.4f}" for loss in (mmpo, odpo, reward_rpo)]
['0.6181', '0.5731', '0.6519', '0.3133', '0.0697']
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.losses.links import bernoulli_kl, logistic
from prefjax.losses.reducers import gap, log_ratio, of_pairs, pairs
from prefjax.losses.registry import LOG2, REFERENCE, TARGET, for_pairs
from prefjax.losses.responses import Responses
from prefjax.options import BelowHalf, NonNegative, Positive


@for_pairs(REFERENCE, start=LOG2)
def cdpo(r: Responses, *, beta: Positive = 0.1, label_smoothing: BelowHalf = 0.1) -> Float[Array, "B"]:
    """Conservative DPO: (1 - e) sp(-beta h) + e sp(beta h), e = `label_smoothing`.

    Source: E. Mitchell, A note on DPO with noisy preferences and relationship to IPO (cdpo.pdf), equation 3.
    Tokens: summed.
    Start: log 2.
    Elsewhere: EasyDeL `sigmoid` with label_smoothing (its `kto` too); TRL's `sigmoid` ignores that option.

    The cross-entropy against a label that is wrong with probability e. Equals DPO + e beta h, so it pulls h back once
    beta h > log((1 - e) / e), its minimiser. HALOs smooths by 0.2 by default.
    """
    r = pairs(r, "reference_logp")
    return of_pairs(r, logistic(beta * gap(log_ratio(r)), 1 - label_smoothing))


@for_pairs(REFERENCE, start=LOG2)
def rdpo(r: Responses, *, beta: Positive = 0.1, flip_rate: BelowHalf = 0.1) -> Float[Array, "B"]:
    """Provably robust DPO: [(1 - e) sp(-beta h) - e sp(beta h)] / (1 - 2e), e = `flip_rate` in [0, 1/2).

    Source: arXiv 2403.00409, section 3.1.
    Tokens: summed.
    Start: log 2.
    Elsewhere: TRL and EasyDeL `robust`, the rate named label_smoothing.

    Averaged over labels flipped with probability e it is the DPO loss of the clean label. Equals DPO - e / (1 - 2e)
    beta h: the push on the margin never vanishes, the loss has no lower bound, and negative values are normal. It moves
    away from DPO in the direction opposite to `cdpo`.

    Raises:
        ValueError: flip_rate is not in [0, 1/2).
    """
    if not 0 <= flip_rate < 0.5:
        raise ValueError(f"rdpo needs 0 <= flip_rate < 0.5 (at one half the labels say nothing), got {flip_rate}")
    r = pairs(r, "reference_logp")
    # A cross-entropy against the "probability" (1 - e) / (1 - 2e) >= 1, as sp(z) = sp(-z) + z.
    return of_pairs(r, logistic(beta * gap(log_ratio(r)), (1 - flip_rate) / (1 - 2 * flip_rate)))


@for_pairs(REFERENCE | {"target_probability"}, start=LOG2)
def soft_ce(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Soft-preference cross-entropy: p sp(-beta h) + (1 - p) sp(beta h), p = target_probability of the pair.

    Source: arXiv 2405.14103 (OSP's loss; how p comes from judged strengths is a matter of the data).
    Tokens: summed.
    Start: log 2.
    Elsewhere: not in TRL or EasyDeL.

    Minimal at beta h = log(p / (1 - p)). p = 1 is `dpo`, p = 1 - e is `cdpo`, p = 1/2 keeps policy == reference.
    """
    r = pairs(r, "reference_logp", "target_probability")
    return of_pairs(r, logistic(beta * gap(log_ratio(r)), r.target_probability))


@for_pairs(TARGET, start=LOG2, reads="scores")
def mmpo(r: Responses, *, beta: Positive = 0.1, gamma: NonNegative = 1.0) -> Float[Array, "B"]:
    """Margin matching (MMPO): p sp(-beta h) + (1 - p) sp(beta h), p = sigmoid(gamma (s_w - s_l)).

    Source: arXiv 2410.03145, as in the authors' code (its bt_beta is gamma).
    Tokens: summed.
    Start: log 2.
    Elsewhere: not in TRL or EasyDeL.

    `soft_ce` with the Bradley-Terry probability of a score difference; gamma fits the scores' scale, and as it grows
    the loss becomes `dpo`. Minimal at beta h = gamma (s_w - s_l).
    """
    r = pairs(r, "reference_logp", "target")
    return of_pairs(r, logistic(beta * gap(log_ratio(r)), jax.nn.sigmoid(gamma * gap(r.target))))


@for_pairs(REFERENCE | {"margin"}, start=lambda r, **_: logistic(-r.margin))
def margin_dpo(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """DPO with a given margin: -log sigmoid(beta h - m), m = `margin` of the pair.

    Source: arXiv 2402.10571 with any offset; as the margin of Llama 2's reward model (arXiv 2307.09288, equation 2).
    Tokens: summed.
    Start: sp(m).
    Elsewhere: not in TRL's or EasyDeL's DPO.

    m = 0 is `dpo`. m may be negative; it is a margin of rewards beta a, not of nats.
    """
    r = pairs(r, "reference_logp", "margin")
    return of_pairs(r, logistic(beta * gap(log_ratio(r)) - r.margin))


@for_pairs(TARGET, start=lambda r, alpha, **_: jnp.log1p(jnp.maximum(gap(r.target), 0) ** alpha), reads="scores")
def odpo(r: Responses, *, beta: Positive = 0.5, alpha: NonNegative = 1.0) -> Float[Array, "B"]:
    """DPO with an offset (ODPO): -log sigmoid(beta h - alpha log(s_w - s_l)).

    Source: arXiv 2402.10571, as in the authors' code.
    Tokens: summed.
    Start: sp(alpha log(s_w - s_l)).
    Elsewhere: not in TRL or EasyDeL.

    A score difference of 1 is `dpo`. A pair with s_w <= s_l asks for no margin: its loss is 0, the limit of a
    vanishing difference.
    """
    r = pairs(r, "reference_logp", "target")
    difference = gap(r.target)
    offset = alpha * jnp.log(jnp.where(difference > 0, difference, 1))
    losses = logistic(beta * gap(log_ratio(r)) - offset)
    return of_pairs(r, jnp.where(difference > 0, losses, 0))


@for_pairs(
    TARGET,
    start=lambda r, eta, distance, **_: margin_distance(0 * gap(r.target), eta * gap(r.target), distance),
    reads="scores",
)
def reward_rpo(
    r: Responses,
    *,
    beta: Positive = 0.1,
    eta: Positive = 1.0,
    distance: Literal["squared", "backward_kl", "forward_kl"] = "backward_kl",
) -> Float[Array, "B"]:
    """Reward-aware preference optimisation (RPO): the distance between the margins beta h and eta (s_w - s_l).

    Source: NeMo-Aligner's rpo_sq, rpo_bwd_kl and rpo_fwd_kl (Nemotron-4 340B, arXiv 2406.11704); with the squared
        distance it is the regression of REBEL (arXiv 2404.16767) and of CoPG (arXiv 2406.19185) too, on given pairs.
    Tokens: summed.
    Start: the distance of 0 and eta (s_w - s_l).
    Elsewhere: not in TRL or EasyDeL.

    distance  "squared": their squared difference. With p = sigmoid(beta h), q = sigmoid(eta (s_w - s_l)):
              "backward_kl": KL(q || p), which is `mmpo` less the entropy of q. "forward_kl": KL(p || q).

    Zero exactly at beta h = eta (s_w - s_l).

    Raises:
        ValueError: an unknown distance.
    """
    if distance not in _DISTANCES:
        raise ValueError(f"reward_rpo takes distance {', '.join(map(repr, _DISTANCES))}; got {distance!r}")
    r = pairs(r, "reference_logp", "target")
    return of_pairs(r, margin_distance(beta * gap(log_ratio(r)), eta * gap(r.target), distance))


def margin_distance(z: Float[Array, "B"], wanted: Float[Array, "B"], distance: str) -> Float[Array, "B"]:
    """The distance of `reward_rpo` between two margins."""
    return _DISTANCES[distance](z, wanted)


_DISTANCES = {
    "squared": lambda z, wanted: (z - wanted) ** 2,
    "backward_kl": lambda z, wanted: bernoulli_kl(wanted, z),
    "forward_kl": bernoulli_kl,
}
