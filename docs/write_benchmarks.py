"""Draws the plots of docs/benchmarks/ anew, each from the result.json beside it: python -m docs.write_benchmarks"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.figure

from experiments.benchmarks import (
    attention,
    correlation,
    factors,
    grid,
    live_tiles,
    merging,
    pipeline,
    responses,
    throughput,
    trl,
)
from prefjax.analysis import style

FOLDER = Path(__file__).parent / "benchmarks"


def _speeds(found: Mapping[str, Any]) -> matplotlib.figure.Figure:
    return throughput.Throughput.plot(SimpleNamespace(data=found["data"]), found["rows"])


# What a command of experiments.benchmarks draws of its result.json.
PLOTS = {
    "attention": lambda found: attention.Attention.plot(None, found["rows"]),
    "correlation": lambda found: correlation.plot(found["rows"]),
    "factors": lambda found: factors.plot(found["rows"]),
    "grid": lambda found: grid.Grid.plot(None, found["cells"]),
    "hh": _speeds,
    "live_tiles": lambda found: live_tiles.LiveTiles.plot(None, found["rows"]),
    "long_prompt": _speeds,
    "long_prompt_split": _speeds,
    "merging": lambda found: merging.Merging.plot(None, found["rows"]),
    "merging_12": lambda found: merging.Merging.plot(None, found["rows"]),
    "pipeline": lambda found: pipeline.plot(found["rows"]),
    "responses": lambda found: responses.Responses.plot(None, found["rows"]),
    "responses_k4": lambda found: responses.Responses.plot(None, found["rows"]),
    "trl": lambda found: trl.plot(found["rows"]),
    "ultrafeedback": _speeds,
}


def draw(name: str) -> matplotlib.figure.Figure:
    """The plot of docs/benchmarks/NAME."""
    return PLOTS[name](json.loads((FOLDER / name / "result.json").read_text()))


if __name__ == "__main__":
    for name in PLOTS:
        style.save(draw(name), FOLDER / name / "plot.png")
