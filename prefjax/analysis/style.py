"""The one look of every plot: colours apart for every kind of colour vision, and a white ground in a dark page too."""

import pathlib
from typing import Any

import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

INK, GRAY, FAINT, EDGE = "#333333", "#8A8F98", "#D5D8DC", "#BBBBBB"
BLUE, RED, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, GOLD, PURPLE, BROWN = "#56B4E9", "#B8860B", "#6A3D9A", "#8C564B"
COLORS = (BLUE, RED, GREEN, PINK, SKY, GOLD, PURPLE, INK, BROWN, GRAY)
MARKERS = "osD^<PvXh8"  # the colour is not alone in telling kinds apart
LEGEND: dict[str, Any] = dict(frameon=False, fontsize=9, handlelength=1.4, labelcolor=INK)
LABEL: dict[str, Any] = dict(fontsize=8.5, color=INK)  # a number beside what it is of
_GROUND = "white"  # said, or a dark page's own settings would put dark words on it

# The same for plots that a notebook draws by itself: `plt.rcParams.update(px.analysis.style.NOTEBOOK)`.
NOTEBOOK: dict[str, Any] = {
    "figure.dpi": 110,
    "figure.facecolor": _GROUND,
    "figure.constrained_layout.use": True,
    "axes.facecolor": _GROUND,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "xtick.color": EDGE,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": EDGE,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
}


def panels(
    width: int | float, height: int | float, rows: int = 1, columns: int = 1, **shared: Any
) -> tuple[matplotlib.figure.Figure, list[Axes]]:
    """A figure and its panels, row by row; size in inches. `shared`: sharex and sharey, as matplotlib has them."""
    figure = matplotlib.figure.Figure(figsize=(width, height), dpi=140, layout="constrained", facecolor=_GROUND)
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for axis in axes:
        axis.set_facecolor(_GROUND)
        restrain(axis)
    return figure, axes


def title(axis: Axes, text: str) -> None:
    """What is seen in a panel, above it."""
    axis.set_title(text, loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=9)


def restrain(axis: Axes) -> None:
    """Light spines and small labels; few ticks where nothing names them, whole ones where an axis counts steps."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["bottom", "left"]].set_color(EDGE)
    axis.tick_params(labelsize=8.5, labelcolor=INK, color=EDGE)
    axis.xaxis.label.set(fontsize=9, color=INK)
    axis.yaxis.label.set(fontsize=9, color=INK)
    for side, few in ((axis.xaxis, 6), (axis.yaxis, 5)):
        # The locator stays matplotlib's own, which names of bars, or another scale, replace.
        if isinstance(locator := side.get_major_locator(), MaxNLocator):
            locator.set_params(nbins=few, integer=side.get_label_text().startswith("step"))


def describe(figure: matplotlib.figure.Figure) -> str:
    """A plot in words, for who does not see it: what each panel says, what is drawn over what, and the names in it."""
    said = [figure.get_suptitle()] if figure.get_suptitle() else []
    for axis in figure.axes:
        if not axis.axison:
            continue
        heading = axis.get_title(loc="left") or axis.get_title()
        over = " over ".join(filter(None, (axis.get_ylabel(), axis.get_xlabel())))
        if heading or over:
            said.append(": ".join(filter(None, (heading, over))))
    names = [text.get_text() for legend in _legends(figure) for text in legend.get_texts()]
    words = "; ".join(dict.fromkeys(said))
    words += f". Drawn: {', '.join(dict.fromkeys(names))}" if names else ""
    return " ".join(words.split()).replace("[", "(").replace("]", ")")


def save(figure: matplotlib.figure.Figure, path: str | pathlib.Path, words: str = "") -> str:
    """Writes a PNG that carries its description; returns the Markdown that shows it, with the words as alternative.

    Args:
      words: the plot in words; "": as `describe` makes them of its titles and labels.
    """
    path, words = pathlib.Path(path), words or describe(figure)
    figure.savefig(path, facecolor=_GROUND, metadata={"Description": words, "Software": None})
    return f"![{words}]({path.name})"


def _legends(figure: matplotlib.figure.Figure) -> list:
    own = [axis.get_legend() for axis in figure.axes]
    return [legend for legend in [*figure.legends, *own] if legend is not None]
