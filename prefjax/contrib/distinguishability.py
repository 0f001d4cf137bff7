"""How far apart a model represents chosen and rejected responses: what DPO learns first (arXiv 2403.18742)."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from prefjax.analysis.report import number, table
from prefjax.analysis.style import BLUE, GRAY, RED
from prefjax.contrib.output import ToolOutput, canvas, dot_plot
from prefjax.contrib.table import Table
from prefjax.contrib.tools import tool


class Separation(NamedTuple):
    """distance    |mean of chosen - mean of rejected|: the distinguishability
    concentration  largest eigenvalue of either side's covariance (divisor N - 1), the larger of both
    trace          trace of either side's covariance, the larger of both"""

    distance: float
    concentration: float
    trace: float


def mean_difference(embeddings: Float[np.ndarray, "N 2 D"]) -> Float[np.ndarray, "D"]:
    """Mean of the chosen responses' embeddings less that of the rejected ones."""
    return embeddings[:, 0].mean(0) - embeddings[:, 1].mean(0)


def distinguishability(embeddings: Float[np.ndarray, "N 2 D"]) -> Separation:
    """Distinguishability, concentration and covariance trace, as in the paper's code.

    Args:
      embeddings: the last hidden state, after the final norm, of chosen and rejected responses; N > 1.
    """
    if len(embeddings) < 2:
        raise ValueError("a covariance needs at least two pairs")
    largest, trace = [], []
    for side in (0, 1):
        own = embeddings[:, side]
        eigenvalues = np.linalg.svd(own - own.mean(0), compute_uv=False) ** 2 / (len(own) - 1)
        largest.append(float(eigenvalues[0]))
        trace.append(float(eigenvalues.sum()))
    return Separation(float(np.linalg.norm(mean_difference(embeddings))), max(largest), max(trace))


def priority(first: Float[np.ndarray, "D"], second: Float[np.ndarray, "D"]) -> float:
    """How much a behaviour takes precedence over another that is learned at the same time, in [-1, 1].

    With b = (d_1 + d_2) / 2 of the two `mean_difference`s: b.(d_1 - d_2) / (|b| max(|d_1|, |d_2|)), as in the paper's
    code. 0 where b is 0.
    """
    middle = 0.5 * (first + second)
    scale = np.linalg.norm(middle) * max(np.linalg.norm(first), np.linalg.norm(second))
    return float(middle @ (first - second) / scale) if scale else 0.0


@tool()
def preference_distinguishability(
    rows: Table, *, embedding: str = "embedding", behaviour: str | None = None
) -> ToolOutput:
    """How far apart chosen and rejected responses lie, and which of several behaviours DPO learns first.

    Source: arXiv 2403.18742 and its code (distinguishability, concentration, covariance trace, priority levels).
    Takes: the response column `embedding` with two vectors, of chosen and rejected: the last hidden state of the
    model, after its final norm. The column `behaviour` names what each pair is about.
    Makes: for each behaviour the distance of the means, the largest eigenvalue and the trace of the covariances; for
    every two behaviours the priority of the first over the second.
    """
    groups = {name: own.vector_pairs(embedding) for name, own in rows.groups(behaviour).items()}
    try:
        separations = {name: distinguishability(own) for name, own in groups.items()}
    except ValueError as error:
        raise ValueError(f"column {embedding!r}: {error} of each behaviour") from None
    ordered = sorted(separations, key=lambda name: -separations[name].distance)
    cells = [(name, len(groups[name]), *(number(value, 3) for value in separations[name])) for name in ordered]
    parts = [table(("behaviour", "pairs", "distinguishability", "concentration", "covariance trace"), cells)]
    values = {"behaviours": {name: {"pairs": len(groups[name]), **separations[name]._asdict()} for name in ordered}}
    if len(groups) == 1:
        headline = f"Chosen and rejected lie {separations[ordered[0]].distance:.3g} apart"
        return ToolOutput(headline, parts, values, _sides(groups[ordered[0]]))
    means = {name: mean_difference(groups[name]) for name in ordered}
    first = [(a, b, priority(means[a], means[b])) for a, b in itertools.combinations(ordered, 2)]
    parts.append(
        "## Priorities\n\n" + table(("first", "over", "priority"), [(a, b, number(p, 3)) for a, b, p in first])
    )
    values["priorities"] = [{"first": a, "second": b, "priority": p} for a, b, p in first]
    distances = [separations[name].distance for name in ordered]
    headline = f"{ordered[0]} is the most distinguishable of {len(ordered)} behaviours ({distances[0]:.3g})"
    return ToolOutput(
        headline, parts, values, dot_plot("Distinguishability", "distance of the means", ordered, distances)
    )


def _sides(embeddings: np.ndarray):
    """Both sides along the difference of their means."""
    direction = mean_difference(embeddings)
    direction = direction / (np.linalg.norm(direction) or 1.0)
    places = (embeddings - embeddings.mean((0, 1))[None, None]) @ direction
    figure, axis = canvas("Along the difference of the means")
    edges = np.histogram_bin_edges(places, bins=30)
    for side, color, label in ((1, RED, "rejected"), (0, BLUE, "chosen")):
        axis.hist(places[:, side], edges, color=color, alpha=0.45, label=label)
        axis.axvline(places[:, side].mean(), color=color, lw=1.4, ls=(0, (4, 2)))
    axis.axvline(0, color=GRAY, lw=0.8, zorder=0)
    axis.set_xlabel("projection of the embedding (dashed: mean)")
    axis.set_ylabel("responses")
    axis.legend(frameon=False, fontsize=8)
    return figure
