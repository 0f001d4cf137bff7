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
from collections.abc import Sequence

from absl import flags

from experiments.benchmarks import shapes, sweep
from experiments.benchmarks.lengths import Lognormal, draw_trees
from experiments.benchmarks.training import Training, ideal_gains
from prefjax.analysis import style
from prefjax.data.encoding import EncodingPolicy
from prefjax.rows.trees import TokenTree
from prefjax.training.mesh import MeshConfig, make_mesh

RATIO, SIGMA = 6, 0.3
LAYOUTS = ("packed_pairs", "shared_packed")
COLUMNS = (
    "K: {responses} | sequences, s: {cells[0][seconds]:.3g} | trees, s: {cells[1][seconds]:.3g} | "
    "padding: {cells[0][padding]:.1%} / {cells[1][padding]:.1%} | "
    "memory, MB: {cells[0][memory_mb]:,.0f} / {cells[1][memory_mb]:,.0f} | " + sweep.GAINS
)


@dataclasses.dataclass
class Responses(sweep.Sweep):
    """One case, and one row, per number of responses: the first so many of every tree."""

    trees: Sequence[TokenTree]
    training: Training
    cases: Sequence[int]

    columns = COLUMNS

    def kept(self, count):
        keep = lambda tree: {"responses": tree.responses[:count], "targets": tree.targets[:count]}
        return [dataclasses.replace(tree, **keep(tree)) for tree in self.trees]

    def cells(self, case):
        return {name: self.training.cell(self.kept(case), name, "live", objective="dro_p") for name in LAYOUTS}

    def rows(self, case, cells):
        separate, shared = (cells[layout]["seconds"].median for layout in LAYOUTS)
        gains = ideal_gains(self.training.model, self.kept(case)).against(separate / shared)
        return [{"responses": case, "prompts": len(self.trees), "cells": list(cells.values()), **gains}]

    def plot(self, rows):
        """S_time over K, between its two ideals."""
        figure, (axis,) = sweep.panels(5.2, 3.4)
        counts = [row["responses"] for row in rows]
        for field, label, look in (
            ("s_tokens", "tokens", dict(color=sweep.GREY, linestyle=":", marker=".")),
            ("s_flops", "FLOPs", dict(color=sweep.GREY, linestyle="--", marker=".")),
            ("s_time", "time", dict(color=sweep.BLUE, marker="o")),
        ):
            axis.plot(counts, [row[field] for row in rows], label=label, **look)
        axis.set(xscale="log", xlabel="responses per prompt", ylabel="separate / shared", ylim=(1, None))
        axis.set_xticks(counts, map(str, counts))
        axis.minorticks_off()
        axis.legend(**style.LEGEND)
        style.title(axis, "Faster by sharing the prompt")
        return figure


def define_flags() -> None:
    shapes.define_flags()
    flags.DEFINE_list("responses", ["2", "4", "8"], "Numbers of responses.")
    flags.DEFINE_integer("prompts", 4, "Prompts of one step.", lower_bound=1)
    flags.DEFINE_integer("prompt_length", 240, "Median tokens of a prompt; a response has a sixth.", lower_bound=6)


def declare(options: flags.FlagValues) -> Responses:
    model, counts = shapes.chosen(options), sorted(map(int, options.responses))
    lengths = Lognormal(options.prompt_length * (1 + 2 / RATIO), RATIO, SIGMA, SIGMA)
    trees = draw_trees(lengths, options.prompts, EncodingPolicy(), vocab_size=model.vocab_size, responses=counts[-1])
    text = f"{len(trees)} prompts a step, {lengths}; objective dro_p, reference live.\n"
    training = Training(model, make_mesh(MeshConfig()))
    return Responses(trees, training, counts, **shapes.shown(options, text, lengths=lengths))


if __name__ == "__main__":
    sweep.main(define_flags, declare)
