"""What each rematerialisation policy costs in time and saves in memory, on one packed train step.

COMMAND   python -m experiments.benchmarks.remat --output=results/remat
TIME      about 10 minutes on two CPU cores
PROTOCOL  Prompts and two responses of lognormal lengths (medians 150 and 150, sigma 0.5), random ids, packed into rows
          of one micro-batch; DPO with a live reference, AdamW, random weights of --model's shape. All policies compute
          the same loss and gradient norm (checked); compilation and one step excluded, steps in turns, medians.
COLUMNS   none: every activation is kept; dots: results of matrix products with weights are kept, the rest is computed
          again; full: only the input of each layer is kept. Memory: arguments (parameters, optimiser, reference) and
          temporaries that the compiler reserves for the step; time and its ratio are against none.
"""

import dataclasses
from collections.abc import Sequence

from absl import flags

from experiments.benchmarks import shapes, sweep
from experiments.benchmarks.lengths import Lognormal, draw_trees
from experiments.benchmarks.training import Training
from prefjax.data.encoding import EncodingPolicy
from prefjax.models import ModelConfig
from prefjax.models.decoder import REMAT
from prefjax.rows.trees import TokenTree
from prefjax.training.mesh import MeshConfig, make_mesh

COLUMNS = (
    "remat: {remat} | seconds a step: {seconds:.3g} | against none: {time:.2f}x | "
    "memory, MB: {memory_mb:,.0f} | against none: {memory:.0%}"
)


@dataclasses.dataclass
class Policies(sweep.Sweep):
    """One row per policy."""

    model: ModelConfig
    trees: Sequence[TokenTree]

    columns = COLUMNS

    def cells(self, case):
        trained = {
            remat: Training(dataclasses.replace(self.model, remat=remat), make_mesh(MeshConfig())) for remat in REMAT
        }
        return {remat: training.cell(self.trees, "shared_packed", "live") for remat, training in trained.items()}

    def rows(self, case, cells):
        plain = cells["none"]
        return [
            {
                "remat": remat,
                "seconds": cell["seconds"],
                "memory_mb": cell["memory_mb"],
                "time": cell["seconds"].median / plain["seconds"].median,
                "memory": cell["memory_mb"] / plain["memory_mb"],
            }
            for remat, cell in cells.items()
        ]

    def plot(self, rows):
        """Time against memory, one point per policy."""
        figure, (axis,) = sweep.panels(4.6, 3.4)
        for row in rows:
            point = row["memory_mb"], row["seconds"].median
            axis.plot(*point, marker="o", color=sweep.BLUE)
            axis.annotate(row["remat"], point, xytext=(6, 4), textcoords="offset points")
        axis.set(xlabel="memory of the step, MB", ylabel="seconds a step", xlim=(0, None), ylim=(0, None))
        return figure


def define_flags() -> None:
    shapes.define_flags(remat=False)
    flags.DEFINE_integer("prompts", 4, "Prompts of one step.", lower_bound=1)


def declare(options: flags.FlagValues) -> Policies:
    model = shapes.chosen(options)
    trees = draw_trees(Lognormal(450, 1, 0.5, 0.5), options.prompts, EncodingPolicy(), vocab_size=model.vocab_size)
    return Policies(model, trees, **shapes.shown(options, prompts=len(trees)))


if __name__ == "__main__":
    sweep.main(define_flags, declare)
