"""Tiles of the kernels, one case each: the table's first, then its neighbours, then those farther from it.

Forward and backward of one layer's attention as in `experiments.benchmarks.tune_attention`; every tile is held to plain
XLA before it is timed. What the compiler refuses is a failure of its case.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks import sweep
from experiments.benchmarks.accelerator import findings
from experiments.benchmarks.accelerator.early import THREADS, Early, has_crashed
from experiments.benchmarks.tune_attention import Problem, Proven, candidates, chip_here, name_of
from prefjax.models.attention import kernel_tiles
from prefjax.models.attention.kernel_tiles import Blocks


@dataclasses.dataclass(frozen=True)
class Size:
    problem: Problem = Problem()
    tiles: int | None = None  # tried at most; None: all
    repeats: int = 10
    interpret: str | None = None


TINY = Size(Problem(1, 640, 2, 1, 16, "float32"), tiles=1, repeats=1, interpret="cuda")


def cases(size: Size, folder: Path) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """None where there are no kernels."""
    chip = chip_here(size.interpret)
    if chip.platform not in kernel_tiles.PLATFORMS:
        return {}
    proven = Proven(size.problem, chip)
    current = kernel_tiles.BLOCKS[chip.listed]
    tried = sorted(candidates(chip.platform, current), key=lambda blocks: _steps(blocks, current))[: size.tiles]
    makers = {blocks: functools.partial(proven.cell, blocks) for blocks in tried}
    made = Early(makers, 1 if has_crashed(folder, "tiles") else THREADS)

    def timed(blocks: Blocks) -> Iterator[dict[str, Any]]:
        cell = proven.check(made[blocks])
        times = sweep.interleave({name_of(blocks): cell.run}, size.repeats)[name_of(blocks)]
        yield {"listed": chip.listed, "blocks": blocks, "milliseconds": 1e3 * times.median}

    return {name_of(blocks): functools.partial(timed, blocks) for blocks in tried}


def _steps(blocks: Blocks, current: Blocks) -> float:
    """Doublings between two tiles."""
    sizes = lambda b: (b.query, b.key, b.rows, max(1, b.warps))
    return sum(abs(math.log2(a / b)) for a, b in zip(sizes(blocks), sizes(current), strict=True))


def use_fastest(entries: Sequence[findings.Entry], listed: str) -> None:
    """Puts the fastest tile that was found for this chip, if any was, into `BLOCKS` of this process."""
    timed = [row for row in findings.rows(entries, "tiles") if row["listed"] == listed]
    if timed:
        kernel_tiles.BLOCKS[listed] = Blocks(**min(timed, key=lambda row: row["milliseconds"])["blocks"])
