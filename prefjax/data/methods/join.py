"""Columns from score files: what a model said about records, matched by their texts."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from prefjax.data.account import Refused, Rejection
from prefjax.data.formats import Columns, RecordFormat, parse
from prefjax.data.methods import method
from prefjax.data.methods.stream import Outcome, Outcomes, each
from prefjax.data.readers import find_files, read_rows
from prefjax.data.records import Record
from prefjax.options import Count


@method(files=("file",))
def join(
    records: Iterable[Record],
    *,
    file: str,
    columns: tuple[str, ...],
    per: Literal["record", "response"] = "record",
    count: Count | None = None,
) -> Outcomes:
    """Columns of score files: numbers that models gave to the same prompts and responses, averaged over rows.

    Source: none needed; brings in rewards, validation losses, log-probs and embeddings.
    Takes: all records. `file` is a path or glob of files in any shape of `prefjax.data.formats`, whose rows repeat the
        records' prompt and responses (their order too) and have the columns: a number or a list of numbers, and with
        per="response" a list with one for each response.
    Makes: the same records with the columns, the mean over all rows that match. A record that no row matches is
        rejected, and so is one matched by another number of rows than `count`, where that is given.

    Raises:
        FileNotFoundError, ValueError: as `read_records`; a row is no record, or lacks a column.
    """
    if not columns:
        raise ValueError("join needs columns")
    wanted = Columns(record=columns) if per == "record" else Columns(response=columns)
    found: defaultdict[Any, list[np.ndarray]] = defaultdict(list)
    for path in find_files(file):
        for source, row in read_rows(path, progress=False):
            record = _read(row, source, wanted)
            if record is not None:
                held = record.columns if per == "record" else record.response_columns
                found[_key(record)].append([_array(held, column, source) for column in columns])

    def step(record: Record) -> Outcome:
        rows = found.get(_key(record), [])
        if not rows or (count is not None and len(rows) != count):
            detail = f"{len(rows)} rows of {file} have these texts" + (f", {count} are asked for" if count else "")
            raise Refused("missing_field", ", ".join(columns), detail)
        try:
            means = {name: np.mean(values, axis=0).tolist() for name, *values in zip(columns, *rows, strict=True)}
        except ValueError:
            raise Refused("length_mismatch", ", ".join(columns), "the rows that match differ in shape") from None
        if per == "record":
            return (dataclasses.replace(record, columns={**record.columns, **means}),)
        means = {name: tuple(values) for name, values in means.items()}
        return (dataclasses.replace(record, response_columns={**record.response_columns, **means}),)

    return each(records, step)


def _read(row: Any, source: str, wanted: Columns) -> Record | None:
    """None for a row that the reader drops for what it says (a tie, an empty text): no record matches it either."""
    if isinstance(row, Rejection):
        raise ValueError(f"{row}: a score file must be readable")
    items = list(parse(row, source, RecordFormat(ties="keep"), wanted))
    record = next((item for item in items if isinstance(item, Record)), None)
    if record is None and (broken := next((item for item in items if item.reason in _BROKEN), None)):
        raise ValueError(f"{broken}: {broken.reason}; the rows of a score file repeat a record's prompt and responses")
    return record


_BROKEN = ("missing_field", "ambiguous_shape", "wrong_type", "length_mismatch", "no_boundary", "bad_role")


def _key(record: Record) -> tuple[Any, ...]:
    return record.prompt, record.responses


def _array(held: Any, column: str, source: str) -> np.ndarray:
    try:
        array = np.array(held[column], np.float64)
    except KeyError:
        raise ValueError(f"{source}:{column}: the column is missing") from None
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{source}:{column}: must be a number or a list of numbers, got {held[column]!r}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{source}:{column}: not finite")
    return array
