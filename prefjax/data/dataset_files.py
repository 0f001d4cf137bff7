"""Published files -> raw rows: JSON lines, JSON, CSV and Parquet, gzipped or not, whatever the download is called."""

import csv
import gzip
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prefjax.data.dataset_entry import Row

_GZIP = b"\x1f\x8b"
_LFS_POINTER = b"version https://git-lfs"


def read_raw(path: Path, format: str, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of one file with at least the columns that are asked for; all columns when none is.

    Raises:
        ValueError: a column is missing, or the file is damaged, or only points to the data.
    """
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(f"{path} is a Git LFS pointer, not the data: run git lfs pull where it was cloned")
    rows = _parquet(path, columns) if format == "parquet" else _READERS[format](path)
    first = True
    for row in rows:
        # Later rows may leave out what is null; the first one shows whether the source still looks as it did.
        if first and (missing := [column for column in columns if column not in row]):
            raise _changed(path, missing, row)
        first = False
        yield row


def _changed(path: Path, missing: Sequence[str], found: Iterable[str]) -> ValueError:
    return ValueError(
        f"{path}: no column {', '.join(missing)} (there are {', '.join(found)}): the source is not what it was when "
        "this dataset was described; fix its entry in prefjax/data/datasets"
    )


def _open(path: Path) -> io.BufferedIOBase:
    file = path.open("rb")
    start = file.read(2)
    file.seek(0)
    return gzip.open(file) if start == _GZIP else file


def _jsonl(path: Path) -> Iterator[Row]:
    with _open(path) as lines:
        number = 0
        try:
            for line in lines:
                number += 1
                if line.strip():
                    yield json.loads(line)
        except (ValueError, EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is damaged at or after line {number}: {error}") from error


def _json(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        found = json.load(file)
    return itertools.chain.from_iterable(found.values()) if isinstance(found, dict) else iter(found)


def _csv(path: Path) -> Iterator[Row]:
    """An empty cell is null: CSV cannot tell the two apart."""
    csv.field_size_limit(1 << 30)  # a response may be longer than the default of 128 kB
    with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        for row in csv.DictReader(text):
            yield {name: value or None for name, value in row.items()}


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    found = file.schema_arrow.names
    if missing := [column for column in columns if column not in found]:
        raise _changed(path, missing, found)
    for batch in file.iter_batches(batch_size=1024, columns=list(columns) or None):
        yield from batch.to_pylist()


_READERS = {"jsonl": _jsonl, "json": _json, "csv": _csv}
