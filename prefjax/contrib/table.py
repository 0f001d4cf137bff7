"""Named columns with one entry for each row, as checked arrays: what every analysis tool reads."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Table:
    """N rows. A *response column* holds a list with one value for each response of the row; of a pair chosen, rejected.

    Every method raises ValueError that names the column, the row (from 1) and what should stand there.
    """

    columns: Mapping[str, Sequence[Any] | np.ndarray]

    def __post_init__(self):
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns must have as many rows as each other: {lengths}")
        if not lengths or not next(iter(lengths.values())):
            raise ValueError("there are no rows")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def numbers(self, name: str) -> Float[np.ndarray, "N"]:
        """One finite number for each row; true and false count as 1 and 0."""
        return np.array(list(self._read(name, _number, "a finite number")))

    def lists(self, name: str) -> list[Float[np.ndarray, "_"]]:
        """A list of numbers for each row, as many as the row has responses."""
        return list(self._read(name, _numbers, "a list of finite numbers, one for each response"))

    def pairs(self, name: str) -> Float[np.ndarray, "N 2"]:
        """Two numbers for each row: of the chosen response, of the rejected one."""
        return np.stack(list(self._read(name, _pair, "two finite numbers, [chosen, rejected]")))

    def vector_pairs(self, name: str) -> Float[np.ndarray, "N 2 D"]:
        """Two vectors for each row: of the chosen response, of the rejected one."""
        found = list(self._read(name, _vectors, "two vectors of finite numbers, [chosen, rejected]"))
        for row, value in enumerate(found, 1):
            if value.shape != found[0].shape:
                raise ValueError(f"column {name!r}, row {row}: {value.shape[1]} numbers, row 1 has {found[0].shape[1]}")
        return np.stack(found)

    def labels(self, name: str) -> list[str]:
        """One label for each row: text, or a number written as text."""
        return list(self._read(name, _label, "a text or a number"))

    def select(self, rows: Sequence[int]) -> "Table":
        """The table of some rows, in the order given, counted from 0."""
        return Table({name: [values[row] for row in rows] for name, values in self.columns.items()})

    def groups(self, name: str | None) -> dict[str, "Table"]:
        """The tables of the rows with the same label, in order of first appearance; the whole as "all" for None."""
        if name is None:
            return {"all": self}
        rows: dict[str, list[int]] = {}
        for row, label in enumerate(self.labels(name)):
            rows.setdefault(label, []).append(row)
        return {label: self.select(own) for label, own in rows.items()}

    def _read(self, name: str, convert: Callable[[Any], Any], wanted: str) -> Iterator[Any]:
        if name not in self.columns:
            raise ValueError(f"there is no column {name!r}; there are {', '.join(self.columns)}")
        for row, value in enumerate(self.columns[name], 1):
            try:
                yield convert(value)
            except (TypeError, ValueError, OverflowError):
                shown = repr(value)
                shown = shown if len(shown) < 80 else shown[:77] + "..."
                raise ValueError(f"column {name!r}, row {row}: must be {wanted}, got {shown}") from None


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _numbers(value: Any) -> np.ndarray:
    if isinstance(value, str | bytes | Mapping) or not len(value):
        raise TypeError
    return np.array([_number(each) for each in value])


def _pair(value: Any) -> np.ndarray:
    if len(value) != 2:
        raise ValueError
    return _numbers(value)


def _vectors(value: Any) -> np.ndarray:
    if len(value) != 2 or len(value[0]) != len(value[1]):
        raise ValueError
    array = np.asarray(value, np.float64)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError
    return array


def _label(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{_number(value):g}"
