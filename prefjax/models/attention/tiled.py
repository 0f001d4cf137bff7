"""Flash attention in plain XLA over the live tiles of the mask: O(T) memory, runs on every platform.

One `fori_loop` visits the live tiles of all rows, so the work follows the mask and not T^2. Online softmax:
FlashAttention-2 (arXiv 2307.08691, Algorithms 1-2). Heads come first, so that one tile of all heads is one slice.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from prefjax.models.attention.mask import Mask
from prefjax.models.attention.tiles import BLOCK, Tiles, pad_visible_until
from prefjax.models.attention.types import Attended, Heads, Options

_MASKED = -1e30  # finite, so that exp(masked - max) is 0 and never NaN


def forward(heads: Heads, mask: Mask, options: Options) -> Attended:
    """Attention over the mask's tiles. Rows are padded to whole blocks with tokens that see only themselves."""
    length = heads.query.shape[2]
    (heads,), mask = _whole_blocks((heads,), mask)
    return jax.tree.map(lambda x: x[:, :, :length], _forward(heads, mask, options))


def backward(
    heads: Heads, attended: Attended, upstream: Float[Array, "R N T H"], mask: Mask, options: Options
) -> Heads:
    """Gradients of the heads from `upstream`, the gradient of the output."""
    length = heads.query.shape[2]
    (heads, attended, upstream), mask = _whole_blocks((heads, attended, upstream), mask)
    return jax.tree.map(lambda x: x[:, :, :length], _backward(heads, attended, upstream, mask, options))


def _whole_blocks(arrays, mask: Mask):
    pad = -mask.positions.shape[1] % BLOCK
    arrays = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0))[: x.ndim]), arrays)
    positions = jnp.pad(mask.positions, ((0, 0), (0, pad)))
    return arrays, mask._replace(visible_until=pad_visible_until(mask.visible_until), positions=positions)


def _corner(tiles: Tiles, step, blocks: int):
    """(row, first query, first key) of the step-th live tile."""
    tile = tiles.index[step]
    return tile // (blocks * blocks), (tile // blocks) % blocks * BLOCK, tile % blocks * BLOCK


def _at(array, row, start):
    """Start indices of one tile of one row of [R, N, T, ...]; all int32, also where int64 is enabled."""
    zero = jnp.int32(0)
    return (row, zero, start, *[zero] * (array.ndim - 3))


def _read(array, row, start):
    """[R, N, T, ...] -> [N, BLOCK, ...]"""
    return lax.dynamic_slice(array, _at(array, row, start), (1, array.shape[1], BLOCK, *array.shape[3:]))[0]


def _write(array, block, row, start):
    return lax.dynamic_update_slice(array, block[None], _at(array, row, start))


def _seen(mask: Mask, row, i, j):
    query = i + lax.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), 0)
    key = j + lax.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), 1)
    seen = (key <= query) & (query < lax.dynamic_slice(mask.visible_until, (row, j), (1, BLOCK)))
    if mask.window is not None:
        query_position = lax.dynamic_slice(mask.positions, (row, i), (1, BLOCK)).reshape(BLOCK, 1)
        seen &= query_position - lax.dynamic_slice(mask.positions, (row, j), (1, BLOCK)) < mask.window
    return seen


def _tile_logits(query, key, options: Options):
    """(capped logits, their derivative with respect to query . key), both [N, BLOCK, BLOCK] in the wide dtype."""
    grouped = query.reshape(key.shape[0], -1, query.shape[-1])
    accumulate = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("mqh,mkh->mqk", grouped, key, preferred_element_type=accumulate) * options.scale
    logits = logits.reshape(query.shape[0], query.shape[1], key.shape[1])
    if options.softcap is None:
        return logits, options.scale
    squashed = jnp.tanh(logits / options.softcap)
    return options.softcap * squashed, options.scale * (1 - squashed**2)


