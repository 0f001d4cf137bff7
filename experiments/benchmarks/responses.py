"""K responses below one prompt: a train step on packed trees against the same responses as packed plain sequences.

COMMAND   python -m experiments.benchmarks.responses --output=results/responses
TIME      about 3 minutes a repeat on two idle CPU cores
PROTOCOL  Prompts and responses of lognormal lengths, six prompt tokens to a response token (medians; sigma 0.3), random
          ids; the prompts are the same for every K, and K responses are the first K of each. Objective `dro_p`, which
          takes any number of responses, needs a reference (live) and costs nothing itself. One optimiser step holds all
          prompts in every cell. As in experiments.benchmarks.throughput: random weights of --model's shape, tight rows,
          both layouts proven equal before timing, compilation and one step excluded, timed in turns, medians.
COLUMNS   S_time: seconds of packed sequences over seconds of packed trees; S_tokens: sum of P + L over all responses
          over sum of P + all L of a prompt, K (r + 1) / (r + K) at constant lengths with ratio r; S_FLOPs: the same
          ratio of the step's FLOPs, in which the head does not shrink; efficiency: S_time / S_FLOPs; padding and
          memory (arguments + temporaries of the compiled step): sequences / trees.
"""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import matplotlib.figure
from absl import app, flags

from experiments.benchmarks import core
from experiments.benchmarks.lengths import Lognormal, draw_trees
from experiments.benchmarks.training import Training, check_equal, ideal_gains
from prefjax.data.encoding import EncodingPolicy
from prefjax.data.trees import TokenTree
from prefjax.training.mesh import MeshConfig, make_mesh

RATIO, SIGMA = 6, 0.3
LAYOUTS = ("packed_pairs", "shared_packed")


def measure(trees: list[TokenTree], training: Training, responses: int, repeats: int) -> dict[str, Any]:
    """One line of the table: the first K responses of every tree.

    Raises:
      AssertionError: the two layouts disagree.
    """
    trees = [first_responses(tree, responses) for tree in trees]
    cells = {layout: training.cell(trees, layout, "live", objective="dro_p") for layout in LAYOUTS}
    check_equal({layout: cell.run() for layout, cell in cells.items()}, training.model.dtype)
    seconds = core.interleave({layout: cell.run for layout, cell in cells.items()}, repeats)
    medians = {layout: statistics.median(values) for layout, values in seconds.items()}
    ideal = ideal_gains(training.model, trees)
    ratio = medians["packed_pairs"] / medians["shared_packed"]
    return {
        "responses": responses,
        "prompts": len(trees),
        "cells": [cell.facts() | {"seconds": seconds[layout]} for layout, cell in cells.items()],
        "s_time": ratio,
        "s_tokens": ideal.tokens,
        "s_flops": ideal.flops,
        "efficiency": ratio / ideal.flops,
    }


def first_responses(tree: TokenTree, count: int) -> TokenTree:
    return dataclasses.replace(tree, responses=tree.responses[:count], targets=tree.targets[:count])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line per K."""
    columns = ["K", "sequences, s", "trees, s", "padding", "memory, MB", "S_time", "S_tokens", "S_FLOPs", "efficiency"]
    lines = []
    for row in rows:
        both = lambda text, row=row: " / ".join(text.format(**cell) for cell in row["cells"])
        times = [f"{statistics.median(cell['seconds']):.3g}" for cell in row["cells"]]
        gains = [f"{row['s_time']:.2f}x", f"{row['s_tokens']:.2f}", f"{row['s_flops']:.2f}", f"{row['efficiency']:.3f}"]
        lines.append([str(row["responses"]), *times, both("{padding:.1%}"), both("{memory_mb:,.0f}"), *gains])
    return core.markdown(columns, lines)


def plot(rows: list[dict[str, Any]]) -> matplotlib.figure.Figure:
    """S_time over K, between its two ideals."""
    figure = matplotlib.figure.Figure(figsize=(5.2, 3.4), dpi=120, layout="constrained")
    axis = figure.subplots()
    counts = [row["responses"] for row in rows]
    for field, label, style in (
        ("s_tokens", "tokens", dict(color="#8A8F98", linestyle=":")),
        ("s_flops", "FLOPs", dict(color="#8A8F98", linestyle="--")),
        ("s_time", "time", dict(color="#0072B2", marker="o")),
    ):
        axis.plot(counts, [row[field] for row in rows], label=label, **style)
    axis.set(xscale="log", xlabel="responses per prompt", ylabel="separate / shared", ylim=(1, None))
    axis.set_xticks(counts, map(str, counts))
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


def define_flags() -> None:
    core.define_output()
    core.define_repeats()
    core.define_model_flags()
    flags.DEFINE_list("responses", ["2", "4", "8"], "Numbers of responses.")
    flags.DEFINE_integer("prompts", 4, "Prompts of one step.")
    flags.DEFINE_integer("prompt_length", 240, "Median tokens of a prompt; a response has a sixth.")


def main(_) -> None:
    options = flags.FLAGS
    model = core.chosen_model()
    counts = sorted(map(int, options.responses))
    prompt = options.prompt_length
    lengths = Lognormal(prompt * (1 + 2 / RATIO), RATIO, SIGMA, SIGMA)
    trees = draw_trees(lengths, options.prompts, EncodingPolicy(), vocab_size=model.vocab_size, responses=counts[-1])
    training = Training(model, make_mesh(MeshConfig()))
    rows = []
    for count in counts:
        rows.append(measure(trees, training, count, options.repeats))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    timing = core.timing_line(options.repeats, [cell["seconds"] for row in rows for cell in row["cells"]])
    text = (
        f"{len(trees)} prompts a step, {lengths}; objective dro_p, reference live.\n"
        f"{core.model_line(model)} {timing}\n{core.machine_line()}.\n\n"
    )
    facts = {"model": dataclasses.asdict(model), "lengths": dataclasses.asdict(lengths), "rows": rows}
    core.write(Path(options.output), facts, text + table(rows), plot(rows))


if __name__ == "__main__":
    define_flags()
    app.run(main)
