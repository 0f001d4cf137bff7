"""Ranking by pairwise judgements with few of them: merge sort that keeps several merges where it is unsure (PairS)."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from prefjax.analysis.report import number, table, with_interval
from prefjax.analysis.statistics import Share, share
from prefjax.analysis.style import INK
from prefjax.contrib.output import ToolOutput, canvas
from prefjax.contrib.table import Table
from prefjax.contrib.tools import tool

Prefer = Callable[[int, int], float]  # P(the first is better than the second), in [0, 1]


class _Merge(NamedTuple):
    """A partly merged list: its order, how many it took of the left, and log-probabilities of its judgements."""

    order: tuple[int, ...]
    taken: int
    total: float
    judged: int

    @property
    def score(self) -> float:
        return self.total / self.judged if self.judged else 0.0


def pairwise_rank(count: int, prefer: Prefer, *, beam: int = 1, gap: float = 0.1) -> list[int]:
    """Items 0 .. count - 1, best first: merge sort whose merges are beam searches (arXiv 2403.16950, PairS).

    Every partial merge is scored by the mean log-probability of its judgements; `beam` of them are kept. Where the
    judge is surer than 1/2 + gap only its choice is followed. beam=1 is the greedy variant, plain merge sort.

    Args:
      prefer: asked at most once for each two items, n log2 n times at most by the greedy variant.

    Raises:
      ValueError: a beam below 1, a gap outside [0, 1/2], or a judgement outside [0, 1].
    """
    if beam < 1 or not 0 <= gap <= 0.5:
        raise ValueError(f"beam={beam} must be at least 1 and gap={gap} in [0, 1/2]")

    def rank(items: list[int]) -> list[int]:
        if len(items) < 2:
            return items
        middle = len(items) // 2
        return _merge(rank(items[:middle]), rank(items[middle:]), prefer, beam, gap)

    return rank(list(range(count)))


def _merge(left: list[int], right: list[int], prefer: Prefer, beam: int, gap: float) -> list[int]:
    asked: dict[tuple[int, int], float] = {}

    def judged(i: int, j: int) -> float:
        if (i, j) not in asked:
            probability = prefer(left[i], right[j])
            if not 0 <= probability <= 1:
                raise ValueError(f"P({left[i]} better than {right[j]}) must lie in [0, 1], got {probability}")
            asked[i, j] = probability
        return asked[i, j]

    kept = [_Merge((), 0, 0.0, 0)]
    for place in range(len(left) + len(right)):
        following = []
        for merge in kept:
            i, j = merge.taken, place - merge.taken
            if i == len(left) or j == len(right):
                takes_left = i < len(left)
                item = left[i] if takes_left else right[j]
                following.append(merge._replace(order=(*merge.order, item), taken=i + takes_left))
                continue
            for takes_left, chance in ((True, judged(i, j)), (False, 1 - judged(i, j))):
                if chance < 0.5 - gap:  # the judge is sure of the other one
                    continue
                item = left[i] if takes_left else right[j]
                total = merge.total + math.log(max(chance, 1e-9))
                following.append(_Merge((*merge.order, item), i + takes_left, total, merge.judged + 1))
        # Stable, so that of equal chances the left one, which stood first, is taken.
        kept = sorted(following, key=lambda merge: -merge.score)[:beam]
    return list(kept[0].order)


def transitive_share(probability: Float[np.ndarray, "K K"]) -> Share | None:
    """The share of triples whose three judgements make no cycle; None where no triple is judged in full.

    Args:
      probability: [i, j] = P(i better than j); NaN where nobody judged. A judgement of exactly 1/2 makes no cycle.
    """
    wins = probability > 0.5
    cycles = judged = 0
    for i, j, k in itertools.combinations(range(len(probability)), 3):
        if np.isnan([probability[i, j], probability[j, k], probability[k, i]]).any():
            continue
        judged += 1
        cycles += (wins[i, j] and wins[j, k] and wins[k, i]) or (wins[j, i] and wins[k, j] and wins[i, k])
    return share(1 - cycles / judged, judged) if judged else None


@tool()
def pairwise_ranking(
    rows: Table,
    *,
    first: str = "first",
    second: str = "second",
    probability: str = "probability",
    group: str | None = None,
    beam: int = 1,
    gap: float = 0.1,
) -> ToolOutput:
    """Ranks responses, or models, by a table of pairwise judgements, and counts how few of them it takes.

    Source: arXiv 2403.16950 and its code (PairS-greedy and PairS-beam, whose beam is 2000 and gap 0.1).
    Takes: a row for each judgement: names in `first` and `second`, and `probability` that the first is better; the
    column `group` for several sets, as the responses to one prompt each. Several judgements of the same two, in either
    order, are averaged; with both orders that takes a bias for the first place out.
    Makes: the ranking of each set, best first, the judgements that were looked at, and the share of transitive triples.
    """
    rankings, looked, possible, triples, matrices = {}, 0, 0, [], {}
    for name, own in rows.groups(group).items():
        items, matrix = _judgements(own.labels(first), own.labels(second), own.numbers(probability))
        asked = set()

        def prefer(i: int, j: int, items=items, matrix=matrix, asked=asked, name=name) -> float:
            if np.isnan(matrix[i, j]):
                raise ValueError(f"group {name!r}: nobody judged {items[i]!r} against {items[j]!r}, which is needed")
            asked.add(frozenset((i, j)))
            return float(matrix[i, j])

        order = pairwise_rank(len(items), prefer, beam=beam, gap=gap)
        rankings[name] = [items[place] for place in order]
        matrices[name] = matrix[np.ix_(order, order)]
        looked, possible = looked + len(asked), possible + len(items) * (len(items) - 1) // 2
        if (part := transitive_share(matrix)) is not None:
            triples.append(part)
    used = share(looked / possible, possible)
    cells = [(name, " > ".join(order)) for name, order in rankings.items()]
    measures = [("pairs looked at", f"{looked} of {possible} ({used.value:.1%})")]
    transitive = None
    if triples:
        count = sum(part.count for part in triples)
        transitive = share(sum(part.value * part.count for part in triples) / count, count)
        measures.append(("transitive triples", f"{with_interval(transitive)} of {count}"))
    parts = [table(("measure", "value"), measures), table(("set", "best first"), cells)]
    largest = max(rankings, key=lambda name: len(rankings[name]))
    best = (
        f"{rankings[largest][0]} first of {len(rankings[largest])}" if len(rankings) == 1 else f"{len(rankings)} sets"
    )
    headline = f"Ranked {best} by {looked} of {possible} pairs"
    values = {"rankings": rankings, "pairs_looked_at": looked, "pairs": possible, "transitive": transitive}
    return ToolOutput(
        headline, parts, values | {"beam": beam, "gap": gap}, _matrix(rankings[largest], matrices[largest])
    )


def _judgements(
    first: Sequence[str], second: Sequence[str], probability: np.ndarray
) -> tuple[list[str], Float[np.ndarray, "K K"]]:
    """Names in order of appearance, and mean P(row better than column), NaN where nobody judged."""
    items = list(dict.fromkeys(name for pair in zip(first, second, strict=True) for name in pair))
    place: Mapping[str, int] = {name: index for index, name in enumerate(items)}
    total, count = np.zeros((len(items),) * 2), np.zeros((len(items),) * 2)
    for row, (a, b, p) in enumerate(zip(first, second, probability, strict=True), 1):
        if a == b or not 0 <= p <= 1:
            raise ValueError(f"judgement {row}: P({a!r} better than {b!r}) = {p:g} is none of two names in [0, 1]")
        total[place[a], place[b]] += p
        total[place[b], place[a]] += 1 - p
        count[place[a], place[b]] += 1
        count[place[b], place[a]] += 1
    with np.errstate(invalid="ignore"):
        return items, total / count


def _matrix(names: list[str], matrix: np.ndarray) -> Any:
    size = min(9.0, 2.5 + 0.4 * len(names))
    figure, axis = canvas("P(row better than column), in the order found", size + 0.8, size)
    image = axis.imshow(matrix, cmap="RdBu", vmin=0, vmax=1)
    if len(names) <= 10:
        for i, j in itertools.permutations(range(len(names)), 2):
            color = "white" if abs(matrix[i, j] - 0.5) > 0.3 else INK
            text = "" if np.isnan(matrix[i, j]) else number(float(matrix[i, j]))
            axis.text(j, i, text, ha="center", va="center", fontsize=7, color=color)
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    figure.colorbar(image, shrink=0.7)
    return figure
