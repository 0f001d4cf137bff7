"""Attention alone, forward and backward: live tiles of the prefix-sharing mask against jax.nn with the whole mask.

COMMAND   python -m experiments.benchmarks.attention --output=results/attention
TIME      about 2 minutes on two CPU cores
PROTOCOL  One packed row of random trees (a prompt and two responses, lengths lognormal with sigma 0.5 and medians
          150 and 150), float32, 9 query and 3 key heads of width 64. Every implementation runs the same row in the same
          process; compilation and one warm-up call are excluded; median of `--repeats` calls, in turns, each after an
          untimed one. Temporaries are what the compiler reserves. Outputs and gradients are compared before anything is
          timed.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmarks import sweep
from prefjax.analysis import style
from prefjax.models import attention
from prefjax.rows.layout import lay_out_forest

QUERY_HEADS, KEY_HEADS, WIDTH = 9, 3, 64
PLAIN, TILES = "jax.nn with the mask", "live tiles"
COLUMNS = (
    f"T: {{length}} | {PLAIN}, ms: {{plain[milliseconds]:.0f}} | MB: {{plain[temporary_mb]:.0f}} | "
    f"{TILES}, ms: {{tiles[milliseconds]:.0f}} | MB: {{tiles[temporary_mb]:.0f}} | "
    "faster: {faster:.1f}x | memory: {memory:.0%}"
)


def packed_row(length: int, seed: int = 0, median: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """(visible_until, positions), each [1, length], of a row filled with random trees of three nodes.

    Args:
      median: tokens of a node.
    """
    rng = np.random.default_rng(seed)
    draw = lambda: max(4, int(rng.lognormal(np.log(median), 0.5)))
    lengths, parents = [], []
    while True:
        tree = [draw() for _ in range(3)]
        if sum(lengths) + sum(tree) > length:
            break
        trunk = len(lengths)
        lengths += tree
        parents += [-1, trunk, trunk]
    visible_until, positions = padded(lengths, parents, length)
    return visible_until[None], positions[None]


def padded(lengths: Sequence[int], parents: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(visible_until, positions), each [length], of a forest as of `lay_out_forest`, and padding after it."""
    forest = lay_out_forest(np.array(lengths, np.int32), np.array(parents, np.int32))
    pad = np.arange(len(forest.positions), length, dtype=np.int32)
    return np.concatenate([forest.visible_until, pad + 1]), np.concatenate([forest.positions, np.zeros_like(pad)])


def drawn(
    rows: int, length: int, query_heads: int, key_heads: int, width: int, dtype: str = "float32"
) -> tuple[list[jax.Array], list[jax.Array]]:
    """([visible_until, positions], [query, key, value, upstream gradient]) of packed rows, the latter random."""
    masks = zip(*(packed_row(length, seed) for seed in range(rows)), strict=True)
    shapes = [(rows, length, heads, width) for heads in (query_heads, key_heads, key_heads, query_heads)]
    keys = jax.random.split(jax.random.key(0), 4)
    arrays = [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]
    return [jnp.asarray(np.concatenate(part)) for part in masks], arrays


def compiled(function: Callable[..., jax.Array], arrays: Sequence[jax.Array], *masks: Any) -> sweep.Cell:
    """Forward and backward of one attention: its output against the upstream gradient, and the three gradients.

    Args:
      function: of query, key, value and `masks`, which are arguments of the program; some functions make their own.
      arrays: query, key, value and the upstream gradient.
      masks: of the call; it takes others of their shapes.
    """
    query, key, value, upstream = arrays
    inputs = {"query": query, "key": key, "value": value}
    output = lambda given, *masks: function(given["query"], given["key"], given["value"], *masks)
    loss = lambda given, *masks: (output(given, *masks) * upstream).astype(jnp.float32).sum()
    program = jax.jit(jax.value_and_grad(loss)).lower(inputs, *masks).compile()

    def run(*others):
        loss, gradients = jax.block_until_ready(program(inputs, *(others or masks)))
        return {"loss": loss, **gradients}

    return sweep.Cell({"temporary_mb": program.memory_analysis().temp_size_in_bytes / 1e6}, run)


def masked(query, key, value, visible_until, positions):
    """The whole mask, written out inside."""
    mask = attention.visible(visible_until)[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=WIDTH**-0.5)


def tiled(query, key, value, visible_until, positions):
    """The mask's live tiles, listed inside, as a step would."""
    mask = attention.prepare(visible_until, positions, implementation="tiled")
    return attention.attend(query, key, value, mask, scale=WIDTH**-0.5)


IMPLEMENTATIONS = {PLAIN: masked, TILES: tiled}


@dataclasses.dataclass
class Attention(sweep.Sweep):
    """One case per row length, one row per implementation, and one line for both."""

    cases: Iterable[int]

    columns = COLUMNS
    settle = True

    def cells(self, case):
        """One per implementation, on the same row."""
        masks, arrays = drawn(1, case, QUERY_HEADS, KEY_HEADS, WIDTH)
        return {name: compiled(function, arrays, *masks) for name, function in IMPLEMENTATIONS.items()}

    def rows(self, case, cells):
        timed = lambda cell: {"milliseconds": 1e3 * cell["seconds"].median, "temporary_mb": cell["temporary_mb"]}
        return [{"length": case, "implementation": name, **timed(cell)} for name, cell in cells.items()]

    def lines(self, rows):
        return [
            {
                "length": plain["length"],
                "plain": plain,
                "tiles": tiles,
                "faster": plain["milliseconds"] / tiles["milliseconds"],
                "memory": tiles["temporary_mb"] / plain["temporary_mb"],
            }
            for plain, tiles in zip(rows[::2], rows[1::2], strict=True)
        ]

    def plot(self, rows):
        """Time and temporaries over the row length, both axes logarithmic."""
        figure, axes = sweep.panels(8.4, 3.4, 2)
        lengths = list(dict.fromkeys(row["length"] for row in rows))
        shown = (
            ("milliseconds", "forward + backward, ms", "Time of attention alone"),
            ("temporary_mb", "temporaries, MB", "Memory besides its arrays"),
        )
        for axis, (field, label, heading) in zip(axes, shown, strict=True):
            for name, colour in ((PLAIN, sweep.GREY), (TILES, sweep.BLUE)):
                values = [row[field] for row in rows if row["implementation"] == name]
                axis.plot(lengths, values, marker="o", color=colour, label=name)
            axis.set(xscale="log", yscale="log", xlabel="tokens in the row", ylabel=label)
            style.title(axis, heading)
            axis.set_xticks(lengths, map(str, lengths))
            axis.minorticks_off()
            axis.legend(**style.LEGEND)
        return figure


def define_flags() -> None:
    flags.DEFINE_list("lengths", ["512", "1024", "2048", "4096"], "Row lengths in tokens.")


if __name__ == "__main__":
    sweep.main(define_flags, lambda options: Attention(map(int, options.lengths), text="float32."))
