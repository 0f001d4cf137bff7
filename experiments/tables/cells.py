"""The cells of a table: what is computed at once, kept on disk as soon as it is there, and never computed twice.

A cell's file is named by what its numbers depend on: the table, the cell (its name says its settings, and its seed
where seeds are computed one by one), the resolved config, the source it ran, float64 or not, and jax. It is written
whole or not at all, so a run that was killed goes on at the first cell that is missing.
"""

import concurrent.futures
import hashlib
import importlib
import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import ml_collections

from experiments.tables.harness import Row, UsageError, cell_names
from experiments.tables.sources import source_hash
from prefjax import state_files

OWN = "+"  # a cell whose name begins with it is of a user's own objective: "+module:loss"


class Cell(NamedTuple):
    """What one process needs to compute a cell: the table's module by name, its config as plain values."""

    module: str
    config: Mapping[str, Any]
    name: str
    float64: bool
    file: Path

    @property
    def cached(self) -> bool:
        return self.file.exists()


def cells_of(module: ModuleType, config: ml_collections.ConfigDict, own: Sequence[str], cache: Path) -> list[Cell]:
    """The cells of a table in their order, then those of the user's own objectives.

    Raises:
        NotRun: the table needs something that is not here.
    """
    names = [*cell_names(module, config), *(OWN + name for name in own)]
    return [_cell(module, config.to_dict(), name, cache) for name in names]


def _cell(module: ModuleType, config: Mapping[str, Any], name: str, cache: Path) -> Cell:
    float64 = module.TABLE.float64
    theirs = [name[len(OWN) :].partition(":")[0]] if name.startswith(OWN) and ":" in name else []
    source = source_hash(module.__name__, theirs)
    key = json.dumps([module.__name__, name, config, source, float64, jax.__version__], sort_keys=True, default=str)
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    return Cell(module.__name__, config, name, float64, cache / f"{digest}.json")


def rows_of(cells: Sequence[Cell], jobs: int = 1) -> Iterator[list[Row]]:
    """The rows of every cell, in their order: from its file, or computed and kept there.

    Args:
        jobs: how many processes compute; with 1 it is this one.
    """
    missing = [cell for cell in cells if not cell.cached]
    if jobs > 1 and len(missing) > 1:
        context = multiprocessing.get_context("spawn")  # a fork of a process that runs jax may hang
        with concurrent.futures.ProcessPoolExecutor(min(jobs, len(missing)), mp_context=context) as pool:
            done = {cell.file: pool.submit(_compute, cell) for cell in missing}
            for cell in cells:
                if cell.file in done:
                    done[cell.file].result()
                yield _read(cell)
        return
    for cell in cells:
        yield _read(cell)


def _read(cell: Cell) -> list[Row]:
    """A damaged file is put aside, named, and its cell computed again."""
    kept = state_files.read_or_put_aside(cell.file)
    if "rows" not in kept:
        _compute(cell)
        kept = state_files.read_object(cell.file)
    return [Row(*row) for row in kept["rows"]]


def _compute(cell: Cell) -> None:
    module = importlib.import_module(cell.module)
    with jax.enable_x64(cell.float64):
        rows = list(module.run(ml_collections.ConfigDict(cell.config), cell.name))
    if not rows:
        raise UsageError(f"{cell.module}: the cell {cell.name!r} has no rows")
    cell.file.parent.mkdir(parents=True, exist_ok=True)
    about = {"module": cell.module, "cell": cell.name, "config": cell.config}
    state_files.write_whole(cell.file, json.dumps({**about, "rows": rows}, default=str))
