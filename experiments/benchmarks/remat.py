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
import statistics
from pathlib import Path
from typing import Any

import matplotlib.figure
from absl import app, flags

from experiments.benchmarks import core
from experiments.benchmarks.lengths import Lognormal, draw_trees
from experiments.benchmarks.training import Training, check_equal
from prefjax.data.encoding import EncodingPolicy
from prefjax.data.trees import TokenTree
from prefjax.models import ModelConfig
from prefjax.models.decoder import REMAT
from prefjax.training.mesh import MeshConfig, make_mesh


def measure(model: ModelConfig, trees: list[TokenTree], repeats: int) -> list[dict[str, Any]]:
    """One line per policy.

    Raises:
      AssertionError: two policies compute different numbers.
    """
    mesh = make_mesh(MeshConfig())
    cells = {}
    for policy in REMAT:
        print(f"compiling remat={policy}", flush=True)
        training = Training(dataclasses.replace(model, remat=policy), mesh)
        cells[policy] = training.cell(trees, "shared_packed", "live")
    check_equal({policy: cell.run() for policy, cell in cells.items()}, model.dtype)
    seconds = core.interleave({policy: cell.run for policy, cell in cells.items()}, repeats)
    plain = statistics.median(seconds["none"])
    return [
        {
            "remat": policy,
            "seconds": seconds[policy],
            "memory_mb": cell.memory_mb,
            "time": statistics.median(seconds[policy]) / plain,
            "memory": cell.memory_mb / cells["none"].memory_mb,
        }
        for policy, cell in cells.items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line per policy."""
    columns = ["remat", "seconds a step", "against none", "memory, MB", "against none"]
    lines = [
        [
            row["remat"],
            f"{statistics.median(row['seconds']):.3g}",
            f"{row['time']:.2f}x",
            f"{row['memory_mb']:,.0f}",
            f"{row['memory']:.0%}",
        ]
        for row in rows
    ]
    return core.markdown(columns, lines)


def plot(rows: list[dict[str, Any]]) -> matplotlib.figure.Figure:
    """Time against memory, one point per policy."""
    figure = matplotlib.figure.Figure(figsize=(4.6, 3.4), dpi=120, layout="constrained")
    axis = figure.subplots()
    for row in rows:
        point = row["memory_mb"], statistics.median(row["seconds"])
        axis.plot(*point, marker="o", color="#0072B2")
        axis.annotate(row["remat"], point, xytext=(6, 4), textcoords="offset points")
    axis.set(xlabel="memory of the step, MB", ylabel="seconds a step", xlim=(0, None), ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def define_flags() -> None:
    core.define_output()
    flags.DEFINE_enum("model", "smollm2_135m", sorted(core.MODELS), "Whose shape; the weights are random.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of activations and matmuls.")
    flags.DEFINE_integer("prompts", 4, "Prompts of one step.")
    flags.DEFINE_integer("repeats", 5, "Timed steps per policy.")


def main(_) -> None:
    options = flags.FLAGS
    model = dataclasses.replace(core.MODELS[options.model], dtype=options.dtype)
    trees = draw_trees(Lognormal(450, 1, 0.5, 0.5), options.prompts, EncodingPolicy(), vocab_size=model.vocab_size)
    rows = measure(model, trees, options.repeats)
    text = (
        f"{options.model} shape, {model.dtype}; median of {options.repeats} steps in turns.\n{core.machine_line()}.\n\n"
    )
    facts = {"model": dataclasses.asdict(model), "prompts": len(trees), "rows": rows}
    core.write(Path(options.output), facts, text + table(rows), plot(rows))


if __name__ == "__main__":
    define_flags()
    app.run(main)
