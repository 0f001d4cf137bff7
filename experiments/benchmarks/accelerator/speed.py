"""Attention alone in bfloat16, forward, and forward and backward, over row lengths: TFLOP/s and time per live tile.

PROTOCOL  Packed rows of random trees as in `experiments.benchmarks.attention`, the same number of positions whatever
          their length. FLOPs are 4 * heads * width a pair forward, 3.5 times that with the backward: of the pairs that
          the mask shows (what is needed), and of all pairs that the implementation visits, in tiles or the square.
          cuDNN's causal attention is another problem, the plain causal mask; the others' gradients are held to those of
          the live tiles. Masks are prepared before, as a step does once for all layers. Median of batches of calls.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.accelerator import findings
from experiments.benchmarks.accelerator.card import seconds_of
from experiments.benchmarks.accelerator.early import Early, has_crashed
from experiments.benchmarks.accelerator.tiles import use_fastest
from experiments.benchmarks.attention import drawn
from experiments.benchmarks.tune_attention import TOLERANCE, chip_here, distance
from prefjax.fit.budget import live_area
from prefjax.models import attention
from prefjax.models.attention import kernel_tiles
from prefjax.models.attention.kernel_tiles import Blocks
from prefjax.models.attention.tiles import BLOCK

KERNELS, TILES, MASKED = "kernels", "live tiles, XLA", "whole mask, XLA"
CUDNN, CUDNN_MASKED = "cuDNN, plain causal mask", "cuDNN, whole mask"
FORWARD, BOTH = "forward", "forward and backward"
DIRECTIONS = {FORWARD: 1.0, BOTH: 3.5}  # times the FLOPs of a forward


@dataclasses.dataclass(frozen=True)
class Size:
    positions: int = 16_384
    lengths: tuple[int, ...] = (4096, 8192, 2048, 16_384)
    query_heads: int = 32
    key_heads: int = 8
    width: int = 128
    dtype: str = "bfloat16"
    repeats: int = 5
    interpret: str | None = None


TINY = Size(640, (640,), 2, 1, 16, "float32", repeats=1, interpret="cuda")


def cases(size: Size, folder: Path) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    platform = kernel_tiles.platform_of(None)
    use_fastest(findings.read(folder), chip_here(size.interpret).listed)
    names = [TILES, MASKED]
    if (size.interpret or platform) in kernel_tiles.PLATFORMS:
        names.insert(0, KERNELS)
    if platform == "cuda":
        names[1:1] = [CUDNN]
        names.append(CUDNN_MASKED)
    problems = {length: Problem(size, length) for length in size.lengths}
    asked = list(itertools.product(size.lengths, names))
    makers = {
        (length, name, direction): functools.partial(problems[length].compiled, name, direction)
        for length, name in asked
        for direction in DIRECTIONS
    }
    made = Early(makers, 1 if has_crashed(folder, "speed") else len(names) * len(DIRECTIONS))
    expected = functools.cache(lambda length: made[length, TILES, BOTH]())
    return {
        f"T {length}, {name}": functools.partial(timed, problems[length], name, made, expected)
        for length, name in asked
    }


class Problem:
    """Rows of one length, and what is compared on them."""

    def __init__(self, size: Size, length: int):
        self.size, self.length = size, length
        heads = (size.query_heads, size.key_heads, size.width, size.dtype)
        self.masks, self.arrays = drawn(size.positions // length, length, *heads)

    def compiled(self, name: str, direction: str) -> Callable[[], Any]:
        """A call that returns, at once, the output or the gradients of one implementation; its mask is made before."""
        query, key, value, upstream = self.arrays
        heads, mask = {"query": query, "key": key, "value": value}, self.mask(name)
        attend = lambda heads, mask: self.attend(name, mask, **heads)
        loss = lambda heads, mask, upstream: (attend(heads, mask) * upstream).astype(jnp.float32).sum()
        if direction == FORWARD:
            program = jax.jit(attend).lower(heads, mask).compile()
            return lambda: program(heads, mask)
        program = jax.jit(jax.grad(loss)).lower(heads, mask, upstream).compile()
        return lambda: program(heads, mask, upstream)

    def mask(self, name: str) -> Any:
        """What an implementation reads of the mask."""
        if name in (KERNELS, TILES):
            how = ("pallas", self.size.interpret) if name == KERNELS else ("tiled", None)
            prepare = functools.partial(attention.prepare, implementation=how[0], interpret=how[1])
            return jax.jit(prepare)(*self.masks)
        return None if name == CUDNN else attention.visible(self.masks[0])[:, None]

    def attend(self, name: str, mask: Any, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        scale = self.size.width**-0.5
        if name in (KERNELS, TILES):
            return attention.attend(query, key, value, mask, scale=scale)
        library = "xla" if name == MASKED else "cudnn"
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=name == CUDNN, scale=scale, implementation=library
        )

    def pairs(self, name: str) -> tuple[float, float, int]:
        """(pairs that the mask shows, pairs that are visited, side of a visited tile) of one head of all rows."""
        visible_until = np.asarray(self.masks[0])
        rows, length = visible_until.shape
        causal = rows * length * (length + 1) / 2
        shown = float((visible_until - np.arange(length)).sum())
        if name == CUDNN:
            return causal, causal, 0
        if name in (MASKED, CUDNN_MASKED):
            return shown, float(rows * length**2), 0
        blocks = Blocks(BLOCK, BLOCK, BLOCK)
        if name == KERNELS:
            chip = chip_here(self.size.interpret)
            blocks = kernel_tiles.choose_blocks(chip.platform, chip.kind, rows, length)
        return shown, live_area(visible_until, blocks), blocks.query * blocks.key


def timed(problem: Problem, name: str, made: Early, expected: Callable[[int], Any]) -> Iterator[dict[str, Any]]:
    """A row for each direction."""
    shown, visited, tile = problem.pairs(name)
    size = problem.size
    for direction, times in DIRECTIONS.items():
        call = made[problem.length, name, direction]
        row = {"length": problem.length, "implementation": name, "direction": direction}
        if direction == BOTH and name != CUDNN:
            row["away"] = distance(call(), expected(problem.length))
            row["equal"] = row["away"] <= TOLERANCE[size.dtype]
        seconds = seconds_of(call, size.repeats)
        flops = times * 4 * size.query_heads * size.width
        row |= {"milliseconds": 1e3 * seconds, "tflops": flops * shown / seconds / 1e12}
        row["visited_tflops"] = flops * visited / seconds / 1e12
        if tile:
            tiles = visited / tile
            row |= {"live_tiles": tiles, "nanoseconds_per_tile": 1e9 * seconds / (tiles * size.query_heads)}
        yield row
