"""Files -> records: JSONL, gzipped JSONL and Parquet, by file suffix."""

import glob
import gzip
import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prefjax.data.account import Account, Finding, Rejection, flow
from prefjax.data.formats import Columns, RecordFormat, columns_read, parse
from prefjax.data.records import Record

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_LINE = 16 * 2**20  # bytes of one line; longer ones are not looked at
_EXPANSION = 200  # times its own size, and one line more, that an archive may expand to
_BLANK = 100_000  # blank lines in a row
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# A line of short names between commas, semicolons or tabs.
_HEADER = re.compile(rb"\"?[\w .-]{1,64}\"?(?:[,;\t]\"?[\w .-]{1,64}\"?)+")
_ICONV = "convert it, as with iconv -f ENCODING -t UTF-8"


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
        files: a path or a glob pattern, or several of them.
        record_format: how rows are read; None means `RecordFormat()`.
        more: further columns to keep, see `Columns`.
        account: gets the stage "read", see `flow`.
        progress: a progress bar per file, on a terminal only.
    Raises:
        FileNotFoundError: a path or pattern matches nothing.
        ValueError: a file has another suffix, is named twice, or is damaged.
    """

    def step(numbered: tuple[str, Any]) -> Iterable[Record | Finding]:
        source, row = numbered
        return (row,) if isinstance(row, Rejection) else parse(row, source, record_format, more)

    columns = columns_read(record_format or RecordFormat(), more or Columns())
    rows = (row for path in find_files(files) for row in read_rows(path, columns=columns, progress=progress))
    return flow(account, "read", rows, step)


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
        if not path.name.endswith(SUFFIXES) or not path.is_file():
            raise ValueError(f"{path}: must be a file whose suffix is one of {', '.join(SUFFIXES)}")
    if twice := {str(path) for path in found if found.count(path) > 1}:
        raise ValueError(f"named twice, so its records would count twice: {', '.join(sorted(twice))}")
    return found


def read_rows(
    path: Path, *, columns: Collection[str] | None = None, progress: bool = True
) -> Iterator[tuple[str, Any]]:
    """The rows of one file as ("file:line", decoded row or Rejection). Lines, and Parquet rows, count from 1; blank
    lines are no rows.

    Args:
        columns: of Parquet those to read; others have `...` for a value. None means all.
    Raises:
        ValueError: names the file, or file and line, that is damaged, of another format, or in another encoding.
    """
    # tqdm's `disable=None` shows the bar on a terminal only.
    with tqdm(desc=path.name, disable=None if progress else True) as bar:
        for line, row in _read_parquet(path, bar, columns) if path.suffix == ".parquet" else _read_jsonl(path, bar):
            yield f"{path}:{line}", row


def _read_jsonl(path: Path, bar: tqdm) -> Iterator[tuple[int, Any]]:
    bar.unit, bar.unit_scale, bar.total = "B", True, path.stat().st_size
    first, blank, in_utf8 = True, 0, False
    for number, (line, size) in enumerate(_lines(path, bar), 1):
        blank = 0 if line.strip() else blank + 1
        if blank > _BLANK:
            raise ValueError(f"{path}:{number}: {_BLANK} blank lines in a row: remove them")
        if blank:
            continue
        source = f"{path}:{number}"
        if first and (kind := _other_format(line)):
            raise ValueError(f"{path} {kind}")
        if size > _LINE:
            yield number, Rejection("line_too_long", source, "", f"{size} bytes")
        else:
            try:
                text = line.decode("utf-8-sig" if first else "utf-8")
                in_utf8 |= not text.isascii()
                yield number, _decode(text, source)
            except UnicodeDecodeError as error:
                if not in_utf8 and not isinstance(_decode(line.decode("latin-1"), source), Rejection):
                    raise ValueError(
                        f"{source} is not UTF-8 but JSON in another encoding, such as Latin-1: {_ICONV}"
                    ) from error
                yield number, Rejection("malformed_json", source, "", str(error))
        first = False


def _lines(path: Path, bar: tqdm) -> Iterator[tuple[bytes, int]]:
    """Lines and how many bytes they have; of one beyond the limit the beginning alone."""
    with path.open("rb") as raw:
        file = gzip.open(raw) if path.suffix == ".gz" else raw
        taken = 0
        try:
            while line := file.readline(_LINE + 1):
                size, rest = 0, line
                while rest:
                    size += len(rest)
                    if taken + size > _EXPANSION * raw.tell() + _LINE:
                        raise ValueError(
                            f"{path} expands to more than {_EXPANSION} times its size: unpack it first if it is sound"
                        )
                    rest = b"" if rest.endswith(b"\n") else file.readline(_LINE)
                taken += size
                bar.update(raw.tell() - bar.n)
                yield line, size
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def _decode(text: str, source: str) -> Any:
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


def _other_format(line: bytes) -> str:
    """What a file is whose first line is this, with the way out; empty: it may be JSON lines."""
    if line.startswith(b"\x1f\x8b"):
        return "is gzip: name it .jsonl.gz"
    if line.startswith(b"PAR1"):
        return "is Parquet: name it .parquet"
    if not (encoding := json.detect_encoding(line)).startswith("utf-8"):
        return f"is {encoding[:6].upper()}, not UTF-8: {_ICONV}"
    start = line.removeprefix(b"\xef\xbb\xbf").strip()
    if start.startswith(b"[") or start == b"{":
        return "is JSON over the whole file, not one object a line: jq -c '.[]' FILE makes that of an array"
    if _HEADER.fullmatch(start):
        return "is a table with separators (CSV), not one JSON object a line: convert it, or save it as Parquet"
    return ""


def _read_parquet(path: Path, bar: tqdm, columns: Collection[str] | None) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path}: reading Parquet needs pyarrow (pip install pyarrow)") from error
    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        bar.unit, bar.total = "rows", file.metadata.num_rows
        if bar.total > _EXPANSION * path.stat().st_size:
            raise ValueError(f"{bar.total} rows in {path.stat().st_size} bytes")
        names = file.schema_arrow.names
        asked = [name for name in names if columns is None or name in columns]
        others = dict.fromkeys((name for name in names if name not in asked), ...)
        for batch in file.iter_batches(batch_size=128, columns=asked):
            for row in batch.to_pylist():
                number += 1
                bar.update()
                yield number, row | others
    except Exception as error:  # whatever the reader comes upon in damaged bytes
        raise ValueError(f"{path} cannot be read as Parquet, after {number} rows: {error}") from error
