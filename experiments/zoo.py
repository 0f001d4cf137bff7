"""Runs the quickstart for every objective from one SFT stage, and tabulates what came out.

python -m experiments.zoo --workdir=runs/zoo                                    all of them; the same command goes on
python -m experiments.zoo --workdir=runs/zoo --objectives=dpo,simpo --steps=40  some, for fewer steps

Any --config.X=Y holds for all objectives. Each has its own folder in the workdir with the report of its run; beside
them lie comparison.md, comparison.json and frontier.png, written anew after every run. What is finished is not run
again.
Exit status: 1 if a run failed, 130 if it was stopped.
"""

import dataclasses
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from configs import quickstart
from experiments.command import command_line, start_command
from experiments.config_flag import complete, define_changes
from prefjax.analysis import Outcome, read_outcome, write_comparison
from prefjax.interrupts import StopRequest
from prefjax.losses import COMPOSITIONS, OBJECTIVES
from prefjax.options import stated
from prefjax.policies.run_report import report_run
from prefjax.training.processes import alone_in
from prefjax.training.runs import record_config, run_config
from prefjax.training.stage import run_stage

_CONFIG = define_changes(quickstart.get_config("dpo"), "configs/quickstart.py:dpo")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything goes; the same one continues.")
_OBJECTIVES = flags.DEFINE_list(
    "objectives", [], "Which ones, or sums that have a name, with commas between; empty: all."
)
_STEPS = flags.DEFINE_integer("steps", None, "Steps of each preference stage, in place of the quickstart's.")


class _Stopped(Exception):
    """The user asked to stop; everything is saved."""


def main(_) -> None:
    known = (*OBJECTIVES, *COMPOSITIONS)
    stages_before = {name for name, one in OBJECTIVES.items() if one.requires.imitates}
    names = _OBJECTIVES.value or [name for name in known if name not in stages_before]
    if unknown := sorted(set(names) - set(known)):
        raise app.UsageError(f"--objectives: no {', '.join(unknown)}; choose of {', '.join(known)}")
    workdir = Path(_WORKDIR.value)
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    command = command_line("zoo")
    with StopRequest() as stop, alone_in(workdir):
        try:
            outcomes = run_all(names, workdir, command, stop)
        except _Stopped:
            stop.end()
    print((workdir / "comparison.md").read_text(), flush=True)
    sys.exit(any(outcome.failure.startswith("failed") for outcome in outcomes))


def run_all(names: Sequence[str], workdir: Path, command: str, stop: StopRequest) -> list[Outcome]:
    """Outcomes in the order of the names; a run that cannot be, or that fails, is one that says why."""
    start_from_sft(workdir, stop)
    outcomes: list[Outcome] = []
    seconds: list[float] = []
    for place, name in enumerate(names, start=1):
        family = "sums" if name in COMPOSITIONS else OBJECTIVES[name].apply.__module__.rsplit(".", 1)[-1]
        if why := refusal(name):
            outcomes.append(Outcome(name, family, failure=f"refused: {why}"))
            continue
        new, started = not is_reported(workdir, name), time.perf_counter()
        try:
            outcomes.append(run_one(name, family, workdir, command, stop))
        except _Stopped:
            raise
        except Exception as error:  # one objective must not take the others with it
            traceback.print_exc()
            outcomes.append(Outcome(name, family, failure=f"failed: {type(error).__name__}: {error}"))
        if new:
            jax.clear_caches()  # the next objective compiles other programs; shared ones are found on disk
            write_comparison(workdir, outcomes, command)
            seconds.append(time.perf_counter() - started)
            left = sum(not (is_reported(workdir, later) or refusal(later)) for later in names[place:])
            total = tqdm.format_interval(sum(seconds) / len(seconds) * left)
            print(f"runs to go: {left}, about {total} at the pace of the {len(seconds)} before", flush=True)
    write_comparison(workdir, outcomes, command)
    return outcomes


def is_reported(workdir: Path, name: str) -> bool:
    return (workdir / name / "result.json").exists()


def refusal(name: str) -> str:
    """Why an objective cannot be run; empty: it can."""
    try:
        run_config(objective_config(name).to_dict())
    except ValueError as error:
        return str(error)
    return ""


def start_from_sft(workdir: Path, stop: StopRequest) -> None:
    """The SFT stage that all objectives start from, in workdir/sft."""
    stage = run_config(objective_config("dpo").to_dict()).find("sft")
    record_config(dataclasses.asdict(stage), workdir / "sft")
    print("== SFT", flush=True)
    if not run_stage(stage, workdir / "sft", workdir / "data", should_stop=stopping(stop)).finished:
        raise _Stopped


def run_one(name: str, family: str, workdir: Path, command: str, stop: StopRequest) -> Outcome:
    """Trains and reports one objective, or reads the report that an earlier command made.

    Raises:
      ValueError: the folder holds a run with another config.
    """
    config, directory = objective_config(name).to_dict(), workdir / name
    run = run_config(config)
    record_config(config, directory)
    if not is_reported(workdir, name):
        print(f"== {name}", flush=True)
        started = time.perf_counter()
        stage = dataclasses.replace(run.stage, init_from=str(workdir / "sft"))
        result = run_stage(stage, directory, workdir / "data", should_stop=stopping(stop))
        if not result.finished:
            raise _Stopped
        report_run(run, stated(config), result, directory, command, {name: time.perf_counter() - started})
    return read_outcome(directory, family)


def objective_config(name: str) -> ml_collections.ConfigDict:
    """The quickstart of one objective with what the command line says for all of them."""
    config = complete(quickstart.get_config(name), f"configs/quickstart.py:{name}")
    config.update_from_flattened_dict(config_flags.get_override_values(flags.FLAGS["config"]))
    if _STEPS.value:
        config.train.steps = _STEPS.value
    return config


def stopping(stop: StopRequest):
    return lambda step: stop.requested


if __name__ == "__main__":
    start_command(main, required=["workdir"])
