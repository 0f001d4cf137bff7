"""Files -> records: JSON, CSV, TSV, Parquet and Arrow, by file suffix; docs/shapes.md has a sample of each."""

import glob
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prefjax.data.account import Account, Finding, Rejection, flow
from prefjax.data.arrow_files import read_arrow
from prefjax.data.formats import Columns, RecordFormat, columns_read, parse
from prefjax.data.json_files import read_json, read_lines
from prefjax.data.progress import progress_bar
from prefjax.data.records import Record
from prefjax.data.table_files import read_table

TABLES = (".csv", ".tsv")
_TEXT = (".jsonl", ".json", *TABLES)  # also gzipped
_BINARY = (".parquet", ".arrow", ".feather")
SUFFIXES = (*_TEXT, *(f"{suffix}.gz" for suffix in _TEXT), *_BINARY)

# Of a folder these are no data: what people write beside it, and what the library datasets does.
_BESIDE = re.compile(r"\..*|(README|LICENSE)\b.*|.*\.(md|txt)|(dataset_infos?|dataset_dict|state)\.json", re.IGNORECASE)
_SPLITS = {"train": "train", "training": "train", "test": "test", "eval": "eval", "dev": "eval"}
_SPLITS |= dict.fromkeys(("valid", "validation", "val"), "eval")


def read_records(
    files: str | Path | Iterable[str | Path],
    record_format: RecordFormat | None = None,
    *,
    more: Columns | None = None,
    progress: bool = True,
) -> tuple[list[Record], Account]:
    """All records of some files, in order, and an account with the stage "read"; see `stream_records`."""
    account = Account()
    return list(stream_records(files, account, record_format, more=more, progress=progress)), account


def stream_records(
    files: str | Path | Iterable[str | Path],
    account: Account,
    record_format: RecordFormat | None = None,
    *,
    more: Columns | None = None,
    progress: bool = True,
) -> Iterator[Record]:
    """The records of some files, in order, as they are asked for.

    Args:
        files: a path, a folder or a glob pattern, or several of them; see `find_files`.
        record_format: how rows are read; None means `RecordFormat()`.
        more: further columns to keep, see `Columns`.
        account: gets the stage "read", see `flow`.
        progress: a progress bar per file, see `progress_bar`.
    Raises:
        FileNotFoundError: a path or pattern matches nothing.
        ValueError: a file has another suffix, is named twice, or is damaged.
    """
    columns = columns_read(record_format or RecordFormat(), more or Columns())
    rows = (row for path in find_files(files) for row in read_rows(path, columns=columns, progress=progress))
    return parse_rows(rows, account, record_format, more)


def parse_rows(
    rows: Iterable[tuple[str, Any]], account: Account, record_format: RecordFormat | None, more: Columns | None
) -> Iterator[Record]:
    """The records of rows as `read_rows` gives them; `account` gets the stage "read"."""

    def step(numbered: tuple[str, Any]) -> Iterable[Record | Finding]:
        source, row = numbered
        return (row,) if isinstance(row, Rejection) else parse(row, source, record_format, more)

    return flow(account, "read", rows, step)


def find_files(files: str | Path | Iterable[str | Path]) -> list[Path]:
    """Paths, folders and glob patterns -> existing files, sorted within a folder or pattern.

    Of a folder all files are meant, those in folders inside too; they must be of one suffix and of one split.

    Raises:
        FileNotFoundError: a path or pattern matches nothing.
        ValueError: a file has another suffix or is named twice, or what a folder means cannot be told.
    """
    found: list[Path] = []
    for pattern in [files] if isinstance(files, str | Path) else files:
        if Path(pattern).is_dir():
            found.extend(_inside(Path(pattern)))
            continue
        # A file whose name happens to look like a pattern is meant as itself.
        matches = [str(pattern)] if Path(pattern).is_file() else sorted(glob.glob(str(pattern), recursive=True))
        if not matches:
            raise FileNotFoundError(f"no file {pattern}: correct the path (it counts from {Path.cwd()})")
        found.extend(map(Path, matches))
    for path in found:
        if not path.name.endswith(SUFFIXES) or not path.is_file():
            raise ValueError(f"{path}: must be a file whose suffix is one of {', '.join(SUFFIXES)}")
    if twice := {str(path) for path in found if found.count(path) > 1}:
        raise ValueError(f"named twice, so its records would count twice: {', '.join(sorted(twice))}")
    return found


def _inside(folder: Path) -> list[Path]:
    """The data files of a folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    parts = {path: path.relative_to(folder).parts for path in found}
    found = [path for path in found if not any(_BESIDE.fullmatch(part) for part in parts[path])]
    if not found:
        raise FileNotFoundError(f"the folder {folder} holds no file with one of the suffixes {', '.join(SUFFIXES)}")
    if other := [path for path in found if not path.name.endswith(SUFFIXES)]:
        raise ValueError(f"the folder {folder} holds {other[0].name} too: name what is meant, as '{folder}/*.jsonl'")
    suffixes = sorted({next(s for s in SUFFIXES if path.name.endswith(s)) for path in found})
    if len(suffixes) > 1:
        raise ValueError(f"the folder {folder} holds {' and '.join(suffixes)}: choose, as '{folder}/*{suffixes[0]}'")
    words = {word for own in (parts[path] for path in found) for part in own for word in re.split(r"[-_.]", part)[:1]}
    if len(splits := {_SPLITS[word.lower()] for word in words if word.lower() in _SPLITS}) > 1:
        raise ValueError(
            f"the folder {folder} holds several splits ({', '.join(sorted(splits))}): choose, as '{folder}/train*'"
        )
    return found


def read_rows(
    path: Path, *, columns: Collection[str] | None = None, progress: bool = True
) -> Iterator[tuple[str, Any]]:
    """The rows of one file as ("file:number", decoded row or Rejection). The number is that of the line in JSON lines
    and in tables, where blank lines are no rows, and elsewhere that of the row, from 1.

    Args:
        columns: of Parquet and Arrow those to read; others have `...` for a value. None means all.
    Raises:
        ValueError: names the file, or file and line, that is damaged, of another format, or in another encoding.
    """
    with progress_bar(desc=path.name, shown=progress) as bar:
        for number, row in _rows(path, bar, columns):
            yield f"{path}:{number}", row


def _rows(path: Path, bar: tqdm, columns: Collection[str] | None) -> Iterator[tuple[int, Any]]:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix in _BINARY:
        return read_arrow(path, bar, columns)
    if suffix in TABLES:
        return read_table(path, bar, tabs=suffix == ".tsv")
    return read_json(path, bar) if suffix == ".json" else read_lines(path, bar)
