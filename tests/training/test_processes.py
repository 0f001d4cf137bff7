"""Two real processes, two simulated devices each, train as one process with four does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import dataclasses, sys
from pathlib import Path
import jax
index, count, port, workdir = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, index)
assert (jax.process_count(), jax.device_count()) == (count, 4)
from prefjax.training.loop import LoopConfig
from prefjax.training.mesh import MeshConfig
from prefjax.training.stage import run_stage
from tests.training.test_run import DPO
config = dataclasses.replace(DPO, mesh=MeshConfig(2, 2, 1), train=LoopConfig(steps=4, log_every=2))
result = run_stage(config, workdir, workdir / "data")
print("EVALUATED", result.eval_metrics["loss"], result.eval_metrics["prompts"])
"""


def run_processes(count, workdir):
    """What every process evaluated at the end."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={4 // count} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(index), str(count), str(port), str(workdir)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert all(process.returncode == 0 for process in started), outputs[0][-3000:]
    lines = [next(line for line in output.splitlines() if line.startswith("EVALUATED")) for output in outputs]
    return [tuple(map(float, line.split()[1:])) for line in lines]


def test_two_processes_train_as_one(tmp_path):
    (alone,) = run_processes(1, tmp_path / "one")
    first, second = run_processes(2, tmp_path / "two")
    assert first == second
    assert first == pytest.approx(alone, rel=1e-5) and alone[1] == 16
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1]) == 3, "one process writes the metrics"
