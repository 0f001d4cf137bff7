"""Hidden states -> log-probs of the scored tokens -> sums per response. Never a [R, T, V] array."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_logps(
    hidden: Float[Array, "R T D"],
    head: Float[Array, "V D"],
    target_ids: Int[Array, "R S"],
    predictors: Int[Array, "R S"],
    *,
    chunk: int = 256,
    softcap: float | None = None,
) -> Float[Array, "R S"]:
    """log pi(target | everything before it) of every scored token, nats, at least float32.

    Only the hidden states at `predictors` go through the head, `chunk` scored positions of every row at a time, each
    chunk recomputed in the backward pass: the largest array is [R, chunk, V].

    Args:
      predictors: position whose hidden state predicts each target; the last prompt token for a first response token.
      softcap: logits become softcap * tanh(logits / softcap) (Gemma 2); None is off.
    """
    rows, scored = target_ids.shape
    chunk = min(chunk, scored)
    pad = ((0, 0), (0, -scored % chunk))
    target_ids, predictors = jnp.pad(target_ids, pad), jnp.pad(predictors, pad)
    gathered = jnp.take_along_axis(hidden, predictors[:, :, None], axis=1)
    by_chunk = lambda x: jnp.moveaxis(x.reshape(rows, -1, chunk, *x.shape[2:]), 1, 0)
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    head = head.astype(hidden.dtype)

    @jax.checkpoint
    def score(operands):
        states, ids = operands
        logits = jnp.einsum("rcd,vd->rcv", states, head, preferred_element_type=wide)
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        target = jnp.take_along_axis(logits, ids[:, :, None], axis=-1)[:, :, 0]
        return target - jax.nn.logsumexp(logits, axis=-1)

    logps = jax.lax.map(score, (by_chunk(gathered), by_chunk(target_ids)))
    return jnp.moveaxis(logps, 0, 1).reshape(rows, -1)[:, :scored]


def response_sums(
    values: Float[Array, "R S"], slots: Int[Array, "R S"], *, groups: int, branches: int, group_rows: int
) -> Float[Array, "B G N"]:
    """Sums token values into their branch slots g * N + n; in layout `pairs` a group's N rows are added up.

    Args:
      values: per scored token, already multiplied by `target_weights` (so padding adds 0).
      group_rows: B, leading axis of the per-group arrays; R // B rows belong to one row of groups.
    """
    slot = jnp.arange(groups * branches)
    # A masked sum and not a scatter: deterministic on every platform, and fused without the [R, S, G * N] array.
    sums = jnp.where(slots[:, :, None] == slot[None, None], values[:, :, None], 0).sum(1)
    return sums.reshape(group_rows, -1, groups, branches).sum(1)
