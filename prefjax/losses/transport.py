"""Alignment via optimal transport: pairs are compared in sorted order over the whole batch, so all of them coupled.

Log-probs are in nats, summed over tokens; a_w and a_l are the log-ratios of `pairwise`.

A prompt's loss is that of its own margin (or chosen log-ratio) against the one of equal rank on the other side, so that
it stays a loss per prompt; sums over the batch are those of the papers' sorted lists. Ties keep the order of the batch.

>>> r = Responses(logp=jnp.array([[-10.0, -12.0], [-9.0, -9.0]]), reference_logp=jnp.full((2, 2), -11.0))
>>> [f"{x:.4f}" for x in aot(r, beta=0.1)], [f"{x:.4f}" for x in aot_unpaired(r, beta=0.1)]
(['0.5981', '0.6931'], ['0.5981', '0.6931'])
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prefjax.losses.links import logistic
from prefjax.losses.reducers import gap, log_ratio, of_pairs, pairs, sides
from prefjax.losses.registry import LOG2, REFERENCE, for_pairs
from prefjax.losses.responses import Responses
from prefjax.options import Positive


@for_pairs(REFERENCE, start=LOG2, coupled=True)
def aot(r: Responses, *, beta: Positive = 0.01) -> Float[Array, "B"]:
    """Alignment via optimal transport, paired: -log sigmoid(beta (sort(logp_w - logp_l) - sort(the reference's))).

    Source: arXiv 2406.05882, the paired variant.
    Tokens: summed.
    Start: log 2.
    Elsewhere: TRL `aot`; EasyDeL `aot`, `aot_pair`.

    Asks the policy's margins to be larger than the reference's as a distribution, rank by rank. One pair is `dpo`.
    Equal margins are ranked by their place in the batch, which matters where their records' weights differ.
    """
    r = pairs(r, "reference_logp")
    u, v = gap(r.logp), gap(r.reference_logp)
    return of_pairs(r, logistic(beta * (u - _of_equal_rank(v, u, r.valid[:, 0]))))


@for_pairs(REFERENCE, start=LOG2, coupled=True)
def aot_unpaired(r: Responses, *, beta: Positive = 0.01) -> Float[Array, "B"]:
    """Alignment via optimal transport, unpaired: -log sigmoid(beta (sort(a_w) - sort(a_l))).

    Source: arXiv 2406.05882, the unpaired variant, on as many chosen as rejected responses.
    Tokens: summed.
    Start: log 2.
    Elsewhere: TRL `aot_unpaired`.

    Which chosen response belongs to which rejected one makes no difference to the loss of the batch.
    """
    r = pairs(r, "reference_logp")
    a_w, a_l = sides(log_ratio(r))
    return of_pairs(r, logistic(beta * (a_w - _of_equal_rank(a_l, a_w, r.valid[:, 0]))))


def _of_equal_rank(x: Float[Array, "B"], y: Float[Array, "B"], valid: Bool[Array, "B"]) -> Float[Array, "B"]:
    """For every valid i the element of x that has, among the valid ones, the rank that y[i] has in y; 0 elsewhere."""
    order = lambda values: jnp.argsort(jnp.where(valid, values, jnp.inf), stable=True)  # invalid ones last
    ranks = jnp.argsort(order(y))
    return jnp.where(valid, x[order(x)[ranks]], 0)
