"""Which attention tile is fastest on the TPU or NVIDIA GPU at hand, as the line to put into BLOCKS of kernel_tiles.py.

COMMAND   python -m experiments.benchmarks.tune_attention --output=results/tune
          Where there is no such chip, --interpret=tpu or --interpret=cuda runs every candidate on an emulator: it shows
          that the command works, and its times mean nothing.
PROTOCOL  Packed rows of random trees as in experiments.benchmarks.attention, forward and backward of one layer's
          attention, its mask prepared before. Every candidate tile is compiled and compared with the live tiles in
          plain XLA before it is timed (relative 2e-2 in bfloat16, 1e-4 in float32); candidates take turns; medians. A
          tile that the compiler refuses is listed with its reason.
COLUMNS   query, key: positions of a tile; rows: matrix rows with the heads that share a key; warps: of a GPU program.
"""

import dataclasses
import functools
import itertools
import threading
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from absl import app, flags

from experiments.benchmarks import sweep
from experiments.benchmarks.attention import compiled, drawn
from prefjax.data.progress import progress_bar
from prefjax.models import attention
from prefjax.models.attention import kernel_tiles
from prefjax.models.attention.kernel_tiles import Blocks

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
COLUMNS = (
    "query: {blocks.query}{now} | key: {blocks.key} | rows: {blocks.rows} | warps: {warps} | ms: {ms} | "
    "against the fastest: {slower}"
)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One layer's attention: R packed rows of T positions, query heads over key heads of a width."""

    rows: int = 4
    length: int = 4096
    query_heads: int = 32
    key_heads: int = 8
    width: int = 128
    dtype: str = "bfloat16"


def candidates(platform: str, current: Blocks) -> list[Blocks]:
    """The tiles worth trying; the one in the table comes first."""
    if platform == "tpu":
        grid = itertools.product((128, 256, 512), (128, 256, 512, 1024), (1, 2, 4), (current.warps,))
    else:
        grid = itertools.product((32, 64, 128), (32, 64, 128), (1, 2), (4, 8))
    made = [
        dataclasses.replace(current, query=query, key=key, rows=heads * query, warps=warps)
        for query, key, heads, warps in grid
    ]
    return [current, *(blocks for blocks in made if blocks != current)]


@dataclasses.dataclass(frozen=True)
class Chip:
    """Where the tiles run. listed: its key in `kernel_tiles.BLOCKS`; interpret: the platform to emulate instead."""

    platform: str
    kind: str
    listed: str
    interpret: str | None = None


class Proven:
    """Makes the kernels of one problem with any tile, and holds them to the gradients of plain XLA."""

    def __init__(self, problem: Problem, chip: Chip):
        self.problem, self.chip = problem, chip
        self._masks, self._arrays = drawn(**dataclasses.asdict(problem))
        self._table = threading.Lock()
        self._expected = compiled(self._attend, self._arrays, self._mask("tiled")).run()

    def cell(self, blocks: Blocks) -> sweep.Cell:
        """The kernels with this tile, compiled; several threads may compile.

        Raises:
          jax.errors.JaxRuntimeError, ValueError, NotImplementedError: the compiler refuses the tile.
        """
        with self._table, mock.patch.dict(kernel_tiles.BLOCKS, {self.chip.listed: blocks}):
            mask = self._mask("pallas", interpret=self.chip.interpret)
        return sweep.Cell({"blocks": blocks}, compiled(self._attend, self._arrays, mask).run)

    def check(self, cell: sweep.Cell) -> sweep.Cell:
        """The cell, run once.

        Raises:
          AssertionError: it computes something else than plain XLA does.
        """
        gap = distance(cell.run(), self._expected)
        assert gap <= TOLERANCE[self.problem.dtype], f"{cell.facts}: gradients are {gap:.2g} away from plain XLA's"
        return cell

    def _mask(self, implementation: str, **options: Any) -> attention.Mask:
        return jax.jit(functools.partial(attention.prepare, implementation=implementation, **options))(*self._masks)

    def _attend(self, query: jax.Array, key: jax.Array, value: jax.Array, mask: attention.Mask) -> jax.Array:
        return attention.attend(query, key, value, mask, scale=self.problem.width**-0.5)


