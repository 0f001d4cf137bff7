"""--distributed by the README's words: real processes, by the command, on one machine."""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from prefjax.training.processes import VARIABLES, join_processes
from tests.compilation import QUICK
from tests.experiments.test_commands import TINY
from tests.started import Started

ROOT = Path(__file__).resolve().parents[2]
DEVICES = 4  # of all processes together
TRAIN = ["train", "--config=configs/quickstart.py:dpo", *TINY]


@contextlib.contextmanager
def start(count, folder, module, *arguments, patience=30):
    """`python -m experiments.MODULE --distributed ARGUMENTS` as `count` processes that share the devices.

    What they print goes to files in the folder, which is made.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={DEVICES // count} {QUICK}"
    environment = os.environ | {
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    program = (
        "import runpy, sys; from prefjax.training import processes; "
        f"processes.PATIENCE = {patience}; sys.argv[0] = 'experiments.{module}'; "
        f"runpy.run_module('experiments.{module}', run_name='__main__')"
    )
    command = [sys.executable, "-u", "-c", program, *arguments, *(["--distributed"] if count > 1 else [])]
    folder.mkdir()
    with contextlib.ExitStack() as running:
        yield [
            running.enter_context(
                Started(
                    command,
                    folder / f"{index}.log",
                    cwd=ROOT,
                    env=environment | dict(zip(VARIABLES, (address, str(count), str(index)), strict=True)),
                )
            )
            for index in range(count)
        ]


def wait(started, codes):
    """What each process printed until it ended with its code."""
    assert [process.ended() for process in started] == list(codes), "\n\n".join(one.said[-3000:] for one in started)
    return [process.said for process in started]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_sample_report_and_evaluate_as_one(tmp_path):
    alone, folder = tmp_path / "alone", tmp_path / "two"
    with start(1, tmp_path / "said_alone", *TRAIN, f"--workdir={alone}") as started:
        wait(started, [0])
    with start(2, tmp_path / "said", *TRAIN, f"--workdir={folder}") as started:
        outputs = wait(started, [0, 0])
    assert ["report: " in output for output in outputs] == [True, False]
    ours, theirs = metrics(folder), metrics(alone)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert "Samples" in (folder / "report.md").read_text()
    evaluate = ["evaluate", f"--workdir={folder}", "--samples=4", "--max_new_tokens=8"]
    with start(2, tmp_path / "said_of_evaluation", *evaluate) as started:
        wait(started, [0, 0])
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["loss"] == pytest.approx(theirs[-1]["loss"], rel=1e-5) and evaluation["sampled_kl"]


LONG = ["--config.sft.train.steps=100000", "--config.sft.train.log_every=1"]


@pytest.mark.slow
def test_one_of_four_that_is_asked_to_stop_stops_all_at_one_step(tmp_path):
    workdir = tmp_path / "run"
    with start(4, tmp_path / "said", *TRAIN, *LONG, f"--workdir={workdir}") as started:
        started[3].until("step 2")
        started[3].process.send_signal(signal.SIGTERM)
        outputs = wait(started, [130] * 4)
    assert all("stopped, and saved" in output for output in outputs)
    (saved,) = (workdir / "sft/checkpoints").glob("[0-9]*")
    assert int(saved.name) == metrics(workdir / "sft")[-1]["step"]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_ends_the_other(victim, tmp_path):
    workdir = tmp_path / "run"
    with start(2, tmp_path / "said", *TRAIN, *LONG, f"--workdir={workdir}", patience=10) as started:
        other = started[1 - victim]
        other.until("step 2")
        started[victim].process.kill()
        killed = time.monotonic()
        assert other.ended(seconds=60) != 0 and time.monotonic() - killed < 30
    # Which of JAX's threads is the first to see it decides the words.
    said = ("another process may be gone", "another task died", "unhealthy")
    assert any(words in other.said for words in said), other.said[-3000:]


CLUSTERS = {
    "SLURM": lambda index: {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    },
    "Open MPI": lambda index: {
        "OMPI_MCA_orte_hnp_uri": f"{4096 * os.getpid()}.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_processes_of_a_cluster_find_each_other(cluster, tmp_path):
    program = (
        "from prefjax.training.processes import join_processes; join_processes(60); "
        "import jax; print(jax.process_index(), jax.process_count())"
    )
    own = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    with contextlib.ExitStack() as running:
        started = [
            running.enter_context(
                Started(
                    [sys.executable, "-c", program],
                    tmp_path / f"{index}.log",
                    cwd=ROOT,
                    env=own | {"JAX_PLATFORMS": "cpu"} | CLUSTERS[cluster](index),
                )
            )
            for index in range(2)
        ]
        outputs = wait(started, [0, 0])
    assert ["0 2" in outputs[0], "1 2" in outputs[1]] == [True, True]


def test_half_of_the_variables_is_refused(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES set, but not JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"):
        join_processes()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    for given, message in (("2", "JAX_PROCESS_ID=2: set it to at least 0 and below 2"), ("x", "no whole number")):
        monkeypatch.setenv("JAX_PROCESS_ID", given)
        with pytest.raises(ValueError, match=message):
            join_processes()


def test_without_a_cluster_the_variables_are_named(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID"):
        join_processes()
