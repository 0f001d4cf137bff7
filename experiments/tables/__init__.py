"""Reproduced tables and figures of papers: one table = one file, `experiments/tables/<paper>/<table>.py`.

Such a file has

    a docstring        its title, then COMMAND, TIME and RESULT, the protocol, and what to change for a first experiment
    TABLE              what it reproduces, how long it takes, which result columns it shows
    SETTINGS           the table's rows
    CLAIMS             what must hold, each a measurement with a bound
    PROTOCOL, SIZES    the config at the size :cpu, and what differs from it at :smoke (seconds), :long and :paper
    cells(config)      -> names of what is computed at once, and kept on disk as soon as it is there; else all is one
    run(config, cell)  -> the tidy result rows of one cell
    plot(results)      -> the paper's figure; its docstring is the alt text
    own_settings(name) -> the rows of a user's own objective, where the table takes some; their cell is "+name"

and everything else (seeds, intervals, verdicts, Markdown, files, comparison with the reference run) is in harness.py,
cells.py, running.py, verdicts.py and figures.py; enumerable.py and bandit.py are worlds in which rewards, KL and
optima are exact sums; language_model.py trains one by the commands, for tables whose reference run is of the size
:long. The paper's own statements are in `<paper>/paper.toml`, a known-good run of each table in `<paper>/reference/`,
errata and deviations in `<paper>/NOTES.md`.
"""

import importlib
import pkgutil
from types import ModuleType

from experiments.tables.harness import UsageError


def table_ids() -> list[str]:
    """Every table there is, as `paper.table`, found by looking into the folders."""
    papers = [package.name for package in pkgutil.iter_modules(__path__) if package.ispkg]
    return [
        f"{paper}.{module.name}"
        for paper in papers
        for module in pkgutil.iter_modules(importlib.import_module(f"{__name__}.{paper}").__path__)
        if not module.name.startswith("_")
    ]


def load_table(table_id: str) -> ModuleType:
    """The module of one table.

    Raises:
        UsageError: there is no such table; the message lists those there are.
    """
    if table_id not in table_ids():
        raise UsageError(f"no table {table_id!r}; there are: {', '.join(table_ids())}")
    return importlib.import_module(f"{__name__}.{table_id}")