def _forward(heads: Heads, mask: Mask, options: Options) -> Attended:
    query, key, value = heads
    rows, count, length, width = query.shape
    accumulate = jnp.promote_types(query.dtype, jnp.float32)

    def visit(step, carry):
        output, peak, total = carry
        row, i, j = _corner(mask.tiles, step, length // BLOCK)
        logits, _ = _tile_logits(_read(query, row, i), _read(key, row, j), options)
        logits = jnp.where(_seen(mask, row, i, j)[None], logits, _MASKED)
        old_peak, old_total, old_output = _read(peak, row, i), _read(total, row, i), _read(output, row, i)
        new_peak = jnp.maximum(old_peak, logits.max(-1))
        # A query that has seen no key yet keeps peak _MASKED: weights of masked keys must still be 0 there.
        weights = jnp.where(logits > _MASKED / 2, jnp.exp(logits - new_peak[..., None]), 0.0)
        decay = jnp.exp(old_peak - new_peak)
        values = _read(value, row, j)
        grouped = weights.astype(value.dtype).reshape(values.shape[0], -1, BLOCK)
        update = jnp.einsum("mqk,mkh->mqh", grouped, values, preferred_element_type=accumulate)
        new_output = old_output * decay[..., None] + update.reshape(count, BLOCK, width)
        new_total = old_total * decay + weights.sum(-1)
        return (
            _write(output, new_output, row, i),
            _write(peak, new_peak, row, i),
            _write(total, new_total, row, i),
        )

    zeros = jnp.zeros((rows, count, length), accumulate)
    start = (jnp.zeros(query.shape, accumulate), zeros + _MASKED, zeros)
    output, peak, total = lax.fori_loop(0, mask.tiles.count[0], visit, start)
    output = (output / total[..., None]).astype(query.dtype)
    return Attended(output, peak + jnp.log(total))


def _backward(heads: Heads, attended: Attended, upstream, mask: Mask, options: Options) -> Heads:
    count, length, width = heads.query.shape[1:]
    accumulate = jnp.promote_types(heads.query.dtype, jnp.float32)
    dot = functools.partial(jnp.einsum, preferred_element_type=accumulate)
    row_dot = dot("rnth,rnth->rnt", attended.output, upstream)

    def visit(step, carry):
        row, i, j = _corner(mask.tiles, step, length // BLOCK)
        queries, keys, values = (_read(x, row, start) for x, start in zip(heads, (i, j, j), strict=True))
        kv_heads = keys.shape[0]
        logits, slope = _tile_logits(queries, keys, options)
        weights = jnp.exp(logits - _read(attended.log_total, row, i)[..., None])
        weights = jnp.where(_seen(mask, row, i, j)[None], weights, 0.0)
        grouped_upstream = _read(upstream, row, i).reshape(kv_heads, -1, width)
        grouped_queries = queries.reshape(kv_heads, -1, width)
        weight_gradient = dot("mqh,mkh->mqk", grouped_upstream, values).reshape(weights.shape)
        logit_gradient = weights * (weight_gradient - _read(row_dot, row, i)[..., None]) * slope
        logit_gradient = logit_gradient.astype(queries.dtype).reshape(kv_heads, -1, BLOCK)
        weights = weights.astype(queries.dtype).reshape(kv_heads, -1, BLOCK)
        to_query = dot("mqk,mkh->mqh", logit_gradient, keys).reshape(count, BLOCK, width)
        to_key = dot("mqk,mqh->mkh", logit_gradient, grouped_queries)
        to_value = dot("mqk,mqh->mkh", weights, grouped_upstream)
        parts = zip(carry, (to_query, to_key, to_value), (i, j, j), strict=True)
        return tuple(_write(total, _read(total, row, start) + part, row, start) for total, part, start in parts)

    zeros = tuple(jnp.zeros(x.shape, accumulate) for x in heads)
    gradients = lax.fori_loop(0, mask.tiles.count[0], visit, zeros)
    return Heads(*(gradient.astype(x.dtype) for gradient, x in zip(gradients, heads, strict=True)))
