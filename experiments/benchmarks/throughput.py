"""The paper's table: pairs per second of a train step in four layouts, with the reference live or precomputed.

COMMAND   python -m experiments.benchmarks.throughput --data=preferences.jsonl.gz --output=results/throughput
          --data is a preference file, paper:NAME for lengths like one of the six datasets of arXiv 2410.20305
          (capybara, hh, metamath, tldr, helpsteer, ultrafeedback), or long_prompt.
TIME      about 5 minutes a repeat on two idle CPU cores: all 8 cells, 12 pairs of HH-RLHF, SmolLM2-135M's shape
PROTOCOL  Random weights of --model's shape; the reference is another model. The same --pairs pairs are one optimiser
          step in every cell: policy forward and backward, live reference forward, AdamW; rows as tight as the layout
          allows, cut into micro-batches of at most --micro_batch positions, already on the device. The pairs are the
          best of 256 random samples at having the mean prompt and response lengths of the whole set. Loss, log-probs
          and gradient norm must agree between all cells (1e-4 in float32) before anything is timed. Compilation and one
          warm-up step are excluded, and so is scoring a precomputed reference, which happens once; cells are timed in
          turns; medians.
COLUMNS   pairs/s; useful tokens/s: P + C + R of the pairs, the same in every layout, per second; padding: share of the
          positions that hold no token; memory: arguments + temporaries that the compiler reserves for the step;
          S_time: pairs/s over that of the layout without sharing; S_tokens: sum of 2P + C + R over sum of P + C + R;
          S_FLOPs: the same ratio of the step's FLOPs (attention over the visible area, the head over response tokens,
          which sharing does not reduce); efficiency: S_time / S_FLOPs. Paper: its S_time on 8 x H100 with 7B models.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.figure
from absl import app, flags

from experiments.benchmarks import core, lengths
from experiments.benchmarks.training import BASELINE, Gains, Training, check_equal, ideal_gains, total_work
from prefjax.data.encoding import TRUNCATIONS, EncodingPolicy
from prefjax.data.rows import LAYOUTS
from prefjax.data.statistics import describe
from prefjax.data.trees import TokenTree
from prefjax.models import flops
from prefjax.training.mesh import MeshConfig, make_mesh

REFERENCES = ("live", "precomputed")
_COLOURS = {"live": "#0072B2", "precomputed": "#E69F00"}


def measure(
    trees: list[TokenTree],
    training: Training,
    layouts: Sequence[str],
    references: Sequence[str],
    *,
    repeats: int,
    micro_batch: int,
) -> list[dict[str, Any]]:
    """One row of the table per cell, layouts innermost.

    Raises:
      AssertionError: the cells disagree.
    """
    table = training.reference_table(trees, "dpo", micro_batch) if "precomputed" in references else None
    cells = []
    for reference in references:
        for layout in layouts:
            print(f"compiling {layout}, reference {reference}", flush=True)
            cells.append(training.cell(trees, layout, reference, micro_batch=micro_batch, table=table))
    check_equal({cell.name: cell.run() for cell in cells}, training.model.dtype)
    seconds = core.interleave({cell.name: cell.run for cell in cells}, repeats)
    check_equal({cell.name: cell.run() for cell in cells[:1]} | {"after timing": cells[-1].run()}, training.model.dtype)
    useful = total_work(trees, shared=True).tokens
    rows = []
    for cell in cells:
        median = statistics.median(seconds[cell.name])
        work = total_work(trees, shared=cell.layout in BASELINE)
        needed = flops.step_flops(training.model, work, live_reference=cell.reference == "live")
        rows.append(
            cell.facts()
            | {
                "seconds": seconds[cell.name],
                "pairs_per_second": len(trees) / median,
                "useful_tokens_per_second": useful / median,
                "needed_gflops_per_second": needed / median / 1e9,
            }
        )
    return compare(rows, ideal_gains(training.model, trees))


def compare(rows: list[dict[str, Any]], ideal: Gains) -> list[dict[str, Any]]:
    """Adds S_time, S_tokens, S_FLOPs and efficiency where the layout without sharing was measured too."""
    speed = {(row["layout"], row["reference"]): row["pairs_per_second"] for row in rows}
    compared = []
    for row in rows:
        base = speed.get((BASELINE.get(row["layout"]), row["reference"]))
        gains = {}
        if base is not None:
            ratio = row["pairs_per_second"] / base
            gains = {
                "s_time": ratio,
                "s_tokens": ideal.tokens,
                "s_flops": ideal.flops,
                "efficiency": ratio / ideal.flops,
            }
        compared.append(row | gains)
    return compared


def paper_gains(data: str, layout: str) -> tuple[float, float] | None:
    """The paper's S_time over FlexAttention and over FlashAttention-3, where `data` is like one of its datasets."""
    table = core.published()["datasets"]["packed" if layout == "shared_packed" else "unpacked"]
    name = data.removeprefix(lengths.PAPER)
    if layout not in BASELINE or name == data:
        return None
    speed = table[name]
    return speed["flex_shared"] / speed["flex"], speed["flex_shared"] / speed["fa3"]


