"""Which records to train on: random subsets and folds, the easiest share, and windows of scores."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np

from prefjax.data.account import Refused, Rejection
from prefjax.data.methods import method
from prefjax.data.methods.stream import (
    Outcome,
    Outcomes,
    Seed,
    each,
    generator,
    kept_in_order,
    measured,
    number,
    rewards,
    take_kind,
)
from prefjax.data.records import Record
from prefjax.options import Count, Finite, Index, Part, Several


@method(streams=False)
def subset(
    records: Iterable[Record], *, size: Count | None = None, share: Part | None = None, seed: Seed = 0
) -> Outcomes:
    """Nested random subsets: of one seed and one file, a smaller subset lies within every larger one.

    Source: arXiv 2410.16586 (the improvement curve of DPO over random subsets of 20 % to 100 %); nested here.
    Takes: all records.
    Makes: `size` of them, or floor(share * n) but at least one, in the order they came in.

    Raises:
        ValueError: not exactly one of size and share, or a size above the number of records.
    """
    if (size is None) == (share is None):
        raise ValueError("subset needs either size or share")
    records = list(records)
    count = size if size is not None else max(1, math.floor(share * len(records) + 1e-9))
    if count > max(1, len(records)):
        raise ValueError(f"subset size={size} of {len(records)} records: give a size from 1 up to their number")
    order = generator(seed).permutation(len(records))
    return kept_in_order(records, order[:count].tolist(), "outside the subset")


@method(streams=False)
def fold(
    records: Iterable[Record],
    *,
    index: Index = 0,
    folds: Several = 2,
    repeat: Index = 0,
    held_out: bool = False,
    seed: Seed = 0,
) -> Outcomes:
    """Cross-fitting: one fold of the records held out, or all the others, by a random split for each repeat.

    Source: arXiv 2502.09650 (2 folds, 3 repeats with new splits: six models, each scores what it did not see).
    Takes: all records.
    Makes: those outside fold `index`, to train on; with `held_out` those inside it, to score.

    Train on every (index, repeat), write the validation loss of each held-out record into files, and choose with
    `join(file="losses/*.jsonl", columns=("loss",), count=3) | easiest(by="loss")`.

    Raises:
        ValueError: an index that is not below folds.
    """
    if index >= folds:
        raise ValueError(f"fold needs index < folds, got {index=}, {folds=}")
    records = list(records)
    own = (seed,) if isinstance(seed, int) else seed
    order = generator((*own, repeat)).permutation(len(records))
    inside = order[index::folds]
    chosen = inside if held_out else np.setdiff1d(order, inside)
    return kept_in_order(records, chosen.tolist(), "in another fold" if held_out else "in the fold held out")


@method(record_columns=("by",), streams=False)
def easiest(records: Iterable[Record], *, by: str, share: Part = 0.5) -> Outcomes:
    """Selective DPO: the share of records with the lowest difficulty, from easy to hard.

    Source: arXiv 2502.09650 (difficulty is the mean validation loss of models trained on the other fold; 50 %).
    Takes: all records; the column `by` holds the difficulty, see `fold` and `join`.
    Makes: floor(share * n) of them but at least one, n those with a difficulty, in rising order of it; equal ones
        keep their order.
    """
    usable, values, lost = measured(records, lambda record: number(record, by))
    order = np.argsort(np.array(values, np.float64), kind="stable").tolist()
    count = max(1, math.floor(share * len(usable) + 1e-9))
    yield from ((usable[k],) for k in order[:count])
    yield from ((Rejection("not_selected", usable[k].source, by, "harder than those kept"),) for k in order[count:])
    yield from lost


@method(record_columns=("by",), streams=False)
def order_by(records: Iterable[Record], *, by: str, falling: bool = False) -> Outcomes:
    """A curriculum: records in the order of a number, as their difficulty, their length or their date.

    Source: none needed.
    Takes: all records; the column `by` holds the number.
    Makes: all that have it, in rising order of it, or with `falling` in falling order; equal ones keep their order.
        Training goes by it with `--config.rows.order=fixed`.
    """
    usable, values, lost = measured(records, lambda record: number(record, by))
    order = np.argsort(np.array(values, np.float64) * (-1 if falling else 1), kind="stable")
    yield from ((usable[k],) for k in order.tolist())
    yield from lost


@method(response_columns=("reward",))
def margin_window(
    records: Iterable[Record],
    *,
    at_least: Finite | None = None,
    at_most: Finite | None = None,
    reward: str | None = None,
) -> Outcomes:
    """Moderate margins: pairs whose score_chosen - score_rejected lies in a window, ends included.

    Source: arXiv 2504.03612 (AIR, response pairs: moderate margins; the window depends on the scale and is yours).
    Takes: pairs with two scores, or the response column `reward`.
    Makes: those inside.
    """

    def value(record: Record) -> float:
        take_kind(record, "pair")
        first, second = rewards(record, reward)
        return float(first - second)

    return _window(records, value, at_least, at_most, reward or "score_chosen")


@method(response_columns=("reward",))
def score_window(
    records: Iterable[Record],
    *,
    at_least: Finite | None = None,
    at_most: Finite | None = None,
    response: Literal["all", "chosen", "rejected"] = "all",
    reward: str | None = None,
) -> Outcomes:
    """Absolute quality: records whose scores lie in a window, ends included.

    Source: arXiv 2504.03612 (AIR, response pairs: high absolute scores; the window depends on the scale and is yours).
    Takes: records with scores, or the response column `reward`; "chosen" and "rejected" only pairs.
    Makes: those of which all scores, or that of the named response, are inside.
    """

    def value(record: Record) -> np.ndarray:
        if response != "all":
            take_kind(record, "pair")
        scores = rewards(record, reward)
        return scores if response == "all" else scores[[int(response == "rejected")]]

    return _window(records, value, at_least, at_most, reward or "scores")


@method(shapes=True, response_columns=("reward",))
def variance_window(
    records: Iterable[Record],
    *,
    at_least: Finite | None = None,
    at_most: Finite | None = None,
    reward: str | None = None,
) -> Outcomes:
    """Stable instructions: prompts whose scores over responses of several models have a variance in a window.

    Source: arXiv 2504.03612 (AIR, instructions: variance-based filtering across models; the threshold is yours).
    Takes: pairs and rankings with scores, or the response column `reward`.
    Makes: those whose variance (divisor K, squared units of the score) is inside, ends included.
    """

    def value(record: Record) -> float:
        take_kind(record, "pair", "ranked")
        return float(rewards(record, reward).var())

    return _window(records, value, at_least, at_most, reward or "scores")


@method(record_columns=("column",))
def column_window(
    records: Iterable[Record], *, column: str, at_least: Finite | None = None, at_most: Finite | None = None
) -> Outcomes:
    """Records whose number in a column lies in a window, ends included.

    Source: none needed; with |log reference(y_w) - log reference(y_l)| in the column and at_least=3 it is ComPO's
        split into clean pairs, arXiv 2505.05465.
    Takes: all records; `column` holds one number for each.
    Makes: those inside.
    """
    return _window(records, lambda record: number(record, column), at_least, at_most, column)


def _window(
    records: Iterable[Record],
    value: Callable[[Record], float | np.ndarray],
    at_least: float | None,
    at_most: float | None,
    field: str,
) -> Outcomes:
    low, high = -math.inf if at_least is None else at_least, math.inf if at_most is None else at_most
    if (at_least is None and at_most is None) or low > high:
        raise ValueError(f"a window needs at_least, at_most or both, in this order: {at_least=}, {at_most=}")

    def step(record: Record) -> Outcome:
        values = np.atleast_1d(value(record))
        outside = values[(values < low) | (values > high)]
        if len(outside):
            raise Refused("outside_window", field, f"{outside[0]:g} is not in [{low:g}, {high:g}]")
        return (record,)

    return each(records, step)
