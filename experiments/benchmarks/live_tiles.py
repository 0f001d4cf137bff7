"""Attention on deep forests against rows of pairs: which tiles are visited, and what one of them costs.

COMMAND   python -m experiments.benchmarks.live_tiles --output=results/live_tiles
TIME      a minute on two CPU cores
PROTOCOL  The tile loop of experiments.benchmarks.attention, forward and backward, on two packed rows as long as each
          other: its row of pairs, and one of trees of 24 nodes, each below a random node of the path to the last one,
          late ones rather, and as many tokens a tree. The tiles that the loop visits are counted and compared with
          those of the whole mask that hold a visible pair, and its output and gradients with those of jax.nn under
          that mask, before both rows are timed in turns.
COLUMNS   depth: nodes on the longest path; live: tiles visited, of those at or below the diagonal; ms: wall time; a
          tile: CPU time of all threads, which other programs on the machine change least, over live tiles, median of
          the calls, and over that of the row of pairs.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmarks import attention, sweep
from prefjax.models.attention import tiles, visible
from prefjax.rows.layout import lay_out_forest

ROWS = ("pairs", "deep")
COLUMNS = (
    "T: {length} | row: {row} | depth: {depth} | live: {live} of {causal} | ms: {milliseconds:.0f} | "
    "a tile, CPU µs: {microseconds:.0f} | of that of pairs: {of_pairs:.2f}x"
)
_NODES, _TOKENS = 24, 450  # of a tree; a tree of attention.packed_row has as many tokens


def deep_row(length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, int]:
    """(visible_until, positions), each [1, length], of a row filled with deep random trees, and their depth."""
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    path: list[int] = []
    while sum(lengths) < length:
        if len(lengths) % _NODES == 0:
            path = []
        path = path[: 1 + rng.integers(len(path), size=2).max()] if path else []
        parents.append(path[-1] if path else -1)
        path.append(len(lengths))
        depths.append(len(path))
        own = max(1, int(rng.lognormal(np.log(_TOKENS / _NODES), 0.5)))
        lengths.append(min(own, length - sum(lengths)))
    forest = lay_out_forest(np.array(lengths, np.int32), np.array(parents, np.int32))
    return forest.visible_until[None], forest.positions[None], max(depths)


def holding(visible_until: jax.Array) -> int:
    """Tiles of the whole mask that hold a visible pair."""
    padded = tiles.pad_visible_until(visible_until)
    rows, length = padded.shape
    blocks = (rows, length // tiles.BLOCK, tiles.BLOCK, length // tiles.BLOCK, tiles.BLOCK)
    return int(visible(padded).reshape(blocks).any((2, 4)).sum())


def timed(run: Callable[[], Any], seconds: sweep.Times) -> Any:
    """The call's result; adds the CPU time of all threads meanwhile."""
    began = time.process_time()
    result = run()
    seconds.append(time.process_time() - began)
    return result


@dataclasses.dataclass
class LiveTiles(sweep.Sweep):
    """One case per row length, one cell and one line per kind of row."""

    cases: Iterable[int]

    columns = COLUMNS
    settle = True

    def cells(self, case):
        """The tiles of both rows, proven against the whole mask in number and result."""
        masks, arrays = attention.drawn(1, case, attention.QUERY_HEADS, attention.KEY_HEADS, attention.WIDTH)
        *deep, depth = deep_row(case)
        found = {}
        for row, given, nodes in zip(ROWS, (masks, deep), (2, depth), strict=True):
            until, positions = map(jnp.asarray, given)
            live, wanted = int(tiles.live_tiles(until).count[0]), holding(until)
            assert live == wanted, f"{live} tiles of the row of {row} are visited, and {wanted} hold a visible pair"
            functions = attention.implementations(until, positions)
            plain, own = (attention.compiled(functions[name], arrays) for name in (attention.PLAIN, attention.TILES))
            sweep.check_equal(
                {"the whole mask": plain.run(), f"the tiles of {row}": own.run()}, sweep.TOLERANCE["float32"]
            )
            blocks = -(-case // tiles.BLOCK)
            facts = {"depth": nodes, "live": live, "causal": blocks * (blocks + 1) // 2, "cpu": sweep.Times()}
            found[row] = sweep.Cell(facts, functools.partial(timed, own.run, facts["cpu"]))
        return found

    def rows(self, case, cells):
        made = []
        for row, cell in cells.items():
            measured = {"milliseconds": 1e3 * cell.pop("seconds").median}
            measured["microseconds"] = 1e6 * cell.pop("cpu").median / cell["live"]
            made.append({"length": case, "row": row, **cell, **measured})
        return [row | {"of_pairs": row["microseconds"] / made[0]["microseconds"]} for row in made]

    def plot(self, rows):
        """CPU time over live tiles: points of both kinds lie on one line where a tile costs the same."""
        figure, (axis,) = sweep.panels(5.2, 3.4)
        for kind, colour, marker in zip(ROWS, (sweep.GREY, sweep.BLUE), "os", strict=True):
            own = [row for row in rows if row["row"] == kind]
            live = [row["live"] for row in own]
            axis.plot(
                live, [1e-3 * row["live"] * row["microseconds"] for row in own], marker=marker, color=colour, label=kind
            )
        axis.set(xlabel="live tiles", ylabel="forward + backward, CPU ms")
        axis.legend(frameon=False)
        return figure


def define_flags() -> None:
    flags.DEFINE_list("lengths", ["512", "1024", "2048"], "Row lengths in tokens.")


def declare(options: flags.FlagValues) -> LiveTiles:
    """The two rows differ, so each is compared with the whole mask where its cell is made."""
    return LiveTiles(map(int, options.lengths), text="float32.", tolerance=None)


if __name__ == "__main__":
    sweep.main(define_flags, declare, repeats=9)
