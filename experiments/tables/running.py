"""One table from its config to its files: cells, rows, verdicts, and the comparison with its reference run."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_collections

from experiments.tables import load_table, verdicts
from experiments.tables.cells import OWN, cells_of, rows_of
from experiments.tables.harness import (
    NOT_RUN,
    SECONDS,
    NotRun,
    Results,
    Setting,
    UsageError,
    cell_names,
    get_config,
    load_paper,
)


class Request(NamedTuple):
    """What to run.

    Args:
        own: a user's own objectives, "module:loss" or a name of the zoo.
        cache: the folder of the cells.
        check: whether to compare with the committed reference run.
        keep: whether to make this run the reference run.
    """

    table_id: str
    size: str
    config: ml_collections.ConfigDict
    workdir: Path
    cache: Path
    own: Sequence[str] = ()
    jobs: int = 1
    check: bool = False
    keep: bool = False


class Outcome(NamedTuple):
    """The result as in result.json, how many of the cells were cached, and what differs from the reference run (None
    where it was not compared)."""

    result: dict[str, Any]
    cached: int
    cells: int
    found: list[str] | None = None

    @property
    def fine(self) -> bool:
        """Every claim holds, and nothing differs from the reference."""
        return not self.found and all(claim["holds"] for claim in self.result.get("claims", ()))


def reference_folder(table_id: str, module: ModuleType) -> Path:
    """Where a table's known-good run is committed."""
    return Path(module.__file__).parent / "reference" / table_id.split(".")[1]


def reference(table_id: str, module: ModuleType) -> dict[str, Any] | None:
    """result.json of the committed reference run; None where there is none."""
    file = reference_folder(table_id, module) / "result.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def own_settings(table_id: str, module: ModuleType, own: Sequence[str]) -> list[Setting]:
    """The rows of a user's own objectives.

    Raises:
        UsageError: this table takes none, or not this one.
    """
    if own and not hasattr(module, "own_settings"):
        takers = [name for name, other in _takers()]
        raise UsageError(f"--rows: {table_id} takes no further objectives; these do: {', '.join(takers)}")
    return [setting for name in own for setting in module.own_settings(name)]


def _takers() -> list[tuple[str, ModuleType]]:
    from experiments.tables import table_ids

    tables = [(name, load_table(name)) for name in table_ids()]
    return [(name, module) for name, module in tables if hasattr(module, "own_settings")]


def run_table(request: Request, module: ModuleType) -> Outcome:
    """Runs a table and writes its files into the work folder.

    Raises:
        NotRun: it needs something that is not here.
        UsageError: it cannot be run as asked.
    """
    kept = None
    if request.check:
        kept = reference(request.table_id, module)
        if kept is None:
            raise UsageError(f"--check: {request.table_id} has no reference run")
        verdicts.require_same_config(request.config, kept)
    if request.keep and (request.own or request.size != module.TABLE.size):
        raise UsageError(f"--keep_reference keeps a run at the size :{module.TABLE.size}, without --rows")
    own = own_settings(request.table_id, module, request.own)
    start, spent = time.monotonic(), _processor_seconds()
    cells = cells_of(module, request.config, request.own, request.cache)
    cached = sum(cell.cached for cell in cells)
    rows = [row for part in rows_of(cells, request.jobs) for row in part]
    results = Results(rows)
    told = sum(row.value for row in rows if row.metric == SECONDS)
    result = verdicts.summarize(
        request.table_id, module, request.config, results, told or time.monotonic() - start, own
    )
    if not told:
        result["processor_seconds"] = round(_processor_seconds() - spent, 1)
    verdicts.write(request.workdir, result, rows, module.plot(results))
    if request.keep:  # its commit is the one that will hold it
        kept_result = {**result, "environment": {**result["environment"], "git_commit": None}}
        verdicts.write(reference_folder(request.table_id, module), kept_result, None, module.plot(results))
    found = verdicts.differences(result, kept) if kept is not None else None
    return Outcome(result, cached, len(cells), found)


def _processor_seconds() -> float:
    """What this process and those of its children that ended have used of all cores."""
    return sum(os.times()[:4])


def not_run(table_id: str, module: ModuleType, reason: str) -> dict[str, Any]:
    """What stands in the place of result.json for a table that was not run."""
    paper = load_paper(Path(module.__file__).with_name("paper.toml"))["paper"]
    shows = module.TABLE.shows
    return {"id": table_id, "paper": paper, "shows": shows, "verdict": NOT_RUN, "reason": reason, "rows": []}


def committed(table_id: str) -> dict[str, Any]:
    """The reference run of a table, or what says that, and why, there is none."""
    module = load_table(table_id)
    kept = reference(table_id, module)
    if kept is not None:
        return kept
    try:
        cell_names(module, get_config(table_id, module, module.TABLE.size))
    except NotRun as error:
        return not_run(table_id, module, str(error))
    return not_run(table_id, module, f"no reference run yet: {verdicts.command(module.__doc__)} --keep_reference")


def read_own(text: str) -> list[str]:
    """The objectives of --rows=+module:loss,+name.

    Raises:
        UsageError: one does not begin with +.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [name for name in names if not name.startswith(OWN)]
    if wrong:
        raise UsageError(f"--rows={wrong[0]}: rows are added, so write --rows=+module:loss or --rows=+name")
    return [name[len(OWN) :] for name in names]
