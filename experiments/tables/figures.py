"""The one look of all figures: learning curves with intervals over seeds, computed values dashed."""

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from experiments.tables.harness import Results, Setting, mean_interval
from prefjax.analysis import style

COLORS = (style.BLUE, style.GRAY, style.RED, style.GREEN, style.PINK)


def curve_grid(
    results: Results,
    blocks: Mapping[str, Sequence[Sequence[tuple[str, str]]]],
    *,
    curve: str,
    line: str,
    metrics: Sequence[str],
    ylim: tuple[float, float],
) -> matplotlib.figure.Figure:
    """Small multiples of learning curves: mean over seeds with its 95 % interval, one colour per metric.

    blocks   a heading -> rows of (panel title, `Row.row`)
    curve    the `Row.col` drawn against its steps
    line     the `Row.col` drawn as a dashed line
    """
    rows = sum(len(block) for block in blocks.values())
    columns = max(len(row) for block in blocks.values() for row in block)
    figure = matplotlib.figure.Figure(
        figsize=(2.3 * columns, 1.75 * rows + 0.4 * len(blocks) + 0.3), layout="constrained", facecolor="white"
    )
    figure.get_layout_engine().set(wspace=0.06)
    handles = [Line2D([], [], color=color, lw=2, label=metric) for color, metric in zip(COLORS, metrics, strict=False)]
    handles.append(Line2D([], [], color=style.INK, lw=0.8, ls=(0, (4, 3)), label=line))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9)
    parts = figure.subfigures(
        len(blocks), 1, height_ratios=[len(block) + 0.2 for block in blocks.values()], squeeze=False
    )
    for part, (heading, block) in zip(parts[:, 0], blocks.items(), strict=True):
        part.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold", color=style.INK)
        axes = part.subplots(len(block), columns, sharex=True, sharey=True, squeeze=False)
        for axis, (title, row) in zip(axes.flat, itertools.chain.from_iterable(block), strict=True):
            axis.set_title(title, fontsize=9, color=style.INK)
            _curves(axis, results, row, curve, line, metrics)
            axis.set_ylim(*ylim)
        for axis in axes[-1]:
            axis.set_xlabel("step", fontsize=8, color=style.INK, labelpad=1)
    return figure


def _curves(axis, results: Results, row: str, curve: str, line: str, metrics: Sequence[str]) -> None:
    for color, metric in zip(COLORS, metrics, strict=False):
        steps, values = results.curve(row, curve, metric)
        mean, half = mean_interval(values)
        axis.fill_between(steps, mean - half, mean + half, color=color, alpha=0.25, lw=0)
        axis.plot(steps, mean, color=color, lw=1.6)
        axis.axhline(results.mean(row, line, metric), color=style.INK, lw=0.8, ls=(0, (4, 3)), zorder=3)
    axis.margins(x=0)
    style.restrain(axis)
    axis.xaxis.set_major_locator(MaxNLocator(3))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step / 1000:g}k" if step else "0"))


def dots(results: Results, settings: Sequence[Setting], *, known: str, ours: str) -> matplotlib.figure.Figure:
    """One line per setting: the known number as a hollow marker, ours filled, with its 95 % interval over seeds.

    known, ours  two `Row.col`s; settings that show different metrics stand in panels beside each other
    """
    metrics = list(dict.fromkeys(setting.metric for setting in settings))
    most = max(sum(s.metric == metric for s in settings) for metric in metrics)
    figure, axes = style.panels(3.9 * len(metrics) + 0.4, 0.22 * most + 1.0, 1, len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        shown = [s for s in settings if s.metric == metric]
        for place, setting in enumerate(shown):
            values = results.final(setting.key, ours, metric)
            mean, half = mean_interval(values) if len(values) > 1 else (values[0], 0.0)
            axis.errorbar(mean, place, xerr=half, fmt="o", ms=4, color=COLORS[0], lw=1.4)
            axis.plot(results.mean(setting.key, known, metric), place, "o", ms=8, mfc="none", mec=COLORS[2], mew=1.2)
        axis.set_yticks(range(len(shown)), [s.key for s in shown])
        axis.set_ylim(len(shown) - 0.5, -0.5)  # downwards, with room for whole markers above and below
        axis.set_title(metric, fontsize=9, color=style.INK)
        axis.tick_params(labelsize=7)
        axis.grid(axis="x", lw=0.3)
    handles = [
        Line2D([], [], ls="", marker="o", ms=4, color=COLORS[0], label=ours),
        Line2D([], [], ls="", marker="o", ms=8, mfc="none", mec=COLORS[2], label=known),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure
