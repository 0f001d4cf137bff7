"""Attention by its definition: the oracle, and the fastest form for short rows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prefjax.models.attention.mask import Mask, visible
from prefjax.models.attention.types import Options


def attention(
    query: Float[Array, "R T N H"],
    key: Float[Array, "R T M H"],
    value: Float[Array, "R T M H"],
    mask: Mask,
    options: Options,
) -> Float[Array, "R T N H"]:
    """Full [R, N, T, T] logits under the mask and its window."""
    seen = visible(mask.visible_until)
    if mask.window is not None:
        seen &= mask.positions[:, :, None] - mask.positions[:, None, :] < mask.window
    return attend_to(query, key, value, seen, options)


def attend_to(
    query: Float[Array, "R T N H"],
    key: Float[Array, "R S M H"],
    value: Float[Array, "R S M H"],
    seen: Bool[Array, "R T S"],
    options: Options,
) -> Float[Array, "R T N H"]:
    """Attention over the keys that each query sees, softmax in at least float32."""
    rows, length, heads, width = query.shape
    accumulate = jnp.promote_types(query.dtype, jnp.float32)
    grouped = query.reshape(rows, length, key.shape[2], -1, width)
    logits = jnp.einsum("rimgh,rjmh->rmgij", grouped, key, preferred_element_type=accumulate) * options.scale
    if options.softcap is not None:
        logits = options.softcap * jnp.tanh(logits / options.softcap)
    logits = jnp.where(seen[:, None, None], logits, jnp.finfo(accumulate).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    output = jnp.einsum("rmgij,rjmh->rimgh", weights, value, preferred_element_type=accumulate)
    return output.reshape(rows, length, heads, width).astype(query.dtype)
