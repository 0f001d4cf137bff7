"""Flash attention in plain XLA over the live tiles of the mask: O(T) memory, runs on every platform.

A tile (query block, key block) is live iff it holds a visible pair. With `visible_until` that is exact and cheap:
max(visible_until over its keys) > first query  and  first key <= last query. One `fori_loop` visits the live tiles of
all rows, so the work follows the mask and not T^2. Online softmax: FlashAttention-2 (arXiv 2307.08691, Algorithms 1-2).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

BLOCK = 64
_MASKED = -1e30  # finite, so that exp(masked - max) is 0 and never NaN


class Tiles(NamedTuple):
    """Live tiles of a shard's rows. `index` lists flat (row, query block, key block) ids, live ones first."""

    index: Int[Array, "tiles"]
    count: Int[Array, "shards"]


def live_tiles(visible_until: Int[Array, "R T"]) -> Tiles:
    """Lists the tiles that hold at least one visible pair; exact, O(T + tiles)."""
    visible_until = pad_visible_until(visible_until)
    rows, length = visible_until.shape
    blocks = length // BLOCK
    start = jnp.arange(blocks) * BLOCK
    furthest = visible_until.reshape(rows, 1, blocks, BLOCK).max(-1)
    live = (furthest > start[None, :, None]) & (start[None, None, :] <= start[None, :, None] + BLOCK - 1)
    index = jnp.nonzero(live.reshape(-1), size=live.size, fill_value=0)[0].astype(jnp.int32)
    return Tiles(index=index, count=live.sum(dtype=jnp.int32)[None])


def attention(
    query: Float[Array, "R T N H"],
    key: Float[Array, "R T M H"],
    value: Float[Array, "R T M H"],
    visible_until: Int[Array, "R T"],
    positions: Int[Array, "R T"],
    tiles: Tiles,
    window: Int[Array, ""] | None,
    *,
    scale: float,
    softcap: float | None,
) -> Float[Array, "R T N H"]:
    """`attend` over live tiles. Rows are padded to whole blocks with tokens that see only themselves."""
    length = query.shape[1]
    pad = -length % BLOCK
    # Heads first, so that one tile of all heads is one contiguous slice.
    query, key, value = (jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))).swapaxes(1, 2) for x in (query, key, value))
    positions = jnp.pad(positions, ((0, 0), (0, pad)))
    mask = (pad_visible_until(visible_until), positions, window)
    output = _attention(query, key, value, mask, tiles, scale, softcap)
    return output.swapaxes(1, 2)[:, :length]


def pad_visible_until(visible_until: Int[Array, "R T"]) -> Int[Array, "R P"]:
    """Rows padded to whole blocks with tokens that see themselves only."""
    length = visible_until.shape[1]
    pad = -length % BLOCK
    alone = jnp.broadcast_to(
        jnp.arange(length, length + pad, dtype=visible_until.dtype) + 1, (visible_until.shape[0], pad)
    )
    return jnp.concatenate([visible_until, alone], axis=1)


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


def _tile_mask(mask, row, i, j):
    visible_until, positions, window = mask
    query = i + lax.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), 0)
    key = j + lax.broadcasted_iota(jnp.int32, (BLOCK, BLOCK), 1)
    seen = (key <= query) & (query < lax.dynamic_slice(visible_until, (row, j), (1, BLOCK)))
    if window is not None:
        query_position = lax.dynamic_slice(positions, (row, i), (1, BLOCK)).reshape(BLOCK, 1)
        seen &= query_position - lax.dynamic_slice(positions, (row, j), (1, BLOCK)) < window
    return seen


