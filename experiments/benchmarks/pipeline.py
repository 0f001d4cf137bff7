"""How full the rows are in every layout, and how many tokens a second one process packs into them from prepared data.

COMMAND   python -m experiments.benchmarks.pipeline --data='data/*.jsonl.gz' --output=results/pipeline
          --data is a file or a glob (a line of the table per file), or a folder of prepared trees that
          experiments.prepare left; several are separated by commas.
TIME      about a minute a file
PROTOCOL  Every file is encoded and stored as the trainer does it (not timed), with all its responses under one prompt.
          Rows are made by prefjax.rows.pipeline.row_dataset as in endless training on one device: global shuffle,
          packing, reading from disk with the checksum of every tree, laying out, prefetch in a thread. No device. After
          one step that is not counted, whole steps for at least --seconds.
COLUMNS   fill: tokens / positions over three epochs of endless full rows, where what is left of an epoch is packed
          with the next one; tokens/s: tokens in the rows that came out, padding not counted, per second of wall time,
          and per CPU second of all threads of the process, which other programs on the machine do not change.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.figure
from absl import flags

from experiments.benchmarks import sweep
from experiments.command import start_command
from prefjax.analysis import style
from prefjax.data.config import DataConfig
from prefjax.data.encoding import EncodingPolicy
from prefjax.data.prepare import prepare
from prefjax.data.readers import find_files
from prefjax.data.tokenizers import load_tokenizer
from prefjax.requirements import Requirements
from prefjax.rows.arrays import LAYOUTS
from prefjax.rows.packing import row_copies
from prefjax.rows.pipeline import row_dataset
from prefjax.rows.steps import FullRows, sampled, simulate
from prefjax.rows.store import TreeSource, open_trees
from prefjax.training.batches import shape_for
from prefjax.training.config import RowsConfig

_EPOCHS = 3
COLUMNS = (
    "data: {data} | trees: {trees:,} | layout: {layout} | rows x length: {rows} x {row_length} | fill: {fill:.1%} | "
    "tokens/s: {wall:.2f} M | tokens per CPU second: {cpu:.2f} M"
)


def open_data(data: str, tokenizer_name: str, policy: EncodingPolicy, directory: Path) -> dict[str, TreeSource]:
    """Name -> prepared trees, of a folder or of every file that the glob finds, encoded into `directory`."""
    if (Path(data) / "manifest.json").exists():
        return {Path(data).name: open_trees(data)}
    tokenizer = load_tokenizer(tokenizer_name)
    sources = {}
    for path in find_files(data):
        config = DataConfig(train=str(path), eval=str(path), tokenizer=tokenizer_name, encoding=policy)
        sources[path.name.split(".")[0]] = prepare(config, Requirements(), tokenizer, directory, split="train")
    return sources


def measure(trees: TreeSource, layout: str, *, tokens_per_step: int, seconds: float) -> dict[str, Any]:
    """One cell of the table."""
    batching = FullRows(seed=0)
    shape = shape_for(RowsConfig(layout=layout, tokens_per_step=tokens_per_step), Requirements(), trees, batching)
    sampler = sampled(trees, shape, batching)
    epoch = sampler.real_tokens.sum() / (shape.rows * row_copies(layout, shape.branches) * shape.row_length)
    plain = simulate(sampler, steps=max(1, round(_EPOCHS * float(epoch))))
    steps = iter(row_dataset(trees, shape, batching))
    next(steps)
    tokens, made, began, cpu_began = 0, 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - began) < seconds:
        tokens += int((next(steps).segment_ids > 0).sum())
        made += 1
    cpu_seconds = time.process_time() - cpu_began
    steps.close()
    return {
        "layout": layout,
        "rows": shape.rows,
        "row_length": shape.row_length,
        "fill": plain.fill,
        "steps": made,
        "tokens_per_second": tokens / elapsed,
        "tokens_per_cpu_second": tokens / cpu_seconds,
    }


def plot(rows: list[sweep.Row]) -> matplotlib.figure.Figure:
    """Fill, and tokens per second, of every layout on every data set."""
    layouts, names = (list(dict.fromkeys(row[field] for row in rows)) for field in ("layout", "data"))
    figure, axes = sweep.panels(9.6, 1.2 + 0.7 * len(names), 2, sharey=True)
    shown = (("fill", "fill", 1), ("tokens_per_second", "million tokens per second", 1e-6))
    for axis, (field, label, unit) in zip(axes, shown, strict=True):
        for k, layout in enumerate(layouts):
            values = [row[field] * unit for row in rows if row["layout"] == layout]
            axis.barh([n + 0.2 * k for n in range(len(names))], values, 0.18, color=style.COLORS[k], label=layout)
        axis.axvline(1, color=sweep.GREY, linewidth=0.8)
        axis.set(xlabel=label)
        axis.set_yticks([n + 0.1 * (len(layouts) - 1) for n in range(len(names))], names)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(layouts), **style.LEGEND)
    return figure


def define_flags() -> None:
    flags.DEFINE_list("data", None, "Files, globs, or folders of prepared trees.", required=True)
    sweep.define_output()
    flags.DEFINE_string("tokenizer", "byte", "byte, or a Hugging Face tokenizer folder; for files.")
    flags.DEFINE_integer("max_length", None, "Of a prompt with a response; longer ones are dropped.")
    flags.DEFINE_integer("tokens_per_step", 16_384, "Positions of all rows of a step.")
    flags.DEFINE_float("seconds", 5.0, "Measured per data set and layout, at least.", lower_bound=0)
    flags.DEFINE_multi_enum("layouts", list(LAYOUTS), LAYOUTS, "Which layouts; may be repeated.")


def main(_) -> None:
    options = flags.FLAGS
    policy, rows = EncodingPolicy(max_length=options.max_length), []
    with tempfile.TemporaryDirectory() as directory:
        for data in options.data:
            for name, trees in open_data(data, options.tokenizer, policy, Path(directory)).items():
                for layout in dict.fromkeys(options.layouts):
                    cell = measure(trees, layout, tokens_per_step=options.tokens_per_step, seconds=options.seconds)
                    rows.append({"data": name, "trees": len(trees), **cell})
                    print(f"{name}, {layout}: fill {cell['fill']:.1%}, {cell['tokens_per_second']:,.0f}/s", flush=True)
    tokenizer = options.tokenizer.rsplit("/", 1)[-1]
    text = f"{tokenizer} tokenizer, steps of {options.tokens_per_step:,} positions, one process.\n"
    millions = lambda row: {"wall": row["tokens_per_second"] / 1e6, "cpu": row["tokens_per_cpu_second"] / 1e6}
    text += f"{sweep.machine_line()}.\n\n{sweep.table(COLUMNS, [row | millions(row) for row in rows])}"
    facts = {"tokens_per_step": options.tokens_per_step, "max_length": options.max_length, "rows": rows}
    sweep.write(Path(options.output), facts, text, plot(rows))


if __name__ == "__main__":
    define_flags()
    start_command(main)
