"""Reproduces one table of a paper.

    python -m experiments.run --list                                the tables there are
    python -m experiments.run ipo.fig1_fig2                         one of them, into results/ipo.fig1_fig2/
    python -m experiments.run ipo.fig1_fig2 --help                  what it does, and its config
    python -m experiments.run ipo.fig1_fig2:smoke                   the same experiment in seconds
    python -m experiments.run ipo.fig1_fig2 --config.steps=36000    another value for a field of its config
    python -m experiments.run ipo.fig1_fig2 --check                 also compare with the committed reference run
    python -m experiments.run ipo.fig1_fig2 --workdir=DIR           the results elsewhere

Exit status: 0 if every claim holds (and the run agrees with the reference), 1 if not, 2 for a wrong command line.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import ml_collections
from absl import flags
from ml_collections import config_flags

from experiments.tables import load_table, table_ids, verdicts
from experiments.tables.harness import Results, UsageError, load_paper


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (without the program's name) and returns the exit status."""
    names = [arg for arg in argv if not arg.startswith("-")]
    try:
        if "--list" in argv:
            return _list()
        if "--help" in argv and not names:
            print(__doc__)
            return 0
        if len(names) != 1:
            raise UsageError(f"give one table of: {', '.join(table_ids())}; write options as --name=value")
        table_id, _, arg = names[0].partition(":")
        module = load_table(table_id)
        config = module.get_config(arg)
        if "--help" in argv:
            print(module.__doc__, *(f"--config.{field}={value}" for field, value in config.items()), sep="\n")
            return 0
        values = _parse(argv, config, workdir=f"results/{names[0].replace(':', '-')}")
        return _run(table_id, module, values)
    except (UsageError, flags.Error) as error:
        print(f"experiments.run: {error}", file=sys.stderr)
        return 2


def _list() -> int:
    for table_id in table_ids():
        module = load_table(table_id)
        paper = load_paper(Path(module.__file__).with_name("paper.toml"))["paper"]
        table = module.TABLE
        print(f"{table_id:20} {table.minutes:6.2f} min  {paper['name']}, arXiv {paper['arxiv']}: {table.shows}")
    return 0


def _parse(argv: Sequence[str], config: ml_collections.ConfigDict, workdir: str) -> flags.FlagValues:
    """The flags of one table, in a FlagValues of their own: one process can run several tables."""
    fields = [arg.removeprefix("--config.").split("=")[0] for arg in argv if arg.startswith("--config.")]
    unknown = [field for field in fields if field not in config]
    if unknown:
        raise UsageError(f"no config field {', '.join(unknown)}; there are: {', '.join(config)}")
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=list(argv))
    flags.DEFINE_string("workdir", workdir, "Folder for the results.", flag_values=values)
    flags.DEFINE_bool("check", False, "Also compare with the committed reference run.", flag_values=values)
    values(["experiments.run", *argv])
    return values


def _run(table_id: str, module: ModuleType, values: flags.FlagValues) -> int:
    reference = None
    if values.check:
        file = Path(module.__file__).parent / "reference" / table_id.split(".")[1] / "result.json"
        if not file.exists():
            raise UsageError(f"--check: {table_id} has no reference run")
        reference = json.loads(file.read_text(encoding="utf-8"))
        verdicts.require_same_config(values.config, reference)
    print(f"{verdicts.header(module.__doc__)}\n", flush=True)

    start = time.monotonic()
    rows = list(module.run(values.config))
    results = Results(rows)
    result = verdicts.summarize(table_id, module, values.config, results, time.monotonic() - start)
    verdicts.write(Path(values.workdir), result, rows, module.plot(results))

    print(f"{verdicts.markdown_table(result)}\n")
    print("\n".join(verdicts.claim_lines(result)), end="\n\n")
    found = verdicts.differences(result, reference) if reference else []
    if reference:
        print("\n".join(found) or "agrees with the reference run")
    print(verdicts.last_line(result))
    print(f"{values.workdir}/: table.md plot.png result.json rows.jsonl")
    return 0 if not found and all(claim["holds"] for claim in result["claims"]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
