"""Reproduces one table of a paper, or all of them.

    python -m experiments.run --list                                the tables there are, with their last verdict
    python -m experiments.run ipo.fig1_fig2                         one of them, into results/ipo.fig1_fig2/
    python -m experiments.run ipo.fig1_fig2 --help                  what it does, and its config
    python -m experiments.run ipo.fig1_fig2:smoke                   the same in seconds; also :cpu, :long, :paper
    python -m experiments.run ipo.fig1_fig2 --config.steps=36000    another value for a field of its config
    python -m experiments.run ipo.fig1_fig2 --check                 also compare with the committed reference run
    python -m experiments.run ipo.fig1_fig2 --keep_reference        make this run the reference run
    python -m experiments.run dpo.equivalence --rows=+mine:loss     beside its rows those of an objective of yours
    python -m experiments.run ipo.fig1_fig2 --workdir=DIR           the results elsewhere
    python -m experiments.run --all --tier=cpu --jobs=2             all tables at one size, and results/scoreboard.md

Cells that were computed before with the same config, source and jax are read from --cache (results/cache), so a run
that was stopped goes on where it was.

Exit status: 0 if every claim holds (and the run agrees with the reference), 1 if not, 2 for a wrong command line or a
table that needs what is not here. With --all a table that cannot run here is counted, and no failure.
--debug adds tracebacks to errors.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from experiments.command import refuse, tell_errors
from experiments.tables import load_table, running, scoreboard, table_ids, verdicts
from experiments.tables.harness import CPU, NOT_RUN, SIZES, NotRun, UsageError, get_config, load_paper
from prefjax import state_files


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv` (without the program's name) and returns the exit status."""
    names = [arg for arg in argv if not arg.startswith("-")]
    try:
        if "--list" in argv:
            return _list()
        if "--help" in argv and not names:
            print(__doc__)
            return 0
        if "--all" in argv:
            return _all(argv, names)
        if len(names) != 1:
            raise UsageError(f"give one table of: {', '.join(table_ids())}; write options as --name=value")
        table_id, _, size = names[0].partition(":")
        module = load_table(table_id)
        config = get_config(table_id, module, size or CPU)
        if "--help" in argv:
            print(module.__doc__, *(f"--config.{field}={value}" for field, value in config.items()), sep="\n")
            return 0
        return _one(argv, table_id, size or CPU, config)
    except (UsageError, flags.Error) as error:
        return refuse(error)


def _list() -> int:
    """One line a table, with the verdict of the last run in results/ or, where there is none, of the reference run."""
    for table_id in table_ids():
        module = load_table(table_id)
        paper = load_paper(Path(module.__file__).with_name("paper.toml"))["paper"]
        here = Path("results", table_id, "result.json")
        last = state_files.read_or_put_aside(here) or running.committed(table_id)
        verdict = last["verdict"] + (f" ({last['seconds']:.0f} s{', here' * here.exists()})" if last["rows"] else "")
        source = f"{paper['name']}, arXiv {paper['arxiv']}" if paper["arxiv"] else paper["name"]
        print(f"{table_id:20} {verdict:24} {source}: {module.TABLE.shows}")
    return 0


def _flags(argv: Sequence[str], workdir: str, config: ml_collections.ConfigDict | None = None) -> flags.FlagValues:
    """The flags of a command, in a FlagValues of their own: one process can run several tables."""
    values = flags.FlagValues()
    if config is not None:
        fields = [arg.removeprefix("--config.").split("=")[0] for arg in argv if arg.startswith("--config.")]
        unknown = [field for field in fields if field not in config]
        if unknown:
            raise UsageError(f"no config field {', '.join(unknown)}; there are: {', '.join(config)}")
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=list(argv))
        flags.DEFINE_string("rows", "", "+module:loss,...: objectives of yours as rows.", flag_values=values)
    else:
        flags.DEFINE_bool("all", True, "Every table.", flag_values=values)
        flags.DEFINE_enum("tier", CPU, SIZES, "The size of all tables.", flag_values=values)
    flags.DEFINE_string("workdir", workdir, "Folder for the results.", flag_values=values)
    flags.DEFINE_string("cache", "results/cache", "Folder of the cells that were computed.", flag_values=values)
    flags.DEFINE_bool("check", False, "Also compare with the committed reference run.", flag_values=values)
    flags.DEFINE_bool("keep_reference", False, "Make this run the reference run.", flag_values=values)
    flags.DEFINE_integer("jobs", 1, "Processes that compute cells.", lower_bound=1, flag_values=values)
    values(["experiments.run", *argv])
    return values


def _one(argv: Sequence[str], table_id: str, size: str, config: ml_collections.ConfigDict) -> int:
    default = f"results/{table_id}{'' if size == CPU else '-' + size}"
    values = _flags(argv, default, config)
    own = running.read_own(values.rows)
    request = running.Request(
        table_id,
        size,
        values.config,
        Path(values.workdir),
        Path(values.cache),
        own,
        values.jobs,
        values.check,
        values.keep_reference,
    )
    module = load_table(table_id)
    print(f"{verdicts.header(module.__doc__)}\n", flush=True)
    outcome = running.run_table(request, module)
    result = outcome.result
    print(f"{verdicts.markdown_table(result)}\n")
    print("\n".join(verdicts.claim_lines(result)), end="\n\n")
    if outcome.found is not None:
        print("\n".join(outcome.found) or "agrees with the reference run")
    print(verdicts.last_line(result))
    print(f"{outcome.cached} of {outcome.cells} cells cached in {values.cache}")
    print(f"{values.workdir}/: table.md plot.png result.json rows.jsonl")
    return 0 if outcome.fine else 1


def _all(argv: Sequence[str], names: Sequence[str]) -> int:
    """Every table at one size, one line each as it ends, and the scoreboard of the run."""
    if names:
        raise UsageError(f"--all runs every table, so {names[0]} cannot stand beside it")
    values = _flags(argv, "results")
    workdir, results, fine = Path(values.workdir), [], True
    for table_id in table_ids():
        module = load_table(table_id)
        folder = workdir / f"{table_id}{'' if values.tier == CPU else '-' + values.tier}"
        check = values.check and running.reference(table_id, module) is not None
        try:
            config = get_config(table_id, module, values.tier)
            request = running.Request(
                table_id,
                values.tier,
                config,
                folder,
                Path(values.cache),
                jobs=values.jobs,
                check=check,
                keep=values.keep_reference,
            )
            outcome = running.run_table(request, module)
        except NotRun as error:
            results.append(running.not_run(table_id, module, str(error)))
            print(f"{table_id}: {NOT_RUN} · {error}", flush=True)
            continue
        results.append(outcome.result)
        fine = fine and outcome.fine
        print("\n".join([verdicts.last_line(outcome.result), *(outcome.found or [])]), flush=True)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "scoreboard.md").write_text(scoreboard.page(results), encoding="utf-8")
    print(f"{workdir}/scoreboard.md")
    return 0 if fine else 1


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--debug"]
    tell_errors(debug=len(words) < len(sys.argv[1:]))
    sys.exit(main(words))
