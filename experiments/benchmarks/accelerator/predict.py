"""Plans every cell of the table for one chip that is not here, as `experiments.plan` does, and keeps the peaks.

COMMAND   python -m experiments.benchmarks.accelerator.predict h200
          In an environment with requirements-aot.txt, as of `experiments.plan`; JAX_PLATFORMS=cpu. Writes
          predictions.json beside this file, to be committed before the chip is there.
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import jax

from experiments.benchmarks.accelerator.table import PREDICTIONS, Size, sample
from experiments.benchmarks.shapes import MODELS
from experiments.benchmarks.training import OPTIMIZER, branches_of, place
from prefjax.fit import ahead
from prefjax.fit.chips import find_slice
from prefjax.losses import OBJECTIVES
from prefjax.training.mesh import MeshConfig, make_mesh
from prefjax.training.scoring import Setup


def predict(chip_name: str, size: Size) -> Iterator[dict[str, Any]]:
    """Of every cell: data, layout, reference, positions of a step, and `peak`, bytes on one device."""
    where = find_slice(chip_name)
    chip = where.chip
    devices = ahead.absent_devices(
        chip.platform, where.shape, chip=chip.name, megacore=chip.megacore, target=chip.target
    )
    mesh = make_mesh(MeshConfig(), list(devices))
    model = dataclasses.replace(MODELS[size.model], dtype=size.dtype)
    for data in size.data:
        trees = sample(data, size)
        for layout, reference in itertools.product(size.layouts, size.references):
            placement = place(trees, layout, branches_of(trees), micro_batch=size.micro_batch)
            setup = Setup(model, OBJECTIVES["dpo"], reference, accumulation=placement.accumulation, mesh=mesh)
            _, memory = ahead.compile_train_step(setup, OPTIMIZER, placement.shape)
            cell = {"data": data, "layout": layout, "reference": reference}
            yield cell | {"positions": placement.positions, "peak": memory.peak}


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    (chip_name,) = sys.argv[1:]
    found = []
    for cell in predict(chip_name, Size()):
        print(cell, flush=True)
        found.append(cell)
    kept = json.loads(PREDICTIONS.read_text()) if PREDICTIONS.exists() else {}
    PREDICTIONS.write_text(json.dumps(kept | {chip_name: found}, indent=1) + "\n")
