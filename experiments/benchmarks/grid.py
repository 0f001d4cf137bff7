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
import itertools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.benchmarks import shapes, sweep
from experiments.benchmarks.lengths import make_tree, published
from experiments.benchmarks.training import gradient_cell, ideal_gains
from prefjax.analysis import style
from prefjax.models import ModelConfig, init

LAYOUTS = {"separate": "pairs", "shared": "shared"}
COLUMNS = (
    "prompt: {prompt} | response: {response} | "
    "separate, s: {seconds[separate]:.3g} | shared, s: {seconds[shared]:.3g} | "
    "speed-up: {s_time:.2f}x | FLOPs: {s_flops:.2f} | efficiency: {efficiency:.3f} | "
    "flash-preference: {flash_preference:.2f}x"
)


@dataclasses.dataclass
class Grid(sweep.Sweep):
    """One case, and one row, per (prompt, response) length."""

    model: ModelConfig
    params: Any
    cases: Iterable[tuple[int, int]]

    columns = COLUMNS
    key = "cells"

    def tree(self, case):
        prompt, response = case
        return make_tree(np.random.default_rng(0), 0, prompt, (response, response), self.model.vocab_size)

    def cells(self, case):
        tree = self.tree(case)
        return {name: gradient_cell(self.model, self.params, tree, layout) for name, layout in LAYOUTS.items()}

    def rows(self, case, cells):
        seconds = {name: cell["seconds"] for name, cell in cells.items()}
        return [
            {
                "prompt": case[0],
                "response": case[1],
                "seconds": seconds,
                "s_time": seconds["separate"].median / seconds["shared"].median,
                "s_flops": ideal_gains(self.model, [self.tree(case)]).flops,
                "flash_preference": flash_preference(*case),
            }
        ]

    def lines(self, rows):
        return [row | {"efficiency": row["s_time"] / row["s_flops"]} for row in rows]

    def plot(self, rows):
        """Heat map of the speed-up; below it in every square the FLOP ideal and flash-preference's number."""
        prompts, responses = (sorted({cell[side] for cell in rows}) for side in ("prompt", "response"))
        speed = np.full((len(prompts), len(responses)), np.nan)
        figure, (axis,) = sweep.panels(2 + 1.5 * len(responses), 1.4 + 0.9 * len(prompts))
        for cell in rows:
            y, x = prompts.index(cell["prompt"]), responses.index(cell["response"])
            speed[y, x] = cell["s_time"]
            theirs = cell["flash_preference"]
            below = f"ideal {cell['s_flops']:.2f}" + ("" if theirs is None else f"\nflash-pref. {theirs:.2f}")
            axis.text(x, y + 0.05, f"{cell['s_time']:.2f}x", ha="center", va="bottom", fontsize=12, weight="bold")
            axis.text(x, y, below, ha="center", va="top", fontsize=8)
        image = axis.imshow(speed, cmap="YlGnBu", vmin=1, vmax=3, aspect="auto", origin="lower")
        figure.colorbar(image, label="speed-up by sharing the prompt").ax.set_ylim(1, 2)
        axis.set_xticks(range(len(responses)), map(str, responses))
        axis.set_yticks(range(len(prompts)), map(str, prompts))
        axis.set(xlabel="tokens of each response", ylabel="tokens of the prompt")
        axis.spines[:].set_visible(False)
        style.title(axis, "Faster by sharing the prompt")
        return figure


def flash_preference(prompt: int, response: int) -> float | None:
    """Its published speed-up at these lengths."""
    grid = published()["flash_preference"]["grid"]
    if prompt not in grid["prompts"] or response not in grid["responses"]:
        return None
    return grid["speedup"][grid["prompts"].index(prompt)][grid["responses"].index(response)]


def define_flags() -> None:
    shapes.define_flags()
    flags.DEFINE_list("prompts", ["256", "512", "1024", "2048"], "Prompt lengths in tokens.")
    flags.DEFINE_list("responses", ["128", "512"], "Lengths of each response in tokens.")


def declare(options: flags.FlagValues) -> Grid:
    model = shapes.chosen(options)
    sizes = itertools.product(map(int, options.prompts), map(int, options.responses))
    return Grid(model, init(model, jax.random.key(0)), sizes, **shapes.shown(options))


if __name__ == "__main__":
    sweep.main(define_flags, declare)
