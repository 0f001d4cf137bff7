"""Metrics: names, formulas, units.

Inside the step a metric is a pair (sum, count), so that micro-batches, devices and evaluation batches combine exactly;
`Metrics` divides when a number is read. Reward means the log-ratio log pi(y|x) - log ref(y|x) in nats (log pi(y|x)
without a reference); multiply by beta for DPO's implicit reward. Of a reward model it is what its head says, and where
that is an embedding a margin is the preference score of the two. A pair is two valid responses of one prompt with
different targets.

    loss                   weighted per-prompt loss / counted prompts
    loss_NAME              the same of a term of a sum, without the term's weight: loss is the sum of weight * loss_NAME
                           (of min and max: what is taken of each prompt)
    carried_NAME           what the objective carries on from the step; of a term of a sum carried_TERM_NAME
    reward_accuracy        share of pairs whose better response has the higher reward; a tie counts one half
    reward_ties            share of pairs with equal rewards
    margin                 reward(better) - reward(worse) over pairs, nats
    chosen_logp            log pi(y|x) of the prompt's best response (K = 1: target > 0), nats, summed over tokens
    rejected_logp          the same of the worst response (K = 1: target <= 0)
    chosen_logp_change     log pi - log ref of the best response, nats
    rejected_logp_change   the same of the worst response
    chosen_reward          a reward model's scalar reward of the best response
    rejected_reward        the same of the worst response
    kl_estimate            mean of log ref - log pi over responses: estimates KL(ref || pi) if they came from ref, nats
    mismatched_log_ratio   KTO's z0 before clamping, nats
    value                  mean V(x)
    prompts, responses     counted prompts, their valid responses,
    pairs                  and their pairs, of the step
    tokens, scored_tokens  real tokens in the rows (a shared prompt counts once), tokens with a log-prob in the loss
    fill                   real tokens / all positions
    grad_norm              global gradient norm before clipping
    learning_rate          of the step
    skipped                updates left out so far (`train.skip_non_finite`); metrics are those of the others
Added by the loop from the wall time of stepping, data loading included; compilation, evaluation and saving excluded:
    prompts_per_second, tokens_per_second (real tokens), seconds_per_step
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prefjax.losses import Responses
from prefjax.losses.reward_models import preference_scores
from prefjax.rows.arrays import Rows

Ratios = dict[str, tuple[Array, Array]]
TOTALS = ("prompts", "responses", "pairs", "tokens", "scored_tokens")


def response_metrics(
    r: Responses, losses: Float[Array, "P"], counted: Bool[Array, "P"], weight: Float[Array, "P"]
) -> Ratios:
    """Metrics of one global batch from what the objective received and returned."""
    valid = r.valid & counted[:, None]
    better = valid[:, :, None] & valid[:, None, :] & (r.target[:, :, None] > r.target[:, None, :])
    if r.logp is None:
        gap = preference_scores(r.features)
    else:
        log_ratio = r.logp - r.reference_logp if r.reference_logp is not None else r.logp
        gap = log_ratio[:, :, None] - log_ratio[:, None, :]
    ties = gap == 0
    best, worst = _best_and_worst(r.target, valid)
    metrics = {
        "loss": (jnp.where(counted, weight * losses, 0).sum(), counted.sum()),
        "reward_accuracy": _mean(jnp.where(ties, 0.5, gap > 0), better),
        "reward_ties": _mean(ties, better),
        "margin": _mean(gap, better),
        "prompts": (counted.sum(), jnp.ones((), jnp.int32)),
        "responses": (valid.sum(), jnp.ones((), jnp.int32)),
        "pairs": (better.sum(), jnp.ones((), jnp.int32)),
    }
    if r.logp is not None:
        metrics |= {"chosen_logp": _mean(r.logp, best), "rejected_logp": _mean(r.logp, worst)}
    elif r.features.shape[-1] == 1:
        rewards = r.features[..., 0]
        metrics |= {"chosen_reward": _mean(rewards, best), "rejected_reward": _mean(rewards, worst)}
    if r.reference_logp is not None:
        metrics["chosen_logp_change"] = _mean(log_ratio, best)
        metrics["rejected_logp_change"] = _mean(log_ratio, worst)
        metrics["kl_estimate"] = _mean(-log_ratio, valid)
    if r.baseline_logp is not None:
        metrics["mismatched_log_ratio"] = _mean(r.baseline_logp - r.baseline_reference_logp, counted)
    if r.value is not None:
        metrics["value"] = _mean(r.value, counted)
    return metrics


def term_metrics(
    parts: Mapping[str, Float[Array, "P"]], counted: Bool[Array, "P"], weight: Float[Array, "P"]
) -> Ratios:
    """The losses of the terms of a sum, by their names."""
    return {
        f"loss_{name}": (jnp.where(counted, weight * losses, 0).sum(), counted.sum()) for name, losses in parts.items()
    }


def carried_metrics(carried: Mapping[str, Any] | None) -> Ratios:
    """What an objective carries, by its names, those of a sum with their terms'; of one without state nothing."""
    named = jax.tree_util.tree_leaves_with_path(carried)
    path = lambda keys: jax.tree_util.keystr(keys, simple=True, separator="_")
    return {f"carried_{path(keys)}": (value, jnp.ones((), jnp.int32)) for keys, value in named}


def row_metrics(rows: Rows) -> Ratios:
    """How full the rows are."""
    real = (rows.segment_ids > 0).sum()
    return {
        "tokens": (real, jnp.ones((), jnp.int32)),
        "scored_tokens": ((rows.target_weights != 0).sum(), jnp.ones((), jnp.int32)),
        "fill": (real, jnp.full((), rows.segment_ids.size, jnp.int32)),
    }


@jax.tree_util.register_pytree_node_class
class Metrics(Mapping):  # of names to floats; said so, a run-time type checker would read them inside of jit
    """Metrics of one or several batches, as numbers that are fetched from the devices when they are first read.

    A metric without a sample, as the margin of a batch without pairs, is not there; it is never reported as 0.

    ratios  name -> (sum, count), of which the step is made
    """

    def __init__(self, ratios: Any):
        self.ratios = ratios

    @functools.cached_property
    def _finished(self) -> dict[str, float]:
        fetched = jax.device_get(self.ratios)
        return {name: float(total) / float(count) for name, (total, count) in fetched.items() if float(count) > 0}

    def __getitem__(self, name: str) -> float:
        return self._finished[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._finished)

    def __len__(self) -> int:
        return len(self._finished)

    def __repr__(self) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in self.items())

    def tree_flatten(self) -> tuple[tuple[Any], None]:
        return (self.ratios,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> "Metrics":
        return cls(*children)

    @classmethod
    def combine(cls, batches: Iterable["Metrics"]) -> "Metrics":
        """Adds the sums and counts of several batches up; totals stay totals. Waits for all of them."""
        fetched = [batch.ratios for batch in jax.device_get(list(batches))]
        combined = {}
        for name in fetched[0]:
            sums = sum(float(ratios[name][0]) for ratios in fetched)
            counts = sum(float(ratios[name][1]) for ratios in fetched)
            combined[name] = (sums, 1.0 if name in TOTALS else counts)
        return cls(combined)


def _mean(values, where):
    return jnp.where(where, values, 0).sum(), where.sum()


def _best_and_worst(target, valid):
    if target.shape[1] == 1:
        return valid & (target > 0), valid & (target <= 0)
    top = jnp.where(valid, target, -jnp.inf).max(1, keepdims=True)
    bottom = jnp.where(valid, target, jnp.inf).min(1, keepdims=True)
    best = valid & (target == top)
    return best, valid & (target == bottom) & ~best
