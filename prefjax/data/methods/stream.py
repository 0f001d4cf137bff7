"""What all methods share: what becomes of a record, and typed access to its numbers and named columns."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float64

from prefjax.data.account import Finding, Refused, Rejection
from prefjax.data.records import Record
from prefjax.data.spellings import cell
from prefjax.options import FLOAT32, LARGEST, Index

Outcome = tuple[Record | Finding, ...]  # what became of one incoming record
Outcomes = Iterator[Outcome]
Seed = Index | tuple[int, ...]  # as numpy.random.default_rng takes it

_HOW = "name a column of the file, or bring it in with join(file=..., columns=...)"


def each(records: Iterable[Record], step: Callable[[Record], Iterable[Record | Finding]]) -> Outcomes:
    """A method that looks at one record at a time, and raises Refused of one that cannot go through it."""
    for record in records:
        try:
            yield tuple(step(record))
        except Refused as refused:
            yield (refused.at(record.source),)


def measured(
    records: Iterable[Record], measure: Callable[[Record], Any]
) -> tuple[list[Record], list[Any], list[Outcome]]:
    """For methods that need all records at once: those that can be measured, their values, and what became of the
    others."""
    usable, values, lost = [], [], []
    for record in records:
        try:
            value = measure(record)
        except Refused as refused:
            lost.append((refused.at(record.source),))
        else:
            usable.append(record)
            values.append(value)
    return usable, values, lost


def kept_in_order(records: Sequence[Record], chosen: Iterable[int], why: str) -> Outcomes:
    """The chosen records in the order they came in; the others are rejected with `why`."""
    chosen = set(chosen)
    for index, record in enumerate(records):
        yield (record if index in chosen else Rejection("not_selected", record.source, "", why),)


def take_kind(record: Record, *kinds: str) -> None:
    """Rejects a record of another kind."""
    if record.kind not in kinds:
        detail = f"this method takes records of kind {' or '.join(kinds)}; this one is {record.kind}"
        raise Refused("wrong_kind", record.field(0), detail)


def exchange(record: Record) -> Record:
    """The pair with chosen and rejected exchanged, and what grades it with them."""
    margin, probability = record.margin, record.target_probability
    return dataclasses.replace(
        record.select((1, 0), record.targets, "pair"),
        margin=None if margin is None else -margin,
        target_probability=None if probability is None else 1 - probability,
    )


def number(record: Record, column: str) -> float:
    """The finite number that a column holds for the record."""
    value = record.columns.get(column)
    if value is None:
        raise Refused("missing_field", column, f"one number for each record: {_HOW}")
    return _finite(record, value, column)


def numbers(record: Record, column: str) -> Float64[np.ndarray, "D"]:
    """The list of finite numbers that a column holds for the record, such as an embedding."""
    value = record.columns.get(column)
    if value is None:
        raise Refused("missing_field", column, f"a list of numbers for each record: {_HOW}")
    return _finite_list(record, value, column)


def per_response(record: Record, column: str) -> tuple[Any, ...]:
    """What a column holds for every response, in order."""
    values = record.response_columns.get(column)
    if values is None or any(value is None for value in values):
        raise Refused("missing_field", column, f"one value for each response: {_HOW}")
    return values


def response_numbers(record: Record, column: str) -> Float64[np.ndarray, "K"]:
    """A finite number for every response."""
    return np.array([_finite(record, value, column) for value in per_response(record, column)])


def response_vectors(record: Record, column: str) -> Float64[np.ndarray, "K D"]:
    """A list of finite numbers, all of one length, for every response."""
    rows = [_finite_list(record, value, column) for value in per_response(record, column)]
    if len({len(row) for row in rows}) > 1:
        raise Refused("length_mismatch", column, "the lists of the responses differ in length")
    return np.stack(rows)


def rewards(record: Record, column: str | None) -> Float64[np.ndarray, "K"]:
    """The rewards of the responses: a named column, or the record's own scores where it is None."""
    if column is not None:
        return response_numbers(record, column)
    own = record.scores if record.scores is not None or record.kind != "ranked" else record.targets
    if own is None:
        detail = "the record has no scores; give scores (or score_chosen and score_rejected, or a reward), or "
        raise Refused("missing_field", "scores", detail + _HOW)
    return np.array([_finite(record, value, "scores") for value in own])  # of records in memory nobody has looked


def generator(seed: Seed) -> np.random.Generator:
    """The draws of a seed. Called directly, two methods of one seed draw the same numbers; in a sequence each step has
    its own (`sequences.Step.options_at`)."""
    return np.random.default_rng(seed)


def _finite(record: Record, value: Any, column: str) -> float:
    if type(value) is float and -LARGEST <= value <= LARGEST:  # nearly every number is; what follows takes long
        return value
    value = cell(value)  # of a table all is text
    if isinstance(value, bool) or not isinstance(value, Real):
        raise Refused("wrong_type", column, f"must be a number, got {type(value).__name__}")
    if value not in FLOAT32:
        raise Refused("not_finite", column, "an integer beyond float32" if isinstance(value, int) else f"{value}")
    return float(value)


def _finite_list(record: Record, value: Any, column: str) -> Float64[np.ndarray, "D"]:
    value = cell(value)
    if not isinstance(value, list | tuple) or not value:
        raise Refused("wrong_type", column, f"must be a list of numbers, got {type(value).__name__}")
    return np.array([_finite(record, entry, column) for entry in value])
