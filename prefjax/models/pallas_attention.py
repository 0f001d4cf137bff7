"""Flash attention under `j <= i < visible_until[j]` as Pallas kernels: forward, query and key-value gradients.

Here is what a kernel does with one tile; `pallas_tiles` says which tiles there are and `pallas_drivers` runs the same
functions over them on TPU and on NVIDIA. FlashAttention-2 (arXiv 2307.08691, Algorithms 1-2), with the heads that share
a key head folded into the rows of a tile, so that a key block is read once for them and its gradient summed in place.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from prefjax.models.pallas_drivers import Kernel, Side, run
from prefjax.models.pallas_tiles import KernelPlan

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


def forward(
    query: Float[Array, "R N T H"],
    key: Float[Array, "R M T H"],
    value: Float[Array, "R M T H"],
    plan: KernelPlan,
    window: Int[Array, ""] | None,
    *,
    scale: float,
    softcap: float | None,
    platform: str,
    interpret: bool = False,
) -> tuple[Float[Array, "R N T H"], Float[Array, "R N T"]]:
    """Attention as `attention.attend` defines it, and the log-sum-exp of its logits in float32.

    Args:
      plan: the tiles of `platform`, from `pallas_tiles.plan_tiles`.
      platform: "tpu" or "cuda".
      interpret: emulate the kernel on CPU.
    """
    layout = _Layout(query, key, plan)
    queries = Queries(layout.fold(query), position=layout.query_positions(window))
    keys = Keys(layout.fold(key), layout.fold(value), *layout.key_vectors(window))
    outputs = (_like(queries.query), jax.ShapeDtypeStruct(layout.vector_shape, jnp.float32))
    kernel = Kernel("prefix_attention", _start, functools.partial(_attend, scale, softcap), _finish, matmuls=2)
    options = dict(blocks=plan.blocks, platform=platform, interpret=interpret)
    output, log_total = run(
        kernel, plan.by_query, layout.query_side(queries), layout.key_side(keys), window, outputs, **options
    )
    return layout.unfold(output, query), layout.unfold(log_total.swapaxes(1, 2), query)[..., 0]


def backward(
    query: Float[Array, "R N T H"],
    key: Float[Array, "R M T H"],
    value: Float[Array, "R M T H"],
    output: Float[Array, "R N T H"],
    log_total: Float[Array, "R N T"],
    upstream: Float[Array, "R N T H"],
    plan: KernelPlan,
    window: Int[Array, ""] | None,
    *,
    scale: float,
    softcap: float | None,
    platform: str,
    interpret: bool = False,
) -> tuple[Float[Array, "R N T H"], Float[Array, "R M T H"], Float[Array, "R M T H"]]:
    """Gradients of query, key and value from `upstream`, the gradient of the output; the rest as in `forward`."""
    layout = _Layout(query, key, plan)
    vector = lambda x: layout.fold(x[..., None]).swapaxes(1, 2)
    dot = jnp.einsum("rnth,rnth->rnt", output, upstream, preferred_element_type=jnp.float32)
    queries = Queries(
        layout.fold(query), layout.fold(upstream), vector(log_total), vector(dot), layout.query_positions(window)
    )
    keys = Keys(layout.fold(key), layout.fold(value), *layout.key_vectors(window))
    query_side, key_side = layout.query_side(queries), layout.key_side(keys)
    options = dict(blocks=plan.blocks, platform=platform, interpret=interpret)

    add = functools.partial(_add_query_gradient, scale, softcap)
    kernel = Kernel("prefix_attention_query_gradient", lambda outer: _zeros(outer.query), add, lambda x: x, matmuls=3)
    outputs = (_like(queries.query),)
    (query_gradient,) = run(kernel, plan.by_query, query_side, key_side, window, outputs, **options)

    add = functools.partial(_add_key_gradient, scale, softcap)
    start = lambda outer: _zeros(outer.key, outer.value)
    kernel = Kernel("prefix_attention_key_gradient", start, add, lambda x: x, matmuls=4)
    outputs = (_like(keys.key), _like(keys.value))
    key_gradient, value_gradient = run(kernel, plan.by_key, key_side, query_side, window, outputs, **options)
    return layout.unfold(query_gradient, query), layout.unfold(key_gradient, key), layout.unfold(value_gradient, value)


# What a kernel does with one tile, [outer rows, inner rows]. Vectors of the outer side are columns and those of the
# inner side rows, so that one expression serves tiles gathered by query and tiles gathered by key.


def _matmul(a, b, a_axis: int, b_axis: int):
    """Contracts one axis of each matrix, accumulating in float32."""
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)


def _logits(a, b, scale, softcap):
    """(capped logits, their derivative with respect to query . key)"""
    logits = _matmul(a, b, 1, 1) * scale
    if softcap is None:
        return logits, scale
    squashed = jnp.tanh(logits / softcap)
    return softcap * squashed, scale * (1 - squashed * squashed)


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


def _attend(scale, softcap, sums, queries: Queries, keys: Keys, window):
    output, peak, total = sums
    logits, _ = _logits(queries.query, keys.key, scale, softcap)
    logits = _where_seen(queries, keys, window, logits, _MASKED)
    new_peak = jnp.maximum(peak, logits.max(axis=1, keepdims=True))
    # A query that has seen no key yet has weights exp(0). Its first key decays them to 0, and it sees itself at least.
    weights, decay = jnp.exp(logits - new_peak), jnp.exp(peak - new_peak)
    output = output * decay + _matmul(weights.astype(keys.value.dtype), keys.value, 1, 0)
    return output, new_peak, total * decay + weights.sum(axis=1, keepdims=True)


def _finish(sums):
    output, peak, total = sums
    return output / total, (peak + jnp.log(total)).T


def _add_query_gradient(scale, softcap, sums, queries: Queries, keys: Keys, window):
    logits, slope = _logits(queries.query, keys.key, scale, softcap)
    weights = _where_seen(queries, keys, window, jnp.exp(logits - queries.log_total), 0.0)
    gradient = weights * (_matmul(queries.upstream, keys.value, 1, 1) - queries.dot) * slope
    return (sums[0] + _matmul(gradient.astype(keys.key.dtype), keys.key, 1, 0),)


def _add_key_gradient(scale, softcap, sums, keys: Keys, queries: Queries, window):
    logits, slope = _logits(keys.key, queries.query, scale, softcap)
    weights = _where_seen(queries, keys, window, jnp.exp(logits - queries.log_total), 0.0)
    gradient = weights * (_matmul(keys.value, queries.upstream, 1, 1) - queries.dot) * slope
    to_key = _matmul(gradient.astype(queries.query.dtype), queries.query, 1, 0)
    to_value = _matmul(weights.astype(queries.upstream.dtype), queries.upstream, 1, 0)
    return sums[0] + to_key, sums[1] + to_value


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


class _Layout:
    """Between heads [R, N or M, T, ...] and one long matrix per key head, [M, L * heads of a key head, ...]."""

    def __init__(self, query, key, plan: KernelPlan):
        self.plan, self.blocks = plan, plan.blocks
        self.rows, heads, self.length, self.head_width = query.shape
        self.key_heads = key.shape[1]
        self.group = heads // self.key_heads
        self.tile_heads = plan.blocks.heads(self.group)
        self.vector_shape = (self.key_heads, 1, self.group * plan.positions.shape[0])

    def fold(self, x):
        """Pads rows to whole blocks and heads to a width both platforms take: a power of two from 64."""
        rows, heads, length, width = x.shape
        padded = self.plan.positions.shape[0] // rows
        wide = width if width == 1 else max(64, pl.next_power_of_2(width))
        x = jnp.pad(x, ((0, 0), (0, 0), (0, padded - length), (0, wide - width)))
        x = x.reshape(rows, self.key_heads, heads // self.key_heads, -1, self.blocks.query, wide)
        return x.transpose(1, 0, 3, 2, 4, 5).reshape(self.key_heads, -1, wide)

    def unfold(self, x, like):
        """The inverse of `fold`, to the heads and the length of `like`."""
        rows, heads, length, width = like.shape
        x = x.reshape(self.key_heads, rows, -1, heads // self.key_heads, self.blocks.query, x.shape[-1])
        return x.transpose(1, 0, 3, 2, 4, 5).reshape(rows, heads, -1, x.shape[-1])[:, :, :length, :width]

    def query_positions(self, window):
        if window is None:
            return None
        blocks = self.plan.positions.reshape(-1, 1, self.blocks.query)
        return jnp.broadcast_to(blocks, (blocks.shape[0], self.group, self.blocks.query)).reshape(1, 1, -1)

    def key_vectors(self, window):
        """(visible_until, positions) of the keys; positions only where a window is measured."""
        vector = lambda x: x.reshape(1, 1, -1)
        return vector(self.plan.visible_until), None if window is None else vector(self.plan.positions)

    def query_side(self, queries: Queries) -> Side:
        rows = self.tile_heads * self.blocks.query
        return Side(queries, rows=rows, span=self.blocks.query, parts=self.group // self.tile_heads)

    def key_side(self, keys: Keys) -> Side:
        return Side(keys, rows=self.blocks.key, span=self.blocks.key, parts=1)
