"""Tables of text, CSV and TSV with a header -> rows, whose cells are text; an empty cell is absent."""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prefjax.data.account import Rejection
from prefjax.data.text_files import ICONV, LINE, TextFile, refuse_binary


def read_table(path: Path, bar: tqdm, *, tabs: bool) -> Iterator[tuple[int, Any]]:
    """The rows below the header as (line where it begins, row or Rejection); blank lines are no rows.

    Cells may stand in double quotes, inside of which a quote is doubled and lines may break (RFC 4180). A header with
    semicolons and without a comma is separated by those.

    Args:
        tabs: whether tabs separate, or commas.
    Raises:
        ValueError: names the file whose quoting is broken, whose header repeats a name, or that is no table.
    """
    csv.field_size_limit(LINE)  # a response may be longer than the default of 128 kB
    with TextFile(path, bar) as file:
        lines = _decoded(file)
        first = next(lines, "")
        delimiter = _delimiter(path, first, tabs)
        table = csv.reader(itertools.chain((first,), lines), delimiter=delimiter, strict=True)
        try:
            header = _header(path, next(table, []))
            while (row := _next(table)) is not None:
                begin, cells = row
                if len(cells) == len(header):
                    yield begin, {name: cell or None for name, cell in zip(header, cells, strict=True)}
                elif cells:
                    detail = f"{len(cells)} cells, the header has {len(header)}"
                    yield begin, Rejection("ragged_row", f"{path}:{begin}", "", detail)
        except csv.Error as error:
            raise ValueError(
                f"{path} cannot be read as a table, at or before line {table.line_num}: {error}: a cell with quotes, "
                "separators or line breaks stands in double quotes, and quotes in it are doubled"
            ) from error


def _next(table: Any) -> tuple[int, list[str]] | None:
    begin = table.line_num + 1
    cells = next(table, None)
    return None if cells is None else (begin, cells)


def _decoded(file: TextFile) -> Iterator[str]:
    """Lines as text, with their ends."""
    for number, (line, size) in enumerate(file.lines(), 1):
        if number == 1:
            refuse_binary(file.path, line)
            line = line.removeprefix(b"\xef\xbb\xbf")
        if size > LINE:
            raise ValueError(f"{file.path}:{number}: the line has {size} bytes, more than {LINE}")
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file.path}:{number} is not UTF-8 ({error.reason}): {ICONV}") from error


def _delimiter(path: Path, header: str, tabs: bool) -> str:
    start = header.lstrip()
    if start.startswith(("{", "[")):
        raise ValueError(f"{path} is JSON, not a table: name it .json, or .jsonl if every line is an object")
    if tabs and "\t" not in header and ("," in header or ";" in header):
        raise ValueError(f"{path} is not separated by tabs: name it .csv")
    if not tabs and "\t" in header and "," not in header:
        raise ValueError(f"{path} is separated by tabs, not commas: name it .tsv")
    return "\t" if tabs else ";" if ";" in header and "," not in header else ","


def _header(path: Path, names: list[str]) -> list[str]:
    """Names of the columns; one without a name, as of pandas' index, is called by its place."""
    header = [name.strip() or f"column {place}" for place, name in enumerate(names, 1)]
    if twice := {name for name in header if header.count(name) > 1}:
        raise ValueError(f"{path}: the header names {', '.join(sorted(twice))} twice: rename one of the two")
    return header
