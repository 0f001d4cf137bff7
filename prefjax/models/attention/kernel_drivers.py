"""Feeds a kernel, one pure function of a tile, the tiles of a `TileList`: on TPU (Mosaic) and on NVIDIA (Triton).

On TPU one step of the grid is one tile: the list is prefetched and steers the copies of the tiles to come, while the
sums of an outer block stay on chip from its first tile to its last. On NVIDIA one program is one outer block and loops
over its tiles. Both stream the inner side, so rows may outgrow on-chip memory.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from prefjax.models.attention import deferred
from prefjax.models.attention.kernel_tiles import Blocks, TileList, kind_of
from prefjax.models.attention.mask import Mask


class Kernel(NamedTuple):
    """A computation over tiles, whose sides are matrices [rows, W] and vectors: [rows, 1] outer, [1, rows] inner.

    start    outer -> sums, a tuple of float32 matrices
    visit    (sums, outer, inner, window) -> sums; nothing is hidden in the tile where `outer.index` is None
    finish   sums -> outputs of the outer block, matrices [rows, W] or vectors [1, rows]
    matmuls  per tile
    """

    name: str
    start: Callable
    visit: Callable
    finish: Callable
    matmuls: int


class Side(NamedTuple):
    """The outer or the inner side of a kernel's tiles, for a whole shard.

    arrays   NamedTuple of matrices [M, rows, W] and vectors [M or 1, 1, rows] over M key heads; its field `index`, the
             place of every row in the mask, is None here and made per tile
    rows     matrix rows of a block
    span     positions of a block, a power of two; the rows repeat them head by head
    parts    blocks per block of the tile list, which its heads are spread over
    """

    arrays: Any
    rows: int
    span: int
    parts: int

    def index(self, block, *, column: bool):
        """Place in the mask of every row of a block."""
        shape = (self.rows, 1) if column else (1, self.rows)
        within = lax.broadcasted_iota(jnp.int32, shape, 0 if column else 1) & jnp.int32(self.span - 1)
        return lax.div(block, jnp.int32(self.parts)) * self.span + within


class Pass(NamedTuple):
    """One kernel over the tiles of a shard; `outputs` are shaped like arrays of the outer side."""

    kernel: Kernel
    outer: Side
    inner: Side
    outputs: tuple[jax.ShapeDtypeStruct, ...]

    def over(self, outer: Any, inner: Any) -> "Pass":
        """The same over other arrays."""
        return self._replace(outer=self.outer._replace(arrays=outer), inner=self.inner._replace(arrays=inner))

    def cost(self, tiles: TileList) -> pl.CostEstimate:
        """The work before the mask is known: every listed tile."""
        outer, inner = self.outer, self.inner
        pairs = tiles.outer.shape[0] * outer.parts * outer.rows * inner.parts * inner.rows * self.outputs[0].shape[0]
        operands = jax.tree.leaves((outer.arrays, inner.arrays, self.outputs))
        return pl.CostEstimate(
            flops=2 * self.kernel.matmuls * pairs * self.outputs[0].shape[-1],
            transcendentals=pairs,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in operands),
        )


def run(work: Pass, tiles: TileList, mask: Mask, platform: str) -> tuple[Array, ...]:
    """The outputs of one kernel over the listed tiles, under the mask's window.

    Args:
      tiles: of `platform`, grouped by the blocks of the outer side.
      platform: "tpu" or "cuda".
    """
    drive = functools.partial(
        {"tpu": _run_tpu, "cuda": _run_cuda}[platform],
        work.over(None, None),  # lowering may come long after tracing, and must not keep what was traced
        blocks=mask.kernel_tiles[platform].blocks,
        interpret=mask.setting.interpret,
    )
    arguments = (work.outer.arrays, work.inner.arrays, tiles, mask.window)
    if mask.setting.interpret:
        return drive(*arguments)
    return deferred.call(drive, arguments, work.outputs, kind=kind_of(platform, mask.mesh))


def _run_tpu(work: Pass, outer, inner, tiles: TileList, window, *, blocks: Blocks, interpret: bool):
    kernel, outer, inner, outputs = work = work.over(outer, inner)
    scalars = (tiles.outer, tiles.inner, tiles.bounds)
    if window is not None:
        scalars += (tiles.distance, window.reshape(1))
    # One side's `parts` is 1: an outer block either comes in parts of its own or meets every part of the inner ones.
    grid = (outputs[0].shape[0], outer.parts, tiles.bounds[-1], inner.parts)
    outer_block = lambda part, step, outers: outers[step] * outer.parts + part
    inner_block = lambda part, step, inners: inners[step] * inner.parts + part

    def body(outers, inners, bounds, *refs):
        distance, reach, *refs = (None, None, *refs) if window is None else refs
        outer_refs, inner_refs, *output_refs, sum_refs, columns = refs
        outer_part, step, inner_part = (pl.program_id(axis) for axis in (1, 2, 3))
        begin, masked, end = (bounds[3 * outers[step] + n] for n in range(3))

        def visit(hides):
            ours, theirs = _load(outer_refs._replace(**columns)), _load(inner_refs)
            if hides:
                ours = ours._replace(index=outer.index(outer_block(outer_part, step, outers), column=True))
                theirs = theirs._replace(index=inner.index(inner_block(inner_part, step, inners), column=False))
            _store(sum_refs, kernel.visit(_load(sum_refs), ours, theirs, None if window is None else reach[0]))

        @pl.when((step == begin) & (inner_part == 0))
        def _():
            _store(sum_refs, kernel.start(_load(outer_refs)))
            for name, column in columns.items():
                column[...] = getattr(outer_refs, name)[...].T

        if window is None:
            pl.when(step < masked)(lambda: visit(False))
            pl.when(step >= masked)(lambda: visit(True))
        else:
            pl.when(distance[step] < reach[0])(lambda: visit(True))

        @pl.when((step == end - 1) & (inner_part == inner.parts - 1))
        def _():
            _store(output_refs, kernel.finish(_load(sum_refs)))

    place_outer = lambda head, part, step, _, outers, *scalars: (head, outer_block(part, step, outers))
    place_inner = lambda head, _, step, part, outers, inners, *scalars: (head, inner_block(part, step, inners))
    outer_specs, output_specs = (_specs(arrays, outer.rows, place_outer) for arrays in (outer.arrays, outputs))
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=grid,
            in_specs=(outer_specs, _specs(inner.arrays, inner.rows, place_inner)),
            out_specs=output_specs,
            scratch_shapes=_tpu_scratch(kernel, outer),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=blocks.memory
        ),
        interpret=pltpu.InterpretParams() if interpret else False,
        out_shape=outputs,
        cost_estimate=work.cost(tiles),
        name=kernel.name,
    )(*scalars, outer.arrays, inner.arrays)


def _tpu_scratch(kernel: Kernel, outer: Side):
    """What stays on chip from an outer block's first tile to its last: its sums, and its vectors as columns."""
    tile = jax.tree.map(lambda x: jax.ShapeDtypeStruct(_tile_shape(x, outer.rows), x.dtype), outer.arrays)
    vectors = {name: x for name, x in tile._asdict().items() if x is not None and _is_vector(x)}
    columns = {name: pltpu.VMEM((outer.rows, 1), x.dtype) for name, x in vectors.items()}
    return jax.tree.map(lambda x: pltpu.VMEM(x.shape, x.dtype), jax.eval_shape(kernel.start, tile)), columns


