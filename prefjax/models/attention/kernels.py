"""Flash attention under `j <= i < visible_until[j]` as Pallas kernels: forward, query and key-value gradients.

Here is what a kernel does with one tile; `kernel_tiles` says which tiles there are and `kernel_drivers` runs the same
functions over them on TPU and on NVIDIA. FlashAttention-2 (arXiv 2307.08691, Algorithms 1-2), with the heads that share
a key head folded into the rows of a tile, so that a key block is read once for them and its gradient summed in place.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from prefjax.models.attention.kernel_drivers import Kernel, Pass, Side, run
from prefjax.models.attention.kernel_tiles import KernelTiles
from prefjax.models.attention.mask import Mask
from prefjax.models.attention.types import Attended, Heads, Options

_MASKED = -1e30  # finite, so that exp(masked - max) is 0 and never NaN


class Queries(NamedTuple):
    """The query side; rows ordered by (block, head, position)."""

    query: Array
    upstream: Array | None = None  # gradient of the output
    log_total: Array | None = None  # log-sum-exp of the row's logits
    dot: Array | None = None  # output . upstream
    position: Array | None = None  # where a window is measured
    index: Array | None = None


class Keys(NamedTuple):
    """The key side; rows ordered by position."""

    key: Array
    value: Array
    visible_until: Array
    position: Array | None = None
    index: Array | None = None


def supports(query: Float[Array, "R T N H"], platform: str) -> bool:
    """Whether a platform's kernels take these heads: bfloat16 up to 256 wide; float32 too, on NVIDIA up to 128."""
    widest = {"tpu": {"bfloat16": 256, "float32": 256}, "cuda": {"bfloat16": 256, "float32": 128}}
    return query.shape[-1] <= widest[platform].get(query.dtype.name, 0)


def forward(heads: Heads, mask: Mask, options: Options, platform: str) -> Attended:
    """Attention as `attend` defines it, and the log-sum-exp of its logits in float32.

    Args:
      mask: holds the tiles of `platform`.
      platform: "tpu" or "cuda".
    """
    layout = _Layout(heads, mask.kernel_tiles[platform], windowed=mask.window is not None)
    queries = Queries(layout.fold(heads.query), position=layout.query_positions())
    outputs = (_like(queries.query), jax.ShapeDtypeStruct(layout.vector_shape, jnp.float32))
    kernel = Kernel("prefix_attention", _start, functools.partial(_attend, options), _finish, matmuls=2)
    work = Pass(kernel, layout.query_side(queries), layout.key_side(layout.keys(heads)), outputs)
    output, log_total = run(work, layout.tiles.by_query, mask, platform)
    log_total = layout.unfold(log_total.swapaxes(1, 2), heads.query)[..., 0]
    return Attended(layout.unfold(output, heads.query), log_total)


def backward(
    heads: Heads,
    attended: Attended,
    upstream: Float[Array, "R N T H"],
    mask: Mask,
    options: Options,
    platform: str,
) -> Heads:
    """Gradients of the heads from `upstream`, the gradient of the output; the rest as in `forward`."""
    layout = _Layout(heads, mask.kernel_tiles[platform], windowed=mask.window is not None)
    vector = lambda x: layout.fold(x[..., None]).swapaxes(1, 2)
    dot = jnp.einsum("rnth,rnth->rnt", attended.output, upstream, preferred_element_type=jnp.float32)
    queries = Queries(
        query=layout.fold(heads.query),
        upstream=layout.fold(upstream),
        log_total=vector(attended.log_total),
        dot=vector(dot),
        position=layout.query_positions(),
    )
    keys = layout.keys(heads)
    query_side, key_side = layout.query_side(queries), layout.key_side(keys)

    start = lambda outer: _zeros(outer.query)
    add = functools.partial(_add_query_gradient, options)
    kernel = Kernel("prefix_attention_query_gradient", start, add, lambda x: x, matmuls=3)
    work = Pass(kernel, query_side, key_side, (_like(queries.query),))
    (query_gradient,) = run(work, layout.tiles.by_query, mask, platform)

    start = lambda outer: _zeros(outer.key, outer.value)
    add = functools.partial(_add_key_gradient, options)
    kernel = Kernel("prefix_attention_key_gradient", start, add, lambda x: x, matmuls=4)
    work = Pass(kernel, key_side, query_side, (_like(keys.key), _like(keys.value)))
    gradients = (query_gradient, *run(work, layout.tiles.by_key, mask, platform))
    return Heads(*map(layout.unfold, gradients, heads))


# What a kernel does with one tile, [outer rows, inner rows]. Vectors of the outer side are columns and those of the
# inner side rows, so that one expression serves tiles gathered by query and tiles gathered by key.


def _matmul(a, b, a_axis: int, b_axis: int):
    """Contracts one axis of each matrix, accumulating in float32."""
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)


def _logits(a, b, options: Options):
    """(capped logits, their derivative with respect to query . key)"""
    logits = _matmul(a, b, 1, 1) * options.scale
    if options.softcap is None:
        return logits, options.scale
    squashed = jnp.tanh(logits / options.softcap)
    return options.softcap * squashed, options.scale * (1 - squashed * squashed)


