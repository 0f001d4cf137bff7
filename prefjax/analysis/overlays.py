"""The curves of several runs on the same axes: one colour a run, a band where seeds were grouped."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import matplotlib.figure
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from prefjax.analysis.runs import Group
from prefjax.analysis.style import COLORS, FAINT, GRAY, INK, panels, restrain, title

_LEGEND_COLUMNS = 3


class _Panel(NamedTuple):
    metric: str
    title: str
    label: str
    level: float | None = None  # a line for orientation
    logarithmic: bool = False


_PANELS = (
    _Panel("loss", "Loss", "loss per prompt"),
    _Panel("reward_accuracy", "Reward accuracy", "share of pairs", 0.5),
    _Panel("margin", "Reward margin", "log-ratio margin, nats", 0.0),
    _Panel("chosen_logp_change", "Chosen responses", "log π − log ref, nats", 0.0),
    _Panel("rejected_logp_change", "Rejected responses", "log π − log ref, nats", 0.0),
    _Panel("kl_estimate", "KL(ref ‖ π), if ref wrote the data", "log ref − log π, nats", 0.0),
    _Panel("grad_norm", "Gradient norm", "before clipping", None, True),
    _Panel("learning_rate", "Learning rate", ""),
    _Panel("tokens_per_second", "Speed", "real tokens/s"),
)


def overlay_figure(groups: Sequence[Group]) -> matplotlib.figure.Figure:
    """A panel for each metric that some run logged, three in a row. Thin lines: train; with dots: held out.

    Raises:
      ValueError: no run has logged anything yet.
    """
    shown = [panel for panel in _PANELS if any(_logged(group, panel.metric) for group in groups)]
    if not shown:
        raise ValueError("nothing to draw: no run has logged a known metric yet")
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    size = (4.2 * columns, 2.9 * rows + 0.2 * -(-(len(groups) + 3) // _LEGEND_COLUMNS) + 0.2)
    figure, axes = panels(*size, rows, columns)
    figure.get_layout_engine().set(wspace=0.06, hspace=0.09)
    colors = list(_colors(len(groups)))
    for axis, panel in itertools.zip_longest(axes, shown):
        if panel is None:
            axis.axis("off")
            continue
        _draw(axis, panel, groups, colors)
    handles = [Line2D([], [], color=c, lw=2, label=g.label) for g, c in zip(groups, colors, strict=True)]
    if any(group.curve("loss", "eval")[0].size for group in groups):
        handles.append(Line2D([], [], color=GRAY, lw=0.9, alpha=0.7, label="thin: train"))
        handles.append(Line2D([], [], color=GRAY, lw=1.4, marker="o", ms=4, label="dots: held out"))
    if any(len(group.runs) > 1 for group in groups):
        handles.append(Line2D([], [], color=GRAY, lw=7, alpha=0.2, label="band: ± standard deviation over seeds"))
    legend = dict(frameon=False, fontsize=8.5, labelcolor=INK, ncols=_LEGEND_COLUMNS)
    figure.legend(handles=handles, loc="outside lower left", **legend)
    return figure


def _draw(axis: Axes, panel: _Panel, groups: Sequence[Group], colors: Sequence) -> None:
    if panel.level is not None:
        axis.axhline(panel.level, color=FAINT, lw=1, ls=(0, (4, 3)), zorder=0)
    for group, color in zip(groups, colors, strict=True):
        held_out = group.curve(panel.metric, "eval")
        train = dict(lw=0.9, alpha=0.55) if held_out[0].size else dict(lw=1.3, alpha=0.9)
        dots = dict(lw=1.4, marker="o", ms=3.5, mec="white", mew=0.5, zorder=3)
        for (steps, mean, deviation), style in ((group.curve(panel.metric, "train"), train), (held_out, dots)):
            axis.plot(steps, mean, color=color, **style)
            if deviation is not None:
                axis.fill_between(steps, mean - deviation, mean + deviation, color=color, alpha=0.15, lw=0)
    if panel.logarithmic and all(line.get_ydata().min(initial=1) > 0 for line in axis.lines):
        axis.set_yscale("log")
    axis.set(xlabel="step", ylabel=panel.label)
    title(axis, panel.title)
    restrain(axis)


def _logged(group: Group, metric: str) -> bool:
    return any(group.curve(metric, split)[0].size for split in ("train", "eval"))


def _colors(count: int) -> Iterator:
    if count <= len(COLORS):
        yield from COLORS[:count]
    else:
        yield from colormaps["turbo"](np.linspace(0.03, 0.97, count))
