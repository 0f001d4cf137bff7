"""Trains: an optional SFT stage, the preference stage, then samples and a report. Continues where it was stopped.

python -m experiments.train --config=configs/quickstart.py:dpo --workdir=runs/dpo --config.loss.beta=0.2
"""

import dataclasses
import shlex
import sys
import time
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.door import RunConfig, remember, run_config
from experiments.samples import report_run
from prefjax.training.loop import StopRequest
from prefjax.training.stage import StageResult, run_stage

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with get_config(argument), as in configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything the run makes goes; the same one continues a run.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "One of several processes: calls jax.distributed.initialize(). Clusters JAX knows describe themselves; elsewhere "
    "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. All processes share --workdir.",
)
_INTERRUPTED = 130  # the shell's exit code for Ctrl-C


def train(run: RunConfig, workdir: Path, stop: StopRequest, seconds: dict[str, float]) -> StageResult:
    """Runs the stages that are not finished yet; stops after the running step when asked."""
    stage, should_stop = run.stage, lambda step: stop.requested
    data = Path(stage.data.directory or workdir / "data")
    if run.sft is not None:
        print("== SFT", flush=True)
        started = time.perf_counter()
        result = run_stage(run.sft, workdir / "sft", data, should_stop=should_stop)
        seconds["SFT"] = time.perf_counter() - started
        if not result.finished:
            return result
        stage = dataclasses.replace(stage, init_from=str(workdir / "sft"))
    print(f"== {stage.objective}", flush=True)
    started = time.perf_counter()
    result = run_stage(stage, workdir, data, should_stop=should_stop)
    seconds[stage.objective] = time.perf_counter() - started
    return result


def main(_) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Orbax tells every step of every save at INFO
    if _DISTRIBUTED.value:
        jax.distributed.initialize()
    workdir = Path(_WORKDIR.value)
    if not jax.config.jax_compilation_cache_dir:  # JAX_COMPILATION_CACHE_DIR shares compiled programs between runs
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    run = run_config(_CONFIG.value)
    remember(_CONFIG.value, workdir)
    command = shlex.join(["python", "-m", "experiments.train", *sys.argv[1:]])
    seconds: dict[str, float] = {}
    with StopRequest() as stop:
        result = train(run, workdir, stop, seconds)
        if not result.finished:
            print(f"stopped, and saved. To continue:\n  {command}", flush=True)
            sys.exit(_INTERRUPTED)
    if jax.process_index():
        return  # one report is enough
    print(f"report: {report_run(run, _CONFIG.value, result, workdir, command, seconds)}", flush=True)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