def _run_cuda(work: Pass, outer, inner, tiles: TileList, window, *, blocks: Blocks, interpret: bool):
    kernel, outer, inner, outputs = work = work.over(outer, inner)

    def body(inners, distance, bounds, reach, outer_refs, inner_refs, *output_refs):
        block = pl.program_id(0)
        listed = 3 * lax.div(block, jnp.int32(outer.parts))
        begin, masked, end = (bounds[listed + n] * inner.parts for n in range(3))
        reach = None if reach is None else reach[0]
        bare = jax.tree.map(lambda ref: ref[...].T if _is_vector(ref) else ref[...], outer_refs)
        placed = bare._replace(index=outer.index(block, column=True))

        def visit(hides, n, sums):
            tile = lax.div(n, jnp.int32(inner.parts))
            block = inners[tile] * inner.parts + lax.rem(n, jnp.int32(inner.parts))
            rows = pl.ds(pl.multiple_of(block * inner.rows, inner.rows), inner.rows)

            def add(sums):
                theirs = jax.tree.map(lambda ref: ref[:, rows] if _is_vector(ref) else ref[rows, :], inner_refs)
                theirs = theirs._replace(index=inner.index(block, column=False)) if hides else theirs
                return kernel.visit(sums, placed if hides else bare, theirs, reach)

            return add(sums) if reach is None else lax.cond(distance[tile] < reach, add, lambda sums: sums, sums)

        sums = kernel.start(bare)
        if reach is None:
            sums = lax.fori_loop(begin, masked, functools.partial(visit, False), sums)
            sums = lax.fori_loop(masked, end, functools.partial(visit, True), sums)
        else:
            sums = lax.fori_loop(begin, end, functools.partial(visit, True), sums)
        _store(output_refs, kernel.finish(sums))

    whole = lambda x: pl.BlockSpec(x.shape, lambda block, head: (0,) * x.ndim)
    place_outer = lambda block, head: (head, block)
    place_inner = lambda block, head: (head, 0)
    scalars = (tiles.inner, tiles.distance, tiles.bounds, None if window is None else window.reshape(1))
    return pl.pallas_call(
        body,
        grid=(tiles.bounds.shape[0] // 3 * outer.parts, outputs[0].shape[0]),
        in_specs=(
            *jax.tree.map(whole, scalars),
            _specs(outer.arrays, outer.rows, place_outer),
            jax.tree.map(lambda x: _spec(x, x.shape[2] if _is_vector(x) else x.shape[1], place_inner), inner.arrays),
        ),
        out_specs=_specs(outputs, outer.rows, place_outer),
        compiler_params=None if interpret else _triton_options(blocks, outputs),
        interpret=interpret,
        out_shape=outputs,
        cost_estimate=work.cost(tiles),
        name=kernel.name,
    )(*scalars, outer.arrays, inner.arrays)


def _triton_options(blocks: Blocks, outputs):
    # Deprecated since jax 0.11, so only a program that is lowered for a card may need it.
    from jax.experimental.pallas import triton

    wide = outputs[0].shape[-1] * outputs[0].dtype.itemsize > 128
    return triton.CompilerParams(num_warps=2 * blocks.warps if wide else blocks.warps, num_stages=2)


def _is_vector(x) -> bool:
    return x.shape[-2] == 1


def _tile_shape(x, rows: int) -> tuple[int, int]:
    return (1, rows) if _is_vector(x) else (rows, x.shape[2])


def _spec(x, rows: int, place: Callable) -> pl.BlockSpec:
    """Blocks of a [M, rows, W] matrix or a [M or 1, 1, rows] vector; `place` maps the grid to (head, block)."""

    def index(*grid):
        head, block = place(*grid)
        head = head if x.shape[0] > 1 else 0
        return (head, 0, block) if _is_vector(x) else (head, block, 0)

    return pl.BlockSpec((None, *_tile_shape(x, rows)), index)


def _specs(arrays, rows: int, place: Callable):
    return jax.tree.map(lambda x: _spec(x, rows, place), arrays)


def _load(refs):
    return jax.tree.map(lambda ref: ref[...], refs)


def _store(refs, values) -> None:
    for ref, value in zip(refs, values, strict=True):
        ref[...] = value.astype(ref.dtype)
