"""Attention on deep forests against rows of pairs: which tiles are visited, and what one of them costs.

COMMAND   python -m experiments.benchmarks.live_tiles --output=results/live_tiles
TIME      two minutes on two CPU cores
PROTOCOL  The tile loop of experiments.benchmarks.attention, forward and backward, one program a length, on packed rows
          as long as each other: rows of pairs (a prompt and two responses) and deep ones, of trees of 24 nodes, each
          below a random node of the path to the last one, late ones rather. About 3, 6 or 12 trees fill a row, so that
          rows of one length differ in the number of their tiles; --seeds rows of each kind and number. The tiles that
          the loop visits are counted and compared with those of the whole mask that hold a visible pair, and its
          gradients, which the output is part of, with those of jax.nn under that mask, before rows are timed in turns.
          What a call costs for its positions, whatever it visits, is told apart from what a tile costs by least
          squares over the rows of a length: CPU time of all threads, which other programs on the machine change least,
          median of the calls = a call + live tiles x a tile of its kind.
COLUMNS   depth: nodes on the longest path; live: tiles visited, fewest and most of a row, of those at or below the
          diagonal; of pairs: a tile of a deep row over one of pairs, +- half of a 95 % interval (Student's t).
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from absl import flags

from experiments.benchmarks import attention, sweep
from prefjax.analysis import style
from prefjax.models.attention import tiles, visible
from prefjax.rows.layout import lay_out_forest

KINDS = ("pairs", "deep")
COLUMNS = (
    "T: {length} | depth of deep: {depth[deep]} | live, pairs: {live[pairs]} | live, deep: {live[deep]} | "
    "causal: {causal} | a call, CPU ms: {call:.1f} | a tile of pairs, CPU µs: {tile[pairs]:.0f} | "
    "of deep: {tile[deep]:.0f} | deep / pairs: {ratio[0]:.3f}x ± {ratio[1]:.3f}"
)
_NODES = 24  # of a deep tree
_TREES = (3, 6, 12)  # about so many fill a row


def deep_row(length: int, seed: int = 0, tokens: int = 450) -> tuple[np.ndarray, np.ndarray, int]:
    """(visible_until, positions), each [1, length], of a row filled with deep random trees, and their depth.

    Args:
      tokens: of a tree, about.
    """
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
        own = max(1, int(rng.lognormal(np.log(tokens / _NODES), 0.5)))
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


def gradients_of(found: dict[str, Any]) -> dict[str, Any]:
    """What a call found without its loss, of which terms of both signs leave little."""
    return {name: value for name, value in found.items() if name != "loss"}


def fitted(rows: Sequence[sweep.Row]) -> sweep.Row:
    """What calls and tiles of the rows of one length cost, and the ratio of the tiles with its interval."""
    own = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    live, cpu = (np.array([row[name] for row in rows], float) for name in ("live", "cpu"))
    deep = np.array([row["kind"] == "deep" for row in rows])
    columns = np.stack([np.ones(len(rows)), live, live * deep], axis=1)
    call, tile, more = found = np.linalg.lstsq(columns, cpu)[0]
    free = len(rows) - len(found)
    variance = np.square(cpu - columns @ found).sum() / free
    error = np.sqrt(variance * np.linalg.inv(columns.T @ columns)[2, 2])
    spread = lambda values: f"{min(values)}-{max(values)}"
    return {
        **{name: rows[0][name] for name in ("length", "causal")},
        **{name: {kind: spread([row[name] for row in own[kind]]) for kind in KINDS} for name in ("depth", "live")},
        **{"call": call, "tile": {"pairs": 1e3 * tile, "deep": 1e3 * (tile + more)}},
        "ratio": (1 + more / tile, scipy.stats.t.ppf(0.975, free) * error / tile),
    }


@dataclasses.dataclass
class LiveTiles(sweep.Sweep):
    """One case per row length, one cell per row, and one line for all rows of a length."""

    cases: Iterable[int]
    seeds: int = 2

    columns = COLUMNS

    def cells(self, case):
        """Rows of both kinds, proven against the whole mask in number of tiles and result."""
        given = {}
        for trees, seed in itertools.product(_TREES, range(self.seeds)):
            given["pairs", trees, seed] = (*attention.packed_row(case, seed, case // trees // 3), 2)
            given["deep", trees, seed] = deep_row(case, seed, case // trees)
        masks, arrays = attention.drawn(1, case, attention.QUERY_HEADS, attention.KEY_HEADS, attention.WIDTH)
        plain, own = (
            attention.compiled(attention.IMPLEMENTATIONS[name], arrays, *masks).run
            for name in (attention.PLAIN, attention.TILES)
        )
        found, blocks = {}, -(-case // tiles.BLOCK)
        for (kind, trees, seed), (*row, depth) in given.items():
            row, name = [jnp.asarray(part) for part in row], f"{kind} {trees} {seed}"
            live, wanted = int(tiles.live_tiles(row[0]).count[0]), holding(row[0])
            assert live == wanted, f"{live} tiles of row {name} are visited, and {wanted} hold a visible pair"
            gradients = {by: gradients_of(run(*row)) for by, run in (("the whole mask", plain), (name, own))}
            sweep.check_equal(gradients, sweep.TOLERANCE["float32"])
            facts = {"kind": kind, "trees": trees, "seed": seed, "depth": depth, "live": live}
            facts |= {"causal": blocks * (blocks + 1) // 2, "cpu": sweep.Times()}
            found[name] = sweep.Cell(facts, functools.partial(timed, functools.partial(own, *row), facts["cpu"]))
        return found

    def rows(self, case, cells):
        median = lambda cell, name: 1e3 * cell.pop(name).median
        return [
            {"length": case, "milliseconds": median(cell, "seconds"), "cpu": median(cell, "cpu"), **cell}
            for cell in cells.values()
        ]

    def lines(self, rows):
        lengths = dict.fromkeys(row["length"] for row in rows)
        return [fitted([row for row in rows if row["length"] == length]) for length in lengths]

    def plot(self, rows):
        """CPU time over live tiles: points of both kinds lie on one line where a tile costs the same."""
        figure, (axis,) = sweep.panels(5.2, 3.4)
        for kind, colour, marker in zip(KINDS, (sweep.GREY, sweep.BLUE), "os", strict=True):
            own = [row for row in rows if row["kind"] == kind]
            live, cpu = ([row[name] for row in own] for name in ("live", "cpu"))
            axis.plot(live, cpu, marker, color=colour, label=kind, alpha=0.7)
        for line, length in zip(LiveTiles.lines(self, rows), dict.fromkeys(row["length"] for row in rows), strict=True):
            live = [row["live"] for row in rows if row["length"] == length]
            ends = np.array([min(live), max(live)])
            times = line["call"] + 1e-3 * line["tile"]["pairs"] * ends
            axis.plot(ends, times, color=style.EDGE, zorder=0)
            axis.annotate(f"T = {length}", (ends[1], times[1]), **style.LABEL)
        axis.set(xlabel="live tiles", ylabel="forward + backward, CPU ms")
        axis.legend(**style.LEGEND)
        return figure


def define_flags() -> None:
    flags.DEFINE_list("lengths", ["512", "1024", "2048"], "Row lengths in tokens.")
    flags.DEFINE_integer("seeds", 2, "Rows of each kind, size of trees and length.", lower_bound=1)


def declare(options: flags.FlagValues) -> LiveTiles:
    """The rows differ, so each is compared with the whole mask where its cell is made."""
    return LiveTiles(map(int, options.lengths), options.seeds, text="float32.", tolerance=None)


if __name__ == "__main__":
    sweep.main(define_flags, declare, repeats=9)
