"""prefjax's side of the comparison with TRL: the same request, the same result file, a process of its own.

COMMAND   python -m experiments.benchmarks.trl_own REQUEST.json RESULT.json      (started by experiments.benchmarks.trl)
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.training import place
from experiments.samples import machine
from prefjax.data.layout import attach_reference, build_rows
from prefjax.data.rows import Branches, Rows
from prefjax.data.trees import TokenTree
from prefjax.losses import OBJECTIVES
from prefjax.models.huggingface import load_huggingface
from prefjax.training.feed import to_devices
from prefjax.training.mesh import MeshConfig, make_mesh
from prefjax.training.metrics import finish
from prefjax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from prefjax.training.reference import score_table
from prefjax.training.scoring import Setup
from prefjax.training.step import init_state, make_train_step

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
    model, params = load_huggingface(request["model"], remat=setting["remat"], attention=setting["attention"])
    placement = place(trees, "shared_packed", BRANCHES, micro_batch=setting["micro_batch"])
    rows = build_rows([[trees[i] for i in row] for row in placement.members], placement.shape)
    setup = Setup(
        model=model,
        objective=OBJECTIVES["dpo"],
        branches=BRANCHES,
        options={"beta": request["beta"]},
        reference=request["reference"],
        accumulation=placement.accumulation,
        head_chunk=setting["head_chunk"],
        mesh=mesh,
    )
    table = None
    if request["score"] or request["reference"] == "precomputed":
        parts = _micro_batches(rows, placement.accumulation)
        table = score_table(setup, params, parts, examples=len(trees), steps=len(parts))
    if request["reference"] == "precomputed":
        rows = attach_reference(rows, table)
    optimizer_config = OptimizerConfig(learning_rate=request["learning_rate"])
    optimizer = make_optimizer(optimizer_config, 1)
    reference = jax.tree.map(jnp.copy, params) if request["reference"] == "live" else None
    state = init_state(mesh, optimizer, {"policy": params})
    del params
    step = make_train_step(setup, optimizer, make_schedule(optimizer_config, 1), state)
    compiled = step.lower(state, reference, to_devices(mesh, rows)).compile()
    seconds_before = time.perf_counter() - began
    clock = [(time.perf_counter(), time.process_time())]
    losses = []
    for _ in range(request["steps"]):
        state, metrics = compiled(state, reference, to_devices(mesh, rows))
        losses.append(finish(metrics)["loss"])
        clock.append((time.perf_counter(), time.process_time()))
    wall, cpu = zip(*clock, strict=True)
    return {
        "seconds": np.diff(wall).tolist(),
        "cpu_seconds": np.diff(cpu).tolist(),
        "seconds_before": seconds_before,
        "losses": losses,
        "logps": None if table is None else table.tolist(),
        "positions": placement.positions,
        "shape": [placement.shape.rows, placement.shape.row_length, placement.shape.scored_length],
        "versions": machine(),
    }


def _micro_batches(rows: Rows, parts: int) -> list[Rows]:
    split = lambda part: jax.tree.map(lambda x: np.split(x, parts)[part], rows)
    return [split(part) for part in range(parts)]


if __name__ == "__main__":
    request_path, result_path = map(Path, sys.argv[1:])
    result_path.write_text(json.dumps(train(json.loads(request_path.read_text()))))
