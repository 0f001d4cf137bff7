"""prefjax's side of the comparison with TRL: the same request, the same result file, a process of its own.

COMMAND   python -m experiments.benchmarks.trl_own REQUEST.json RESULT.json      (started by experiments.benchmarks.trl)
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.training import lay_out, place
from prefjax.losses import objective
from prefjax.models.huggingface import load_huggingface
from prefjax.rows.arrays import Branches
from prefjax.rows.layout import attach_reference
from prefjax.rows.store import MemoryTrees
from prefjax.rows.trees import TokenTree
from prefjax.training.feed import to_devices
from prefjax.training.mesh import MeshConfig, make_mesh
from prefjax.training.optimizers import OptimizerConfig, make_optimizer
from prefjax.training.provenance import machine
from prefjax.training.reference import make_scorer
from prefjax.training.scoring import Setup
from prefjax.training.step import init_state, jit_train_step
from prefjax.training.tables import over_trees

BRANCHES = Branches(responses=2)


def token_trees(pairs: list[dict[str, list[int]]]) -> list[TokenTree]:
    """The pairs' ids, unchanged, chosen first."""
    ids = lambda values: np.array(values, np.int32)
    targets = np.array([1, 0], np.float32)
    return [
        TokenTree(
            ids(pair["prompt_ids"]), (ids(pair["chosen_ids"]), ids(pair["rejected_ids"])), targets, example_id=row
        )
        for row, pair in enumerate(pairs)
    ]


def train(request: dict[str, Any]) -> dict[str, Any]:
    """Trains for `steps` steps, each on all pairs, and says how long each took.

    setting: micro_batch (positions per forward), head_chunk, remat, attention.
    """
    setting = request["setting"]
    began = time.perf_counter()
    trees, mesh = token_trees(request["pairs"]), make_mesh(MeshConfig(), jax.devices()[:1])
    dtype = "float32" if request["device"] == "cpu" else "bfloat16"
    numerics = dict(dtype=dtype, remat=setting["remat"], attention=setting["attention"])
    model, params = load_huggingface(request["model"], **numerics)
    placement = place(trees, "shared_packed", BRANCHES, micro_batch=setting["micro_batch"])
    rows = lay_out(trees, placement)
    setup = Setup(
        model=model,
        objective=objective("dpo", beta=request["beta"]),
        reference=request["reference"],
        accumulation=placement.accumulation,
        head_chunk=setting["head_chunk"],
        mesh=mesh,
    )
    table = None
    if request["score"] or request["reference"] == "precomputed":
        micro = dataclasses.replace(placement.shape, rows=placement.shape.rows // placement.accumulation)
        table = over_trees(make_scorer(setup, params), mesh, MemoryTrees(trees), micro)
    if request["reference"] == "precomputed":
        rows = attach_reference(rows, table)
    state = init_state(setup, params, make_optimizer(OptimizerConfig(learning_rate=request["learning_rate"]), 1))
    del params
    step, frozen, state = jit_train_step(setup, state), state.frozen, state.changing()
    compiled = step.lower(state, frozen, to_devices(mesh, rows)).compile()
    seconds_before = time.perf_counter() - began
    clock = [(time.perf_counter(), time.process_time())]
    losses = []
    for _ in range(request["steps"]):
        state, metrics = compiled(state, frozen, to_devices(mesh, rows))
        losses.append(metrics["loss"])
        clock.append((time.perf_counter(), time.process_time()))
    wall, cpu = zip(*clock, strict=True)
    held = {} if request["device"] == "cpu" else {"peak_gb": jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9}
    return held | {
        "seconds": np.diff(wall).tolist(),
        "cpu_seconds": np.diff(cpu).tolist(),
        "seconds_before": seconds_before,
        "losses": losses,
        "logps": None if table is None else table.tolist(),
        "positions": placement.positions,
        "shape": [placement.shape.rows, placement.shape.row_length, placement.shape.scored_length],
        "versions": machine(),
    }


if __name__ == "__main__":
    request_path, result_path = map(Path, sys.argv[1:])
    result_path.write_text(json.dumps(train(json.loads(request_path.read_text()))))
