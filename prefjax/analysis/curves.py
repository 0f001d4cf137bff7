"""Training curves, read back from the metrics.jsonl that training wrote."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Rows = Sequence[Mapping[str, Any]]


def read_metrics(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """All lines of a metrics file: {"step": int, "split": "train" | "eval", name: value, ...}, in file order.

    A last line without its line break is one that a killed run did not finish; it is left out.

    Raises:
      ValueError: names the file and the line that is no such object.
    """
    path = pathlib.Path(path)
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not a JSON object ({error})") from error
        if not isinstance(row, dict) or not {"step", "split"} <= row.keys():
            raise ValueError(f"{path}:{number}: a metrics line needs the fields step and split, got {line.strip()!r}")
        rows.append(row)
    return rows


def curve(rows: Rows, name: str, split: str) -> tuple[Int[np.ndarray, "L"], Float[np.ndarray, "L"]]:
    """Steps and values of one metric; lines without it are left out, so both are empty where it was never logged."""
    points = [(row["step"], row[name]) for row in rows if row["split"] == split and name in row]
    return np.array([step for step, _ in points], np.int64), np.array([value for _, value in points], np.float64)


def last(rows: Rows, name: str, split: str) -> float | None:
    """The newest value of one metric, or None where it was never logged."""
    values = curve(rows, name, split)[1]
    return float(values[-1]) if len(values) else None
