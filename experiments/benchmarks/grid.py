"""One pair, forward and backward, with the prompt shared and without, over a grid of prompt and response lengths.

COMMAND   python -m experiments.benchmarks.grid --output=results/grid
TIME      about 4 minutes a repeat on two CPU cores
PROTOCOL  Random weights of --model's shape and random ids; both responses are equally long, so the two separate
          sequences need no padding either. Gradient of the DPO loss with respect to all parameters (policy only,
          no reference, no optimiser). Loss and gradient norm of both forms must agree before anything is timed.
          Compilation and one warm-up call are excluded; the two forms are timed in turns; medians.
COLUMNS   speed-up: seconds of two sequences over seconds of one tree; FLOPs: the ratio of what the mathematics needs,
          the head over response tokens only; efficiency: speed-up over FLOPs; flash-preference: the speed-up that
          github.com/li-plus/flash-preference publishes at the same lengths (Qwen2.5-7B, one A800, FlashAttention-2).
"""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import jax
import matplotlib.figure
import numpy as np
import optax
from absl import app, flags

from experiments.benchmarks import core
from experiments.benchmarks.lengths import make_tree
from experiments.benchmarks.training import check_equal, ideal_gains, place
from prefjax.data.layout import attach_reference, build_rows
from prefjax.data.rows import Branches
from prefjax.losses import OBJECTIVES
from prefjax.models import ModelConfig, init
from prefjax.training.metrics import finish
from prefjax.training.scoring import Setup
from prefjax.training.step import loss_and_gradients

_LAYOUTS = {"separate": "pairs", "shared": "shared"}


def measure(model: ModelConfig, params: Any, prompt: int, response: int, repeats: int) -> dict[str, Any]:
    """One cell of the grid.

    Raises:
      AssertionError: the two forms disagree.
    """
    tree = make_tree(np.random.default_rng(0), 0, prompt, (response, response), model.vocab_size)
    setup = Setup(model=model, objective=OBJECTIVES["dpo"], branches=Branches(2), reference="precomputed")

    def gradients(params, rows):
        gradients, metrics = loss_and_gradients(setup, {"policy": params}, None, rows)
        return gradients, metrics | {"grad_norm": (optax.global_norm(gradients), 1.0)}

    calls, results = {}, {}
    for name, layout in _LAYOUTS.items():
        placement = place([tree], layout, setup.branches)
        rows = build_rows([[tree]], placement.shape)
        rows = jax.device_put(attach_reference(rows, np.zeros((1, 2), np.float32)))
        compiled = jax.jit(gradients).lower(params, rows).compile()
        calls[name] = lambda compiled=compiled, rows=rows: jax.block_until_ready(compiled(params, rows))
        results[name] = finish(calls[name]()[1])
    check_equal(results, model.dtype)
    seconds = core.interleave(calls, repeats)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "prompt": prompt,
        "response": response,
        "seconds": seconds,
        "s_time": medians["separate"] / medians["shared"],
        "s_flops": ideal_gains(model, [tree]).flops,
        "flash_preference": flash_preference(prompt, response),
    }


def flash_preference(prompt: int, response: int) -> float | None:
    """Its published speed-up at these lengths."""
    grid = core.published()["flash_preference"]["grid"]
    if prompt not in grid["prompts"] or response not in grid["responses"]:
        return None
    return grid["speedup"][grid["prompts"].index(prompt)][grid["responses"].index(response)]


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown, one line per cell."""
    columns = ["prompt", "response", "separate, s", "shared, s", "speed-up", "FLOPs", "efficiency", "flash-preference"]
    lines = []
    for cell in cells:
        times = [f"{statistics.median(cell['seconds'][name]):.3g}" for name in _LAYOUTS]
        theirs = cell["flash_preference"]
        gains = [f"{cell['s_time']:.2f}x", f"{cell['s_flops']:.2f}", f"{cell['s_time'] / cell['s_flops']:.3f}"]
        published = "" if theirs is None else f"{theirs:.2f}x"
        lines.append([str(cell["prompt"]), str(cell["response"]), *times, *gains, published])
    return core.markdown(columns, lines)


def plot(cells: list[dict[str, Any]]) -> matplotlib.figure.Figure:
    """Heat map of the speed-up; below it in every square the FLOP ideal and flash-preference's number."""
    prompts, responses = (sorted({cell[side] for cell in cells}) for side in ("prompt", "response"))
    speed = np.full((len(prompts), len(responses)), np.nan)
    figure = matplotlib.figure.Figure(
        figsize=(2 + 1.5 * len(responses), 1.4 + 0.9 * len(prompts)), dpi=120, layout="constrained"
    )
    axis = figure.subplots()
    for cell in cells:
        row, column = prompts.index(cell["prompt"]), responses.index(cell["response"])
        speed[row, column] = cell["s_time"]
        theirs = cell["flash_preference"]
        below = f"ideal {cell['s_flops']:.2f}" + ("" if theirs is None else f"\nflash-pref. {theirs:.2f}")
        axis.text(column, row + 0.05, f"{cell['s_time']:.2f}x", ha="center", va="bottom", fontsize=12, weight="bold")
        axis.text(column, row, below, ha="center", va="top", fontsize=8)
    image = axis.imshow(speed, cmap="YlGnBu", vmin=1, vmax=3, aspect="auto", origin="lower")
    figure.colorbar(image, label="speed-up by sharing the prompt").ax.set_ylim(1, 2)
    axis.set_xticks(range(len(responses)), map(str, responses))
    axis.set_yticks(range(len(prompts)), map(str, prompts))
    axis.set(xlabel="tokens of each response", ylabel="tokens of the prompt")
    return figure


def define_flags() -> None:
    core.define_output()
    core.define_repeats()
    core.define_model_flags()
    flags.DEFINE_list("prompts", ["256", "512", "1024", "2048"], "Prompt lengths in tokens.")
    flags.DEFINE_list("responses", ["128", "512"], "Lengths of each response in tokens.")


def main(_) -> None:
    options = flags.FLAGS
    model = core.chosen_model()
    params = init(model, jax.random.key(0))
    cells = []
    for prompt in map(int, options.prompts):
        for response in map(int, options.responses):
            cells.append(measure(model, params, prompt, response, options.repeats))
            print(table(cells[-1:]).splitlines()[-1], flush=True)
    timing = core.timing_line(options.repeats, [times for cell in cells for times in cell["seconds"].values()])
    text = f"{core.model_line(model)} {timing}\n{core.machine_line()}.\n\n"
    facts = {"model": dataclasses.asdict(model), "cells": cells}
    core.write(Path(options.output), facts, text + table(cells), plot(cells))


if __name__ == "__main__":
    define_flags()
    app.run(main)
