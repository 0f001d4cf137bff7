"""What an analysis found: a headline, tables, numbers and a plot, and the three files it is written to."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
from matplotlib.axes import Axes

from prefjax.analysis import style
from prefjax.analysis.report import write_json
from prefjax.analysis.style import BLUE, GRAY, INK


@dataclasses.dataclass(frozen=True)
class ToolOutput:
    """What a tool found.

    headline  one sentence with the number that matters
    parts     Markdown
    values    the same for machines: plain types, arrays and dataclasses
    figure    the plot, or None where there is nothing to look at
    """

    headline: str
    parts: Sequence[str]
    values: Mapping[str, Any]
    figure: matplotlib.figure.Figure | None


def write_output(directory: str | pathlib.Path, name: str, output: ToolOutput, command: str) -> pathlib.Path:
    """Writes NAME.md, NAME.json and NAME.png into a folder (made if absent); returns the path of the first."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    facts = {"tool": name, "command": command, "headline": output.headline, **output.values}
    write_json(directory / f"{name}.json", facts)
    parts = [f"# {output.headline}", f"Repeat with\n\n```\n{command}\n```", *output.parts]
    if output.figure is not None:
        words = f"{output.headline}. {style.describe(output.figure)}"
        parts.append(style.save(output.figure, directory / f"{name}.png", words))
    path = directory / f"{name}.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def canvas(title: str, width: float = 6.4, height: float = 4.2) -> tuple[matplotlib.figure.Figure, Axes]:
    """A figure with one panel in this project's style; size in inches."""
    figure, (axis,) = style.panels(width, height)
    style.title(axis, title)
    return figure, axis


def dot_plot(
    title: str,
    label: str,
    names: Sequence[str],
    values: Sequence[float],
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    at: float | None = None,
) -> matplotlib.figure.Figure:
    """One line for each name, first on top: a dot with its interval; `at` draws the value to compare with."""
    figure, axis = canvas(title, height=1.1 + 0.26 * len(names))
    places = range(len(names))
    if at is not None:
        axis.axvline(at, color=GRAY, lw=1, ls=(0, (4, 3)), zorder=0)
    if low is not None and high is not None:
        axis.hlines(places, low, high, color=BLUE, lw=1.6, alpha=0.5)
    axis.plot(values, places, "o", color=BLUE, ms=5, mec="white", mew=0.6)
    axis.set_yticks(places, names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel(label, fontsize=9, color=INK)
    return figure
