"""Attention alone, forward and backward: live tiles of the prefix-sharing mask against jax.nn with the whole mask.

COMMAND   python -m experiments.benchmarks.attention --output=results/attention
TIME      about 2 minutes on two CPU cores
PROTOCOL  One packed row of random trees (a prompt and two responses, lengths lognormal with sigma 0.5 and medians
          150 and 150), float32, 9 query and 3 key heads of width 64. Every implementation runs the same row in the same
          process; compilation and one warm-up call are excluded; median of `--repeats` calls, in turns, each after an
          untimed one. Temporaries are what the compiler reserves. Outputs and gradients are compared before anything is
          timed.
"""

import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from absl import app, flags

from experiments.benchmarks import core
from prefjax.data.layout import lay_out_forest
from prefjax.models import attention

QUERY_HEADS, KEY_HEADS, WIDTH = 9, 3, 64
TOLERANCE = 1e-4


def packed_row(length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(visible_until, positions), each [1, length], of a row filled with random trees."""
    rng = np.random.default_rng(seed)
    draw = lambda: max(4, int(rng.lognormal(np.log(150), 0.5)))
    lengths, parents = [], []
    while True:
        tree = [draw() for _ in range(3)]
        if sum(lengths) + sum(tree) > length:
            break
        trunk = len(lengths)
        lengths += tree
        parents += [-1, trunk, trunk]
    forest = lay_out_forest(np.array(lengths, np.int32), np.array(parents, np.int32))
    pad = np.arange(len(forest.positions), length, dtype=np.int32)
    visible_until = np.concatenate([forest.visible_until, pad + 1])
    return visible_until[None], np.concatenate([forest.positions, np.zeros_like(pad)])[None]


def implementations(visible_until: jax.Array, positions: jax.Array):
    """name -> function of (query, key, value); the mask is planned or written out inside, as a step would."""

    def masked(query, key, value):
        mask = attention.visible(visible_until)[:, None]
        return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=WIDTH**-0.5)

    def tiled(query, key, value):
        plan = attention.prepare(visible_until, positions, implementation="tiled")
        return attention.attend(query, key, value, plan, scale=WIDTH**-0.5)

    return {"jax.nn with the mask": masked, "live tiles": tiled}


def measure(length: int, repeats: int) -> list[dict]:
    """One row of the table per implementation.

    Raises:
      AssertionError: the implementations disagree.
    """
    visible_until, positions = map(jnp.asarray, packed_row(length))
    keys = jax.random.split(jax.random.key(0), 4)
    shape = lambda heads: (1, length, heads, WIDTH)
    query, key, value, upstream = (
        jax.random.normal(k, shape(heads))
        for k, heads in zip(keys, (QUERY_HEADS, KEY_HEADS, KEY_HEADS, QUERY_HEADS), strict=True)
    )
    calls, outputs, temporaries = {}, {}, {}
    for name, function in implementations(visible_until, positions).items():
        loss = lambda q, k, v, f=function: (f(q, k, v) * upstream).sum()
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(query, key, value).compile()
        calls[name] = lambda compiled=compiled: jax.block_until_ready(compiled(query, key, value))
        outputs[name] = calls[name]()
        temporaries[name] = compiled.memory_analysis().temp_size_in_bytes / 1e6
    plain, tiles = outputs.values()
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(tiles), strict=True):
        scale = float(jnp.abs(a).max())
        assert float(jnp.abs(a - b).max()) <= TOLERANCE * scale, f"length {length}: the implementations disagree"
    return [
        {
            "length": length,
            "implementation": name,
            "milliseconds": 1e3 * statistics.median(seconds),
            "temporary_mb": temporaries[name],
        }
        for name, seconds in core.interleave(calls, repeats, settle=True).items()
    ]


def table(rows: list[dict]) -> str:
    """Markdown, one line per row length."""
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    columns = ["T", *(column for name in names for column in (f"{name}, ms", "MB")), "faster", "memory"]
    lines = []
    for length in dict.fromkeys(row["length"] for row in rows):
        plain, tiles = (next(r for r in rows if r["length"] == length and r["implementation"] == n) for n in names)
        cells = [f"{r[field]:.0f}" for r in (plain, tiles) for field in ("milliseconds", "temporary_mb")]
        faster = plain["milliseconds"] / tiles["milliseconds"]
        memory = tiles["temporary_mb"] / plain["temporary_mb"]
        lines.append([str(length), *cells, f"{faster:.1f}x", f"{memory:.0%}"])
    return core.markdown(columns, lines)


def plot(rows: list[dict]) -> matplotlib.figure.Figure:
    """Time and temporaries over the row length, both axes logarithmic."""
    figure = matplotlib.figure.Figure(figsize=(8.4, 3.4), dpi=120, layout="constrained")
    panels = (("milliseconds", "forward + backward, ms"), ("temporary_mb", "temporaries, MB"))
    for axis, (field, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for name, colour in zip(
            dict.fromkeys(row["implementation"] for row in rows), ("#8A8F98", "#0072B2"), strict=True
        ):
            points = [(row["length"], row[field]) for row in rows if row["implementation"] == name]
            axis.plot(*zip(*points, strict=True), marker="o", color=colour, label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens in the row", ylabel=label)
        axis.set_xticks([row["length"] for row in rows], [str(row["length"]) for row in rows])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    return figure


def define_flags() -> None:
    core.define_output()
    core.define_repeats()
    flags.DEFINE_list("lengths", ["512", "1024", "2048", "4096"], "Row lengths in tokens.")


def main(_) -> None:
    options = flags.FLAGS
    rows = []
    for length in map(int, options.lengths):
        rows += measure(length, options.repeats)
        print(table(rows[-2:]).splitlines()[-1], flush=True)
    text = f"float32, median of {options.repeats} calls in turns.\n{core.machine_line()}.\n\n"
    core.write(Path(options.output), {"rows": rows}, text + table(rows), plot(rows))


if __name__ == "__main__":
    define_flags()
    app.run(main)