@dataclasses.dataclass
class Tiles(sweep.Sweep):
    """One row per tile, fastest first; refused ones last, with the compiler's words. The first tile is the table's."""

    problem: Problem
    chip: Chip
    tiles: Sequence[Blocks]
    tolerance: None = dataclasses.field(default=None, kw_only=True)

    columns = COLUMNS

    def cells(self, case):
        """Those that compile; AssertionError where one computes something else than plain XLA does."""
        proven, cells, self.refused = Proven(self.problem, self.chip), {}, []
        for blocks in progress_bar(self.tiles, shown=True, desc="compiling", unit="tile"):
            try:
                cells[str(blocks)] = proven.check(proven.cell(blocks))
            except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
                self.refused.append({"blocks": blocks, "refused": str(error).strip().splitlines()[0][:160]})
        return cells

    def rows(self, case, cells):
        timed = [{"blocks": c["blocks"], "milliseconds": 1e3 * c["seconds"].median} for c in cells.values()]
        timed.sort(key=lambda row: row["milliseconds"])
        if timed and not self.chip.interpret:
            print(f'in prefjax/models/attention/kernel_tiles.py:\n    "{self.chip.kind}": {timed[0]["blocks"]},')
        return timed + self.refused

    def lines(self, rows):
        lines = []
        for row in rows:
            line = {"now": " (now)" if row["blocks"] == self.tiles[0] else "", "warps": row["blocks"].warps or ""}
            if "refused" in row:
                line |= {"ms": "refused", "slower": row["refused"]}
            else:
                ratio = row["milliseconds"] / rows[0]["milliseconds"]
                line |= {"ms": f"{row['milliseconds']:.3g}", "slower": f"{ratio:.2f}x"}
            lines.append(row | line)
        return lines

    def plot(self, rows):
        """Milliseconds of every tile that compiled, fastest on top."""
        timed = [row for row in rows if "milliseconds" in row][::-1]
        figure, (axis,) = sweep.panels(6, 1 + 0.22 * len(timed))
        axis.barh([name_of(row["blocks"]) for row in timed], [row["milliseconds"] for row in timed], color=sweep.BLUE)
        axis.set(xlabel="forward + backward, ms")
        return figure


def name_of(blocks: Blocks) -> str:
    warps = f", {blocks.warps} warps" if blocks.warps else ""
    return f"{blocks.query} x {blocks.key}, {blocks.rows} rows{warps}"


def chip_here(interpret: str | None) -> Chip:
    platform = interpret or kernel_tiles.platform_of(None)
    kind = interpret or kernel_tiles.kind_of(platform, None)
    return Chip(platform, kind, kernel_tiles.listed_kind(platform, kind), interpret)


def distance(got: dict[str, jax.Array], expected: dict[str, jax.Array]) -> float:
    """Relative distance of all gradients together."""
    flat = lambda result: jnp.concatenate([result[k].astype(jnp.float32).ravel() for k in ("query", "key", "value")])
    return float(jnp.linalg.norm(flat(got) - flat(expected)) / jnp.linalg.norm(flat(expected)))


def define_flags() -> None:
    flags.DEFINE_enum("interpret", None, kernel_tiles.PLATFORMS, "Emulate this platform instead of using a chip.")
    for field in dataclasses.fields(Problem):
        define = flags.DEFINE_string if field.type is str else flags.DEFINE_integer
        define(field.name, field.default, f"{field.name.replace('_', ' ')} of the attention.")


def declare(options: flags.FlagValues) -> Tiles:
    chip = chip_here(options.interpret)
    if chip.platform not in kernel_tiles.PLATFORMS:
        raise app.UsageError(f"no TPU or NVIDIA GPU here (this is {chip.platform}): no tile to tune; see --interpret")
    problem = Problem(**{field.name: options[field.name].value for field in dataclasses.fields(Problem)})
    where = f"{chip.platform} emulated, times mean nothing" if options.interpret else chip.kind
    tiles = candidates(chip.platform, kernel_tiles.BLOCKS[chip.listed])
    return Tiles(problem, chip, tiles, text=f"{problem}, {where}.", facts={"problem": problem, "kind": chip.kind})


if __name__ == "__main__":
    sweep.main(define_flags, declare, repeats=20)
