"""Files -> named columns: the rows of all files that `readers` reads, the arrays of .npy and .npz."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from prefjax.data.account import Rejection
from prefjax.data.readers import TABLES, find_files, read_rows
from prefjax.data.spellings import cell

ARRAYS = (".npy", ".npz")


def read_columns(files: str | Path | Iterable[str | Path], *, progress: bool = True) -> dict[str, list[Any]]:
    """The columns of all rows of some files, in order; a value that a row does not have is None.

    Args:
        files: paths, folders or glob patterns, as `read_records` takes them. Numbers and lists in cells of CSV and TSV
            are made such.
    Raises:
        FileNotFoundError: a path or pattern matches nothing.
        ValueError: names the row that is no object, or the file that has another suffix or is damaged.
    """
    rows: list[dict[str, Any]] = []
    for path in find_files(files):
        table = path.name.removesuffix(".gz").endswith(TABLES)
        for source, row in read_rows(path, progress=progress):
            if not isinstance(row, dict):
                detail = row.detail if isinstance(row, Rejection) else f"got {type(row).__name__}"
                raise ValueError(f"{source}: a row must be an object with columns, {detail}")
            rows.append({name: cell(value) for name, value in row.items()} if table else row)
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, or the one of an .npy file by the file's name; rows are their first axis.

    Raises:
        ValueError: another suffix, an array without rows, or one that only unpickling could read.
    """
    path = Path(path)
    if path.suffix not in ARRAYS:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(ARRAYS)}")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as loaded:
            arrays = dict(loaded)
    else:
        arrays = {path.stem: np.load(path, allow_pickle=False)}
    for name, array in arrays.items():
        if not array.ndim:
            raise ValueError(f"{path}: array {name!r} is a single number, not one entry for each row")
    return arrays
