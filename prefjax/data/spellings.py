"""What people write for numbers, labels, lists and messages, made what `formats` reads; every rule is declared here.

A number may be text (`"4.5"`) or a Decimal, a label a word, a list or a chat JSON as text, as cells of tables and
columns of Parquet hold it, and a chat one list of roles beside one of contents. Each is counted by its reason.
"""

import ast
import decimal
import difflib
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefjax.data.account import Refused
from prefjax.options import FLOAT32

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_LIST = re.compile(r"\s*\[")
_PYTHON = re.compile(r"\s*\[\s*\{\s*'")
_NEAR = 0.7  # of difflib's ratio


class Respelled(dict[str, Any]):
    """The columns of a row as `formats` reads them. `found` is what was changed: reason -> (field, detail)."""

    def __init__(self, columns: Mapping[str, Any]):
        self.found: dict[str, tuple[str, str]] = {}
        super().__init__({n: self._number(v, n) if isinstance(v, decimal.Decimal) else v for n, v in columns.items()})

    def numbers(self, names: Iterable[str | None]) -> None:
        """Columns of one number, and of a list of them."""
        for name in filter(self.__contains__, names):
            value = self[name]
            if isinstance(value, list | tuple):
                self[name] = [self._number(one, f"{name}[{place}]") for place, one in enumerate(value)]
            else:
                self[name] = self._number(value, name)

    def lists(self, names: Iterable[str | None]) -> None:
        """Columns that hold a list."""
        for name in filter(self.__contains__, names):
            value = self[name]
            if isinstance(value, str) and _LIST.match(value):
                self[name] = self._json(value, name)

    def texts(self, names: Iterable[str | None]) -> None:
        """Columns of plain text or messages, and of a list of these."""
        for name in filter(self.__contains__, names):
            self[name] = self._text(self[name], name)

    def label(self, true: Sequence[str], false: Sequence[str]) -> None:
        """The column `label`; words as in `RecordFormat`, whatever their case."""
        value = self.get("label")
        if isinstance(value, str) and not _NUMBER.fullmatch(value):
            word = value.strip().casefold()
        elif isinstance(value, bool) or not isinstance(value, str | int | float) or value in (0, 1):
            return
        elif (number := float(value) if isinstance(value, str) else value) in FLOAT32:
            word = f"{number:g}"
        else:
            return
        for words, meaning in ((true, True), (false, False)):
            if word in map(str.casefold, words):
                self["label"] = meaning
                self.found.setdefault("number_as_text", ("label", repr(value)))

    def _number(self, value: Any, name: str) -> Any:
        if isinstance(value, decimal.Decimal):
            self.found.setdefault("decimal", (name, str(value)))
            return math.nan if value.is_nan() else float(value)
        if not isinstance(value, str) or not _NUMBER.fullmatch(value):
            return value
        self.found.setdefault("number_as_text", (name, repr(value)))
        return float(value)

    def _text(self, value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return self._by_columns({key: own for key, own in value.items() if own is not None}, value, name)
        if isinstance(value, list | tuple) and any(isinstance(one, str) for one in value):
            return [self._text(one, f"{name}[{place}]") for place, one in enumerate(value)]
        if not isinstance(value, str) or not _LIST.match(value):
            return value
        if _PYTHON.match(value) and _is_chat(_literal(value)):
            detail = "messages as Python prints them, not JSON: write them by json.dumps"
            raise Refused("wrong_type", name, detail)
        return self._json(value, name) if _is_chat(_json(value)) else value

    def _json(self, value: str, name: str) -> Any:
        found = _json(value)
        if not isinstance(found, list):
            return value
        self.found.setdefault("json_as_text", (name, ""))
        return found

    def _by_columns(self, held: Mapping[str, Any], value: Any, name: str) -> Any:
        """The value as a list of messages, where all that it holds are lists of one length; else as it is."""
        if not all(isinstance(own, list | tuple) for own in held.values()) or len(set(map(len, held.values()))) != 1:
            return value
        self.found.setdefault("messages_by_column", (name, ""))
        return [dict(zip(held, turn, strict=True)) for turn in zip(*held.values(), strict=True)]


def cell(value: Any) -> Any:
    """What a cell of a table holds, where nothing says what it should: a number, a list, or else its text."""
    if not isinstance(value, str):
        return value
    if _NUMBER.fullmatch(value):
        return float(value)
    found = _json(value) if _LIST.match(value) else None
    return value if found is None else found


def nearest(name: str, names: Iterable[Any]) -> str:
    """The name that `name` is most likely a misspelling of; empty where none is near."""
    return _nearest(name, tuple(one for one in names if isinstance(one, str)))


@functools.lru_cache(maxsize=1024)
def _nearest(name: str, names: tuple[str, ...]) -> str:
    plain = {re.sub(r"[\W_]", "", one).casefold(): one for one in reversed(names)}
    near = difflib.get_close_matches(re.sub(r"[\W_]", "", name).casefold(), plain, n=1, cutoff=_NEAR)
    return plain[near[0]] if near else ""


def _is_chat(value: Any) -> bool:
    messages = isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value)
    return bool(messages) and all(turn.keys() & {"role", "from"} for turn in value)


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