def table(rows: list[dict[str, Any]], data: str) -> str:
    """Markdown, one line per cell; the paper's columns only for its datasets."""
    columns = ["layout", "reference", "pairs/s", "useful tokens/s", "padding", "memory, MB"]
    columns += ["S_time", "S_tokens", "S_FLOPs", "efficiency"]
    of_paper = data.startswith(lengths.PAPER)
    columns += ["paper, over Flex", "paper, over FA3"] if of_paper else []
    lines = []
    for row in rows:
        line = [row["layout"], row["reference"], f"{row['pairs_per_second']:.3g}"]
        line += [f"{row['useful_tokens_per_second']:,.0f}", f"{row['padding']:.1%}", f"{row['memory_mb']:,.0f}"]
        if "s_time" in row:
            line += [f"{row['s_time']:.2f}x", f"{row['s_tokens']:.2f}", f"{row['s_flops']:.2f}"]
            line += [f"{row['efficiency']:.3f}"]
        else:
            line += [""] * 4
        if of_paper:
            # The paper's reference is live in every number.
            gains = paper_gains(data, row["layout"]) if row["reference"] == "live" else None
            line += ["", ""] if gains is None else [f"{gain:.2f}x" for gain in gains]
        lines.append(line)
    return core.markdown(columns, lines)


def plot(rows: list[dict[str, Any]], title: str) -> matplotlib.figure.Figure:
    """Pairs per second, one group of bars per layout."""
    figure = matplotlib.figure.Figure(figsize=(7.2, 3.4), dpi=120, layout="constrained")
    axis = figure.subplots()
    layouts = list(dict.fromkeys(row["layout"] for row in rows))
    references = list(dict.fromkeys(row["reference"] for row in rows))
    width = 0.8 / len(references)
    for k, reference in enumerate(references):
        mine = [row for row in rows if row["reference"] == reference]
        places = [layouts.index(row["layout"]) + (k - (len(references) - 1) / 2) * width for row in mine]
        heights = [row["pairs_per_second"] for row in mine]
        axis.bar_label(axis.bar(places, heights, 0.95 * width, color=_COLOURS[reference], label=reference), fmt="%.3g")
    axis.set(ylabel="pairs per second", title=title)
    axis.set_xticks(range(len(layouts)), layouts)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, title="reference")
    return figure


def define_flags() -> None:
    flags.DEFINE_string("data", None, "A preference file, paper:NAME or long_prompt.", required=True)
    core.define_output()
    core.define_repeats()
    core.define_model_flags()
    flags.DEFINE_string("tokenizer", "byte", "byte, or a Hugging Face tokenizer folder; for files.")
    flags.DEFINE_integer("pairs", 12, "Pairs of one step.")
    flags.DEFINE_integer("micro_batch", 5120, "Positions per device and forward pass; the rest accumulates.")
    flags.DEFINE_multi_enum("layouts", list(LAYOUTS), LAYOUTS, "Which layouts; may be repeated.")
    flags.DEFINE_multi_enum("references", list(REFERENCES), REFERENCES, "Which; may be repeated.")
    flags.DEFINE_integer("max_length", 2048, "Of a prompt with its longest response, in tokens.")
    flags.DEFINE_integer("max_prompt_length", None, "Of a prompt, in tokens.")
    flags.DEFINE_integer("max_response_length", None, "Of a response, in tokens.")
    flags.DEFINE_enum("truncation", "drop", TRUNCATIONS, "What happens to longer ones.")
    flags.DEFINE_integer("seed", 0, "Of the sample of pairs.")


def main(_) -> None:
    options = flags.FLAGS
    model = core.chosen_model()
    policy = EncodingPolicy(
        options.max_length, options.max_prompt_length, options.max_response_length, options.truncation
    )
    data = options.data
    trees, source = lengths.load_trees(data, options.tokenizer, policy, vocab_size=model.vocab_size)
    sample = lengths.representative(trees, options.pairs, options.seed)
    whole, taken = describe(trees), describe(sample)
    print(f"{source}\n\n{whole}\n\nthe {len(sample)} pairs of a step\n\n{taken}\n", flush=True)
    training = Training(model, make_mesh(MeshConfig()))
    rows = measure(
        sample,
        training,
        list(dict.fromkeys(options.layouts)),
        list(dict.fromkeys(options.references)),
        repeats=options.repeats,
        micro_batch=options.micro_batch,
    )
    mean = lambda statistics, node: f"{statistics.lengths[node].mean:.0f}"
    text = (
        f"{source} (max_length {policy.max_length}, {policy.truncation}). {len(sample)} pairs a step, prompts of "
        f"{mean(taken, 'prompt')} and responses of {mean(taken, 'response')} tokens on average (whole set: "
        f"{mean(whole, 'prompt')} and {mean(whole, 'response')}, S_tokens {whole.token_saving:.2f}).\n"
        f"{core.model_line(model)} {core.timing_line(options.repeats, [row['seconds'] for row in rows])}\n"
        f"{core.machine_line()}.\n\n"
    )
    facts = {
        "data": data,
        "source": source,
        "policy": dataclasses.asdict(policy),
        "model": dataclasses.asdict(model),
        "pairs": len(sample),
        "micro_batch": options.micro_batch,
        "statistics": {"whole": whole.as_dict(), "step": taken.as_dict()},
        "rows": rows,
    }
    figure = plot(rows, f"{data.rsplit('/', 1)[-1]}, {options.model} shape, {jax.devices()[0].device_kind}")
    core.write(Path(options.output), facts, text + table(rows, data), figure)


if __name__ == "__main__":
    define_flags()
    app.run(main)