def _where_seen(queries: Queries, keys: Keys, window, value, otherwise: float):
    if queries.index is None:
        return value
    seen = (keys.index <= queries.index) & (queries.index < keys.visible_until)
    if window is not None:
        seen &= queries.position - keys.position < window
    return jnp.where(seen, value, otherwise)


def _zeros(*matrices):
    return tuple(jnp.zeros(x.shape, jnp.float32) for x in matrices)


def _start(queries: Queries):
    column = jnp.zeros((queries.query.shape[0], 1), jnp.float32)
    return *_zeros(queries.query), column + _MASKED, column


def _attend(options, sums, queries: Queries, keys: Keys, window):
    output, peak, total = sums
    logits, _ = _logits(queries.query, keys.key, options)
    logits = _where_seen(queries, keys, window, logits, _MASKED)
    new_peak = jnp.maximum(peak, logits.max(axis=1, keepdims=True))
    # A query that has seen no key yet has weights exp(0). Its first key decays them to 0, and it sees itself at least.
    weights, decay = jnp.exp(logits - new_peak), jnp.exp(peak - new_peak)
    output = output * decay + _matmul(weights.astype(keys.value.dtype), keys.value, 1, 0)
    return output, new_peak, total * decay + weights.sum(axis=1, keepdims=True)


def _finish(sums):
    output, peak, total = sums
    return output / total, (peak + jnp.log(total)).T


def _add_query_gradient(options, sums, queries: Queries, keys: Keys, window):
    logits, slope = _logits(queries.query, keys.key, options)
    weights = _where_seen(queries, keys, window, jnp.exp(logits - queries.log_total), 0.0)
    gradient = weights * (_matmul(queries.upstream, keys.value, 1, 1) - queries.dot) * slope
    return (sums[0] + _matmul(gradient.astype(keys.key.dtype), keys.key, 1, 0),)


def _add_key_gradient(options, sums, keys: Keys, queries: Queries, window):
    logits, slope = _logits(keys.key, queries.query, options)
    weights = _where_seen(queries, keys, window, jnp.exp(logits - queries.log_total), 0.0)
    gradient = weights * (_matmul(keys.value, queries.upstream, 1, 1) - queries.dot) * slope
    to_key = _matmul(gradient.astype(queries.query.dtype), queries.query, 1, 0)
    to_value = _matmul(weights.astype(queries.upstream.dtype), queries.upstream, 1, 0)
    return sums[0] + to_key, sums[1] + to_value


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


class _Layout:
    """Between heads [R, N or M, T, ...] and one long matrix per key head, [M, L * heads of a key head, ...]."""

    def __init__(self, heads: Heads, tiles: KernelTiles, *, windowed: bool):
        self.tiles, self.blocks, self.windowed = tiles, tiles.blocks, windowed
        self.key_heads = heads.key.shape[1]
        self.group = heads.query.shape[1] // self.key_heads
        self.tile_heads = self.blocks.heads(self.group)
        self.vector_shape = (self.key_heads, 1, self.group * tiles.positions.shape[0])

    def fold(self, x):
        """Pads rows to whole blocks and heads to a width both platforms take: a power of two from 64."""
        rows, heads, length, width = x.shape
        padded = self.tiles.positions.shape[0] // rows
        wide = width if width == 1 else max(64, pl.next_power_of_2(width))
        x = jnp.pad(x, ((0, 0), (0, 0), (0, padded - length), (0, wide - width)))
        x = x.reshape(rows, self.key_heads, heads // self.key_heads, -1, self.blocks.query, wide)
        return x.transpose(1, 0, 3, 2, 4, 5).reshape(self.key_heads, -1, wide)

    def unfold(self, x, like):
        """The inverse of `fold`, to the heads and the length of `like`."""
        rows, heads, length, width = like.shape
        x = x.reshape(self.key_heads, rows, -1, heads // self.key_heads, self.blocks.query, x.shape[-1])
        return x.transpose(1, 0, 3, 2, 4, 5).reshape(rows, heads, -1, x.shape[-1])[:, :, :length, :width]

    def query_positions(self):
        """Positions of the queries' rows, where a window is measured."""
        if not self.windowed:
            return None
        blocks = self.tiles.positions.reshape(-1, 1, self.blocks.query)
        return jnp.broadcast_to(blocks, (blocks.shape[0], self.group, self.blocks.query)).reshape(1, 1, -1)

    def keys(self, heads: Heads) -> Keys:
        vector = lambda x: x.reshape(1, 1, -1)
        positions = vector(self.tiles.positions) if self.windowed else None
        return Keys(self.fold(heads.key), self.fold(heads.value), vector(self.tiles.visible_until), positions)

    def query_side(self, queries: Queries) -> Side:
        rows = self.tile_heads * self.blocks.query
        return Side(queries, rows=rows, span=self.blocks.query, parts=self.group // self.tile_heads)

    def key_side(self, keys: Keys) -> Side:
        return Side(keys, rows=self.blocks.key, span=self.blocks.key, parts=1)
