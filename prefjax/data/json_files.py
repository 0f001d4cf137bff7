"""JSON -> rows: one object a line, an array of objects, or objects one after another, however they are printed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prefjax.data.account import Rejection
from prefjax.data.text_files import ICONV, LINE, TextFile, refuse_binary

_BOM = b"\xef\xbb\xbf"
_BLANK = 100_000  # blank lines in a row
_CHUNK = 2**20  # bytes read at once
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# A line of short names between commas, semicolons or tabs.
_HEADER = re.compile(rb"\"?[\w .-]{1,64}\"?(?:[,;\t]\"?[\w .-]{1,64}\"?)+")
# What opens and closes, and whole texts, in which brackets mean nothing; a quote alone: the text goes on.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}"]', re.DOTALL)
# Under these an object that is the whole file holds the rows.
_WRAPPERS = ("data", "rows", "records", "examples", "instances", "items", "train", "test")


def read_lines(path: Path, bar: tqdm) -> Iterator[tuple[int, Any]]:
    """The lines of a file as (number, decoded value or Rejection); blank ones are no rows.

    Raises:
        ValueError: names the file that is damaged, of another format, or in another encoding.
    """
    first, blank, in_utf8 = True, 0, False
    with TextFile(path, bar) as file:
        for number, (line, size) in enumerate(file.lines(), 1):
            blank = 0 if line.strip() else blank + 1
            if blank > _BLANK:
                raise ValueError(f"{path}:{number}: {_BLANK} blank lines in a row: remove them")
            if blank:
                continue
            source = f"{path}:{number}"
            if first:
                _refuse_other(path, line)
            if size > LINE:
                yield number, Rejection("line_too_long", source, "", f"{size} bytes")
            else:
                row = decode(line.removeprefix(_BOM) if first else line, source, in_utf8)
                in_utf8 = in_utf8 or not line.isascii()
                yield number, row
            first = False


def read_json(path: Path, bar: tqdm) -> Iterator[tuple[int, Any]]:
    """The objects of a file as (number from 1, decoded object or Rejection): those of one array, or all there are.

    Raises:
        ValueError: names the file that is damaged or of another format, or whose rows stand elsewhere.
    """
    in_utf8 = False
    held: tuple[int, Any] | None = None  # the first row, until it is known whether it is the whole file
    with TextFile(path, bar) as file:
        for number, piece in _objects(file):
            row = decode(piece, f"{path}:{number}", in_utf8)
            in_utf8 = in_utf8 or not piece.isascii()
            if number == 1:
                held = (number, row)
                continue
            if held is not None:
                yield held
                held = None
            yield number, row
    if held is not None:
        if elsewhere := _wrapped(held[1]):
            raise ValueError(f"{path} is one object, not rows: {elsewhere}")
        yield held


def decode(piece: bytes, source: str, in_utf8: bool) -> Any:
    """The value that a line, or an object of a file, spells; a Rejection where it spells none.

    Args:
        in_utf8: whether characters beyond ASCII were read before, so that the file is not in another encoding.
    Raises:
        ValueError: JSON in another encoding.
    """
    try:
        return _value(piece.decode(), source)
    except UnicodeDecodeError as error:
        if not in_utf8 and not isinstance(_value(piece.decode("latin-1"), source), Rejection):
            raise ValueError(f"{source} is not UTF-8 but JSON in another encoding, such as Latin-1: {ICONV}") from error
        return Rejection("malformed_json", source, "", str(error))


def _value(text: str, source: str) -> Any:
    try:
        row = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(row, ensure_ascii=False).encode()
        return row
    except RecursionError:
        return Rejection("too_deep", source)
    except UnicodeEncodeError as error:  # JSON can spell half of a character outside the basic plane
        return Rejection("malformed_json", source, "", f"half of a character: {error.object[error.start]!r}")
    except ValueError as error:
        return Rejection("malformed_json", source, "", str(error))


def _refuse_other(path: Path, line: bytes) -> None:
    """Raises ValueError where a file of JSON lines would not begin with this line."""
    refuse_binary(path, line)
    start = line.removeprefix(_BOM).strip()
    if start.startswith(b"[") or start == b"{":
        raise ValueError(f"{path} is JSON over the whole file, not one object a line: name it .json")
    _refuse_table(path, start)


def _refuse_table(path: Path, start: bytes) -> None:
    if _HEADER.fullmatch(start):
        suffix = ".tsv" if b"\t" in start else ".csv"
        raise ValueError(f"{path} is a table with separators (CSV), not JSON: name it {suffix}")


def _objects(file: TextFile) -> Iterator[tuple[int, bytes]]:
    """The rows of a file as bytes, numbered from 1: the elements of its array, or what stands one after another."""
    path, data = file.path, file.read(_CHUNK)
    refuse_binary(path, data)
    data = data.removeprefix(_BOM).lstrip()
    while not data and (more := file.read(_CHUNK)):
        data = more.lstrip()
    _refuse_table(path, data.partition(b"\n")[0].strip())
    rows = _Between(path, array=data.startswith(b"["))
    begin = at = 1 if rows.array else 0  # where the row begins, or what stands before it; how far was looked
    depth = 0
    while True:
        for token in _TOKEN.finditer(data, at):
            kind = token[0]
            if kind == b'"':
                break
            at = token.end()
            if kind in b"[{":
                if not depth:
                    rows.check(data[begin : token.start()])
                    begin = token.start()
                depth += 1
            elif kind in b"]}" and depth:
                depth -= 1
                if not depth:
                    rows.number += 1
                    yield rows.number, data[begin:at]
                    begin = at
            elif kind in b"]}":
                rows.close(kind, data[begin : token.start()])
                begin = at
        else:
            at = len(data)
        data, at, begin = data[begin:], at - begin, 0
        if len(data) > LINE:
            raise ValueError(
                f"{path}: what follows row {rows.number} is longer than {LINE} bytes: rows must be the elements of "
                "one array, or stand one after another"
            )
        more = file.read(max(_CHUNK, len(data)))  # a text that goes on is looked at anew, so at ever longer pieces
        if not more:
            break
        data += more
    if depth or rows.array and not rows.closed:
        raise ValueError(f"{path} is damaged: it ends inside of what follows row {rows.number}")
    rows.check(data, last=True)


class _Between:
    """Holds what stands between the rows of a file to what should: white space, and the commas of an array."""

    def __init__(self, path: Path, *, array: bool):
        self.path, self.array, self.closed, self.number = path, array, False, 0

    def check(self, rest: bytes, *, last: bool = False) -> None:
        """Raises ValueError where something else stands before a row, or before the end."""
        found = rest.strip()
        comma = b"," if self.array and self.number and not last else b""
        if found != comma or self.closed and not last:
            should = "nothing" if self.closed else "a comma and an object" if comma else "an object, or the end,"
            shown = found[:40].decode(errors="replace") or "one more object"
            raise ValueError(
                f"{self.path}: after row {self.number} stands {shown!r} where {should} should: rows are JSON objects"
            )

    def close(self, kind: bytes, rest: bytes) -> None:
        """What the end of the array is held to."""
        if kind != b"]" or not self.array or self.closed:
            raise ValueError(f"{self.path} is damaged after row {self.number}: {kind.decode()} closes nothing")
        self.check(rest, last=True)
        self.closed = True


def _wrapped(row: Any) -> str:
    """Where the rows of a file stand that is this one object; empty: it may be a row itself."""
    if not isinstance(row, dict):
        return ""
    for name in _WRAPPERS:
        if isinstance(row.get(name), list):
            return f"its {name!r} holds them, and jq .{name} FILE makes a file of these"
    if row and all(isinstance(value, dict) and "0" in value for value in row.values()):
        return "it holds columns, as pandas writes them: give to_json orient='records'"
    return ""
