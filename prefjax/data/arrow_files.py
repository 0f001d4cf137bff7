"""Parquet, Arrow and Feather -> rows."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prefjax.data.text_files import EXPANSION, what_begins

_BATCH = 128  # rows made Python objects at once


def read_arrow(path: Path, bar: tqdm, columns: Collection[str] | None) -> Iterator[tuple[int, Any]]:
    """The rows of a file as (number from 1, row).

    Args:
        columns: those to read; others have `...` for a value. None means all.
    Raises:
        ImportError: without pyarrow.
        ValueError: names the file that is damaged or of another format.
    """
    kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{path}: reading {kind} needs pyarrow (pip install pyarrow)") from error
    if kind == "Arrow":
        _refuse_other(path)
    number = 0
    bar.unit = "rows"
    try:
        for batch, others in (_parquet if kind == "Parquet" else _ipc)(path, bar, columns):
            for row in batch.to_pylist():
                number += 1
                bar.update()
                yield number, row | others
    except Exception as error:  # whatever the reader comes upon in damaged bytes
        raise ValueError(f"{path} cannot be read as {kind}, after {number} rows: {error}") from error


def _parquet(path: Path, bar: tqdm, columns: Collection[str] | None) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Batches of the asked columns, and the others with `...`."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
    bar.total = file.metadata.num_rows
    _check_count(path, bar.total)
    asked, others = _divided(file.schema_arrow.names, columns)
    for batch in file.iter_batches(batch_size=_BATCH, columns=asked):
        yield batch, others


def _ipc(path: Path, bar: tqdm, columns: Collection[str] | None) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The same of an Arrow file, which Feather is too, or of an Arrow stream, as the library datasets writes."""
    import pyarrow as pa
    import pyarrow.ipc

    with pa.memory_map(str(path)) as source:
        file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = pa.ipc.open_file(source) if file else pa.ipc.open_stream(source)
        asked, others = _divided(reader.schema.names, columns)
        read = 0
        for whole in (reader.get_batch(i) for i in range(reader.num_record_batches)) if file else reader:
            whole.validate(full=True)
            read += whole.num_rows
            _check_count(path, read)
            chosen = whole.select(asked)
            for start in range(0, whole.num_rows, _BATCH):
                yield chosen.slice(start, _BATCH), others


def _divided(names: list[str], columns: Collection[str] | None) -> tuple[list[str], dict[str, Any]]:
    asked = [name for name in names if columns is None or name in columns]
    return asked, dict.fromkeys((name for name in names if name not in asked), ...)


def _check_count(path: Path, rows: int) -> None:
    if rows > EXPANSION * path.stat().st_size:
        raise ValueError(f"{rows} rows in {path.stat().st_size} bytes")


def _refuse_other(path: Path) -> None:
    with path.open("rb") as file:
        beginning = file.read(6)
    if beginning.startswith((b"PAR1", b"FEA1")):
        raise ValueError(f"{path} is {what_begins(beginning)}")
