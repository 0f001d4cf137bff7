"""Files -> records: JSONL, gzipped JSONL and Parquet, by file suffix."""

import glob
import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prefjax.data.formats import Columns, RecordFormat, parse
from prefjax.data.records import Record
from prefjax.data.report import Finding, Rejection, Report, collect

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def read_records(
    files: str | Path | Iterable[str | Path],
    record_format: RecordFormat | None = None,
    *,
    more: Columns | None = None,
    progress: bool = True,
) -> tuple[list[Record], Report]:
    """All records of some files, in order.

    Args:
        files: a path or a glob pattern, or several of them.
        record_format: how rows are read; None means `RecordFormat()`.
        more: further columns to keep, see `Columns`.
        progress: a progress bar per file, on a terminal only.
    Returns:
        the records, and a report with the stage "read".
    Raises:
        FileNotFoundError: a path or pattern matches nothing.
        ValueError: a file has another suffix, is named twice, or is damaged.
    """

    def step(numbered: tuple[str, Any]) -> Iterable[Record | Finding]:
        source, row = numbered
        return (row,) if isinstance(row, Rejection) else parse(row, source, record_format, more)

    rows = (row for path in find_files(files) for row in read_rows(path, progress=progress))
    return collect("read", rows, step)


def find_files(files: str | Path | Iterable[str | Path]) -> list[Path]:
    """Paths and glob patterns -> existing files, sorted within a pattern. Raises as `read_records`."""
    found: list[Path] = []
    for pattern in [files] if isinstance(files, str | Path) else files:
        # A file whose name happens to look like a pattern is meant as itself.
        matches = [str(pattern)] if Path(pattern).is_file() else sorted(glob.glob(str(pattern), recursive=True))
        if not matches:
            raise FileNotFoundError(f"no file {pattern}")
        found.extend(map(Path, matches))
    for path in found:
        if not path.name.endswith(SUFFIXES):
            raise ValueError(f"{path}: the suffix must be one of {', '.join(SUFFIXES)}")
    if twice := {str(path) for path in found if found.count(path) > 1}:
        raise ValueError(f"named twice, so its records would count twice: {', '.join(sorted(twice))}")
    return found


def read_rows(path: Path, *, progress: bool = True) -> Iterator[tuple[str, Any]]:
    """The rows of one file as ("file:line", decoded row or Rejection). Lines, and Parquet rows, count from 1; blank
    lines are no rows."""
    read = _read_parquet if path.suffix == ".parquet" else _read_jsonl
    # tqdm's `disable=None` shows the bar on a terminal only.
    with tqdm(desc=path.name, disable=None if progress else True) as bar:
        for line, row in read(path, bar):
            yield f"{path}:{line}", row


def _read_jsonl(path: Path, bar: tqdm) -> Iterator[tuple[int, Any]]:
    bar.unit, bar.unit_scale, bar.total = "B", True, path.stat().st_size
    with path.open("rb") as raw:
        lines = gzip.open(raw) if path.suffix == ".gz" else raw
        try:
            for number, line in enumerate(lines, 1):
                bar.update(raw.tell() - bar.n)
                if line.strip():
                    yield number, _decode(line, f"{path}:{number}")
        except (EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def _decode(line: bytes, source: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:  # malformed JSON or malformed UTF-8
        return Rejection("malformed_json", source, "", str(error))


def _read_parquet(path: Path, bar: tqdm) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path}: reading Parquet needs pyarrow (pip install pyarrow)") from error
    file = pyarrow.parquet.ParquetFile(path)
    bar.unit, bar.total = "rows", file.metadata.num_rows
    number = 0
    for batch in file.iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            bar.update()
            yield number, row
