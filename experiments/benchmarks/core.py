"""What the benchmarks share: model shapes, interleaved timing, and the files every one of them writes."""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
from absl import flags
from tqdm import tqdm

from experiments.samples import machine
from experiments.tables.core import load_paper
from prefjax.models import ModelConfig
from prefjax.models.decoder import REMAT

PUBLISHED = Path(__file__).with_name("paper.toml")
MODELS = {
    "tiny": ModelConfig(
        vocab_size=512, num_layers=2, width=64, num_heads=4, num_kv_heads=2, head_width=16, mlp_width=192
    ),
    "smollm2_135m": ModelConfig(
        vocab_size=49_152,
        num_layers=30,
        width=576,
        num_heads=9,
        num_kv_heads=3,
        head_width=64,
        mlp_width=1536,
        rope_theta=100_000.0,
    ),
    "llama3_8b": ModelConfig(
        vocab_size=128_256,
        num_layers=32,
        width=4096,
        num_heads=32,
        num_kv_heads=8,
        head_width=128,
        mlp_width=14_336,
        rope_theta=500_000.0,
        tie_embeddings=False,
    ),
}


def define_output() -> None:
    """Of every benchmark. Flags are defined when a command starts: one process may import several benchmarks."""
    flags.DEFINE_string("output", None, "Folder for result.json, table.md and plot.png.", required=True)


def define_repeats() -> None:
    flags.DEFINE_integer("repeats", 5, "Timed calls of everything that is compared; the median counts.")


def define_model_flags() -> None:
    """Of those that run a model; read by `chosen_model`."""
    flags.DEFINE_enum("model", "smollm2_135m", sorted(MODELS), "Whose shape; the weights are random.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of activations and matmuls.")
    flags.DEFINE_enum("remat", "none", list(REMAT), "What the backward pass computes again.")


def chosen_model() -> ModelConfig:
    options = flags.FLAGS
    return dataclasses.replace(MODELS[options.model], dtype=options.dtype, remat=options.remat)


def published() -> dict[str, Any]:
    """The numbers of others in paper.toml, each with its provenance."""
    return load_paper(PUBLISHED)


def interleave(calls: Mapping[str, Callable[[], Any]], repeats: int, *, settle: bool = False) -> dict[str, list[float]]:
    """Seconds of every call, `repeats` of each, in turns: a busy machine slows all of them alike.

    Args:
      calls: name -> a function that returns when its work is done; compiled and warmed up before.
      settle: call once untimed before every timed call. Gigabytes that one call returns to the system slow down a
        following call of milliseconds to twice its time, which no training step would see.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with tqdm(total=repeats * len(calls), desc="timing", unit="call") as bar:
        for _ in range(repeats):
            for name, call in calls.items():
                bar.set_postfix_str(name)
                if settle:
                    call()
                began = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - began)
                bar.update()
    return seconds


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def write(output: Path, facts: Mapping[str, Any], table: str, figure: matplotlib.figure.Figure) -> None:
    """result.json (facts, the machine and the versions), table.md and plot.png."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.json").write_text(json.dumps({"machine": machine(), **facts}, indent=1) + "\n")
    (output / "table.md").write_text(table)
    figure.savefig(output / "plot.png")
    print(table, flush=True)


def machine_line() -> str:
    """What the numbers were measured on, in one line."""
    return ", ".join(f"{name} {value}" for name, value in machine().items())


def timing_line(repeats: int, seconds: Iterable[Sequence[float]]) -> str:
    """How the medians came about, and how far they can be trusted."""
    widest = max((max(times) - min(times)) / statistics.median(times) for times in seconds)
    return f"Median of {repeats} calls in turns; (slowest - fastest) / median is at most {widest:.0%}."


def model_line(model: ModelConfig) -> str:
    """Shape and numerics of `chosen_model`."""
    return f"{flags.FLAGS.model} shape, {model.dtype}, remat {model.remat}."
