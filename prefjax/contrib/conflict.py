"""Where goals part: aspects of ratings that order responses differently, and abilities that fall in training."""

import itertools

import numpy as np
from jaxtyping import Float

from prefjax.analysis.report import number, table, with_interval
from prefjax.analysis.statistics import Share, share
from prefjax.analysis.style import INK
from prefjax.contrib.output import ToolOutput, canvas, dot_plot
from prefjax.contrib.table import Table
from prefjax.contrib.tools import tool


def discordant(
    first: list[Float[np.ndarray, "_"]], second: list[Float[np.ndarray, "_"]]
) -> tuple[Share | None, float | None]:
    """How often two ratings order two responses of one prompt differently, over the pairs that both order.

    Returns:
      discordant / (discordant + concordant) pairs, None where no pair is ordered by both; and Kendall's tau-b of all
      pairs, None where one of the ratings never orders a pair.

    A pair tied in either rating is not counted in the first and only in the denominator of tau-b.
    """
    concordant = against = ordered_first = ordered_second = 0
    for row, (a, b) in enumerate(zip(first, second, strict=True), 1):
        if len(a) != len(b):
            raise ValueError(f"row {row}: {len(a)} and {len(b)} ratings of the same responses")
        left, right = np.triu_indices(len(a), 1)
        signs = np.sign(a[left] - a[right]), np.sign(b[left] - b[right])
        product = signs[0] * signs[1]
        concordant += int((product > 0).sum())
        against += int((product < 0).sum())
        ordered_first += int((signs[0] != 0).sum())
        ordered_second += int((signs[1] != 0).sum())
    both = concordant + against
    scale = (ordered_first * ordered_second) ** 0.5
    return share(against / both, both) if both else None, (concordant - against) / scale if scale else None


def fall_moment(before: Float[np.ndarray, "D"], after: Float[np.ndarray, "D"]) -> float:
    """mean over D dimensions of min(0, after - before)^2: the second moment of what training cost."""
    if not len(before):
        raise ValueError("a moment needs at least one dimension")
    return float(np.mean(np.minimum(after - before, 0) ** 2))


@tool()
def aspect_conflict(rows: Table, *, aspects: tuple[str, ...]) -> ToolOutput:
    """How often two aspects of multi-aspect ratings prefer different responses to the same prompt.

    Source: Kendall's coefficients; ratings by aspects as in arXiv 2310.01377 (UltraFeedback).
    Takes: response columns named by `aspects`, the ratings of each prompt's responses, higher is better.
    Makes: for every two aspects the share of response pairs, ordered by both, that they order differently, with Wilson
    intervals, and Kendall's tau-b within prompts.
    """
    if len(set(aspects)) < 2 or len(set(aspects)) < len(aspects):
        raise ValueError(f"aspects={aspects}: name at least two different columns")
    ratings = {name: rows.lists(name) for name in aspects}
    cells, values, matrix = [], [], np.zeros((len(aspects), len(aspects)))
    for (i, a), (j, b) in itertools.combinations(enumerate(aspects), 2):
        apart, tau = discordant(ratings[a], ratings[b])
        matrix[i, j] = matrix[j, i] = np.nan if apart is None else apart.value
        shown = "no pair ordered by both" if apart is None else with_interval(apart)
        cells.append(
            (f"`{a}`", f"`{b}`", shown, 0 if apart is None else apart.count, "" if tau is None else number(tau))
        )
        values.append({"aspects": [a, b], "conflict": apart, "tau_b": tau})
    parts = [table(("aspect", "aspect", "ordered differently", "pairs ordered by both", "τ-b"), cells)]
    known = [value for value in values if value["conflict"] is not None]
    if not known:
        raise ValueError(f"no two responses of a prompt are ordered by two of the aspects {', '.join(aspects)}")
    most = max(known, key=lambda value: value["conflict"].value)
    headline = (
        f"{most['aspects'][0]} and {most['aspects'][1]} conflict most: {most['conflict'].value:.1%} of their pairs"
    )
    figure, axis = canvas("Share of response pairs ordered differently", 1.2 * len(aspects) + 2, len(aspects) + 1.2)
    axis.imshow(matrix, cmap="Reds", vmin=0, vmax=max(0.5, float(np.nanmax(matrix))))
    for i, j in itertools.permutations(range(len(aspects)), 2):
        axis.text(j, i, "" if np.isnan(matrix[i, j]) else f"{matrix[i, j]:.0%}", ha="center", va="center", color=INK)
    axis.set_xticks(range(len(aspects)), aspects, rotation=20, ha="right")
    axis.set_yticks(range(len(aspects)), aspects)
    return ToolOutput(headline, parts, {"rows": len(rows), "pairs": values}, figure)


@tool()
def performance_falls(
    rows: Table,
    *,
    before: str = "before",
    after: str = "after",
    dimension: str = "dimension",
    trained: str | None = None,
) -> ToolOutput:
    """What training on one goal costs the others: the second moment of the falls over evaluation dimensions.

    Source: after arXiv 2405.11647 (Hummer), whose Alignment Dimension Conflict is in words "the second-order moment of
    negative performance deviation on all evaluation dimensions"; its equation could not be read, so this is not called
    by that name.
    Takes: a row for each evaluation dimension with its name in `dimension` and the performance `before` and `after`;
    the column `trained` names what was trained on, for several trainings in one file.
    Makes: mean over dimensions of min(0, after - before)^2 for each training, and the largest fall.
    """
    cells, values = [], {}
    groups = rows.groups(trained)
    for name, own in groups.items():
        change = own.numbers(after) - own.numbers(before)
        labels = own.labels(dimension)
        if len(set(labels)) < len(labels):
            raise ValueError(f"column {dimension!r} names a dimension twice for {name}")
        worst = int(np.argmin(change))
        moment = fall_moment(own.numbers(before), own.numbers(after))
        fallen = f"{labels[worst]} {number(float(change[worst]), 3)}" if change[worst] < 0 else "none"
        cells.append((name, number(moment, 5), f"{int((change < 0).sum())} of {len(change)}", fallen))
        values[name] = {"moment": moment, "change": dict(zip(labels, change.tolist(), strict=True))}
    parts = [table(("trained on", "second moment of the falls", "dimensions that fall", "largest fall"), cells)]
    worst = max(values, key=lambda name: values[name]["moment"])
    headline = f"Second moment of the falls {values[worst]['moment']:.2g}" + (
        "" if trained is None else f" at most, {worst}"
    )
    labelled = [
        (dim if trained is None else f"{name}: {dim}", change)
        for name, found in values.items()
        for dim, change in found["change"].items()
    ]
    figure = dot_plot("Change in training", "after − before", *map(list, zip(*labelled, strict=True)), at=0.0)
    return ToolOutput(headline, parts, {"trainings": values}, figure)
