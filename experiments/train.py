"""Trains: the stages of a config one after the other, then samples and a report. Continues where it was stopped.

python -m experiments.train --config=configs/quickstart.py:dpo --workdir=runs/dpo --config.loss.beta=0.2

A folder without a checkpoint is free for any run. One with a checkpoint is continued by the same command, and begun
anew, with other options too, by --overwrite, which deletes once data, options and model are found usable. One process
at a time trains in a folder.
"""

from pathlib import Path

import jax
from absl import flags

from experiments.command import command_line, start_command
from experiments.config_flag import define_config
from experiments.distributed_flag import define_distributed
from prefjax.interrupts import StopRequest
from prefjax.options import stated
from prefjax.policies.run_report import report_run
from prefjax.state_files import naming, staying
from prefjax.training.processes import Agreed, alone_in, processes
from prefjax.training.runs import check_run, clear_run, record_config, run_config, train_run

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything the run makes goes; the same one continues a run.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Deletes the run that the workdir holds, and begins anew there.")
_DISTRIBUTED = define_distributed()


def main(_) -> None:
    with processes(_DISTRIBUTED.value), StopRequest() as stop, naming(_WORKDIR.value):
        train(stop)


def train(stop: StopRequest) -> None:
    workdir, values = Path(_WORKDIR.value), _CONFIG.value.to_dict()
    if not jax.config.jax_compilation_cache_dir:  # JAX_COMPILATION_CACHE_DIR shares compiled programs between runs
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    run = run_config(values)
    seconds: dict[str, float] = {}
    with alone_in(workdir), staying(workdir):
        if _OVERWRITE.value:
            check_run(run, workdir)
            clear_run(run, workdir)
        record_config(values, workdir)
        result = train_run(run, workdir, should_stop=Agreed(lambda: stop.requested), seconds=seconds)
        if not result.finished:
            stop.end()
        command = command_line("train")
        page = report_run(run, stated(values), result, workdir, command, seconds)
    if page is not None:
        print(f"report: {page}", flush=True)


if __name__ == "__main__":
    start_command(main, required=["config", "workdir"])
