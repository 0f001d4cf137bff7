"""Which attention tile is fastest on the TPU or NVIDIA GPU at hand, as the line to put into BLOCKS of pallas_tiles.py.

COMMAND   python -m experiments.benchmarks.tune_attention --output=results/tune
          Where there is no such chip, --interpret=tpu or --interpret=cuda runs every candidate on an emulator: it shows
          that the command works, and its times mean nothing.
PROTOCOL  Packed rows of random trees as in experiments.benchmarks.attention, forward and backward of one layer's
          attention. Every candidate tile is compiled and compared with the live tiles in plain XLA before it is timed
          (relative 2e-2 in bfloat16, 1e-4 in float32); candidates take turns; medians. A tile that the compiler refuses
          is listed with its reason.
COLUMNS   query, key: positions of a tile; rows: matrix rows with the heads that share a key; warps: of a GPU program.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from absl import app, flags
from tqdm import tqdm

from experiments.benchmarks import core
from experiments.benchmarks.attention import packed_row
from prefjax.models import attention, pallas_tiles
from prefjax.models.pallas_tiles import Blocks

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


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


def measure(
    problem: Problem, platform: str, kind: str, tiles: Iterable[Blocks], *, repeats: int, interpret: str | None = None
) -> list[dict[str, Any]]:
    """One row per tile, fastest first; refused ones last, with the compiler's words.

    Raises:
      AssertionError: a tile computes something else than plain XLA does.
    """
    p, rng = problem, jax.random.key(0)
    masks = [packed_row(p.length, seed) for seed in range(p.rows)]
    visible_until, positions = (jnp.asarray(np.concatenate(part)) for part in zip(*masks, strict=True))
    heads = (p.query_heads, p.key_heads, p.key_heads, p.query_heads)
    draw = lambda key, count: jax.random.normal(key, (p.rows, p.length, count, p.width), p.dtype)
    *inputs, upstream = map(draw, jax.random.split(rng, 4), heads)

    def compiled(implementation):
        def loss(query, key, value):
            plan = attention.prepare(
                visible_until,
                positions,
                implementation=implementation,
                interpret=interpret if implementation == "pallas" else None,
            )
            output = attention.attend(query, key, value, plan, scale=p.width**-0.5)
            return (output * upstream).astype(jnp.float32).sum()

        program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*inputs).compile()
        return lambda: jax.block_until_ready(program(*inputs))

    expected = compiled("tiled")()
    calls, refused = {}, {}
    for blocks in tqdm(tiles, desc="compiling", unit="tile"):
        with mock.patch.dict(pallas_tiles.BLOCKS, {kind: blocks}):
            try:
                call = compiled("pallas")
                got = call()
            except (jax.errors.JaxRuntimeError, ValueError, NotImplementedError) as error:
                refused[blocks] = str(error).strip().splitlines()[0][:160]
                continue
        gap = _distance(got[1], expected[1])
        assert gap <= TOLERANCE[p.dtype], f"{blocks}: gradients are {gap:.2g} away from plain XLA's"
        calls[blocks] = call
    seconds = core.interleave({str(blocks): call for blocks, call in calls.items()}, repeats)
    rows = [{"blocks": blocks, "milliseconds": 1e3 * statistics.median(seconds[str(blocks)])} for blocks in calls]
    rows.sort(key=lambda row: row["milliseconds"])
    return rows + [{"blocks": blocks, "refused": reason} for blocks, reason in refused.items()]


def _distance(got, expected) -> float:
    """Relative distance of all gradients together."""
    flat = lambda tree: jnp.concatenate([x.astype(jnp.float32).ravel() for x in jax.tree.leaves(tree)])
    return float(jnp.linalg.norm(flat(got) - flat(expected)) / jnp.linalg.norm(flat(expected)))


def table(rows: list[dict[str, Any]], current: Blocks) -> str:
    """Markdown, fastest first; the tile of the table is marked."""
    columns = ["query", "key", "rows", "warps", "ms", "against the fastest"]
    fastest = rows[0].get("milliseconds")
    lines = []
    for row in rows:
        blocks = row["blocks"]
        line = [f"{blocks.query}{' (now)' if blocks == current else ''}", blocks.key, blocks.rows, blocks.warps or ""]
        if "refused" in row:
            line += ["refused", row["refused"]]
        else:
            line += [f"{row['milliseconds']:.3g}", f"{row['milliseconds'] / fastest:.2f}x"]
        lines.append([str(cell) for cell in line])
    return core.markdown(columns, lines)


def plot(rows: list[dict[str, Any]]) -> matplotlib.figure.Figure:
    """Milliseconds of every tile that compiled, fastest on top."""
    timed = [row for row in rows if "milliseconds" in row]
    figure = matplotlib.figure.Figure(figsize=(6, 1 + 0.22 * len(timed)), dpi=120, layout="constrained")
    axis = figure.subplots()
    names = [
        f"{b.query} x {b.key}, {b.rows} rows" + (f", {b.warps} warps" if b.warps else "")
        for b in (row["blocks"] for row in timed)
    ]
    axis.barh(names[::-1], [row["milliseconds"] for row in timed][::-1], color="#0072B2")
    axis.set(xlabel="forward + backward, ms")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def define_flags() -> None:
    core.define_output()
    flags.DEFINE_enum("interpret", None, pallas_tiles.PLATFORMS, "Emulate this platform instead of using a chip.")
    flags.DEFINE_integer("repeats", 20, "Timed calls per tile.")
    for field in dataclasses.fields(Problem):
        define = flags.DEFINE_string if field.type is str else flags.DEFINE_integer
        define(field.name, field.default, f"{field.name.replace('_', ' ')} of the attention.")


def main(_) -> None:
    options = flags.FLAGS
    platform = options.interpret or pallas_tiles.platform_of(None)
    if platform not in pallas_tiles.PLATFORMS:
        raise app.UsageError(
            f"no TPU or NVIDIA GPU here (this is {platform}): there is no tile to tune; see --interpret"
        )
    kind = options.interpret or pallas_tiles.kind_of(platform, None)
    problem = Problem(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Problem)})
    name = pallas_tiles.listed_kind(platform, kind)
    current = pallas_tiles.BLOCKS[name]
    tiles = candidates(platform, current)
    rows = measure(problem, platform, name, tiles, repeats=options.repeats, interpret=options.interpret)
    where = f"{platform} emulated, times mean nothing" if options.interpret else kind
    text = f"{problem}, {where}; median of {options.repeats}.\n{core.machine_line()}.\n\n"
    plain = [row | {"blocks": dataclasses.asdict(row["blocks"])} for row in rows]
    facts = {"problem": dataclasses.asdict(problem), "kind": kind, "rows": plain}
    core.write(Path(options.output), facts, text + table(rows, current), plot(rows))
    if not options.interpret:
        print(f'in prefjax/models/pallas_tiles.py:\n    "{kind}": {rows[0]["blocks"]},')


if __name__ == "__main__":
    define_flags()
    app.run(main)