def _tile_logits(query, key, scale, softcap):
    """(capped logits, their derivative with respect to query . key), both [N, BLOCK, BLOCK] in the wide dtype."""
    grouped = query.reshape(key.shape[0], -1, query.shape[-1])
    accumulate = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("mqh,mkh->mqk", grouped, key, preferred_element_type=accumulate) * scale
    logits = logits.reshape(query.shape[0], query.shape[1], key.shape[1])
    if softcap is None:
        return logits, scale
    squashed = jnp.tanh(logits / softcap)
    return softcap * squashed, scale * (1 - squashed**2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(query, key, value, mask, tiles, scale, softcap):
    return forward(query, key, value, mask, tiles, scale, softcap)[0]


def forward(query, key, value, mask, tiles, scale, softcap):
    """(output [R N T H], what `backward` needs, the log-sum-exp of the logits last); heads first, T whole blocks.

    mask is (visible_until, positions, window or None), padded alike.
    """
    rows, heads, length, width = query.shape
    accumulate = jnp.promote_types(query.dtype, jnp.float32)

    def visit(step, carry):
        output, peak, total = carry
        row, i, j = _corner(tiles, step, length // BLOCK)
        logits, _ = _tile_logits(_read(query, row, i), _read(key, row, j), scale, softcap)
        logits = jnp.where(_tile_mask(mask, row, i, j)[None], logits, _MASKED)
        old_peak, old_total, old_output = _read(peak, row, i), _read(total, row, i), _read(output, row, i)
        new_peak = jnp.maximum(old_peak, logits.max(-1))
        # A query that has seen no key yet keeps peak _MASKED: weights of masked keys must still be 0 there.
        weights = jnp.where(logits > _MASKED / 2, jnp.exp(logits - new_peak[..., None]), 0.0)
        decay = jnp.exp(old_peak - new_peak)
        values = _read(value, row, j)
        grouped = weights.astype(value.dtype).reshape(values.shape[0], -1, BLOCK)
        update = jnp.einsum("mqk,mkh->mqh", grouped, values, preferred_element_type=accumulate)
        new_output = old_output * decay[..., None] + update.reshape(heads, BLOCK, width)
        new_total = old_total * decay + weights.sum(-1)
        return (
            _write(output, new_output, row, i),
            _write(peak, new_peak, row, i),
            _write(total, new_total, row, i),
        )

    zeros = jnp.zeros((rows, heads, length), accumulate)
    start = (jnp.zeros(query.shape, accumulate), zeros + _MASKED, zeros)
    output, peak, total = lax.fori_loop(0, tiles.count[0], visit, start)
    output = (output / total[..., None]).astype(query.dtype)
    return output, (query, key, value, mask, tiles, output, peak + jnp.log(total))


def backward(scale, softcap, residuals, output_gradient):
    """Gradients of query, key and value, then None for mask and tiles; residuals as `forward` returns them."""
    query, key, value, mask, tiles, output, log_total = residuals
    heads, length, width = query.shape[1:]
    accumulate = jnp.promote_types(query.dtype, jnp.float32)
    dot = functools.partial(jnp.einsum, preferred_element_type=accumulate)
    row_dot = dot("rnth,rnth->rnt", output, output_gradient)

    def visit(step, carry):
        query_gradient, key_gradient, value_gradient = carry
        row, i, j = _corner(tiles, step, length // BLOCK)
        queries, keys, values = _read(query, row, i), _read(key, row, j), _read(value, row, j)
        upstream = _read(output_gradient, row, i)
        kv_heads = keys.shape[0]
        logits, slope = _tile_logits(queries, keys, scale, softcap)
        weights = jnp.exp(logits - _read(log_total, row, i)[..., None])
        weights = jnp.where(_tile_mask(mask, row, i, j)[None], weights, 0.0)
        grouped_upstream = upstream.reshape(kv_heads, -1, width)
        grouped_queries = queries.reshape(kv_heads, -1, width)
        weight_gradient = dot("mqh,mkh->mqk", grouped_upstream, values).reshape(weights.shape)
        logit_gradient = weights * (weight_gradient - _read(row_dot, row, i)[..., None]) * slope
        logit_gradient = logit_gradient.astype(query.dtype).reshape(kv_heads, -1, BLOCK)
        weights = weights.astype(query.dtype).reshape(kv_heads, -1, BLOCK)
        to_query = dot("mqk,mkh->mqh", logit_gradient, keys).reshape(heads, BLOCK, width)
        to_key = dot("mqk,mqh->mkh", logit_gradient, grouped_queries)
        to_value = dot("mqk,mqh->mkh", weights, grouped_upstream)
        return (
            _write(query_gradient, _read(query_gradient, row, i) + to_query, row, i),
            _write(key_gradient, _read(key_gradient, row, j) + to_key, row, j),
            _write(value_gradient, _read(value_gradient, row, j) + to_value, row, j),
        )

    start = tuple(jnp.zeros(x.shape, accumulate) for x in (query, key, value))
    gradients = lax.fori_loop(0, tiles.count[0], visit, start)
    gradients = tuple(g.astype(x.dtype) for g, x in zip(gradients, (query, key, value), strict=True))
    return (*gradients, None, None)


_attention.defvjp(forward, backward)
