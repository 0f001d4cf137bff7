"""A precomputed reference: every branch scored once by the step's own path, stored, refused when it is another's."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32
from tqdm import tqdm

from prefjax.data.rows import Rows
from prefjax.training.feed import to_devices
from prefjax.training.mesh import parameter_shardings, row_sharding
from prefjax.training.scoring import Setup, branch_logps

Identity = dict[str, Any]


def reference_identity(setup: Setup, parameter_hash: str, data_hash: str) -> Identity:
    """What a score table depends on: parameters, numerics, the encoded data, and its branches.

    Layout, packing, mesh and chunk sizes are left out: they do not change a log-prob.

    Args:
      data_hash: content hash of the prepared trees, mismatched baselines included.
    """
    return {
        "parameters": parameter_hash,
        "dtype": setup.model.dtype,
        "data": data_hash,
        "responses": setup.branches.responses,
        "baseline": setup.branches.baseline,
        "auxiliary": setup.branches.auxiliary,
    }


def score_table(
    setup: Setup, reference_params: Any, batches: Iterable[Rows], *, examples: int, steps: int
) -> Float32[np.ndarray, "n N"]:
    """[n, N] log pi_ref of every branch of every example, nats; 0 for a branch an example lacks.

    Args:
      batches: NumPy rows of this process that cover every example once.
      examples: n.
      steps: number of batches, for the progress bar.

    Raises:
      ValueError: some example was never scored, or a score is not finite.
    """
    table = np.full((examples, setup.branches.count), np.nan, np.float32)
    score = jax.jit(
        lambda params, rows: branch_logps(setup, params, rows),
        in_shardings=(parameter_shardings(setup.mesh, reference_params), row_sharding(setup.mesh)),
    )
    for rows in tqdm(batches, total=steps, desc="scoring the reference", unit="batch", disable=None):
        on_devices = to_devices(setup.mesh, rows)
        pair = (score(reference_params, on_devices), on_devices.example_id)
        logps, ids = multihost_utils.process_allgather(pair, tiled=True)
        real = ids >= 0
        table[ids[real]] = logps[real]
    if not np.isfinite(table).all():
        missing = np.flatnonzero(~np.isfinite(table).all(1))
        raise ValueError(f"{len(missing)} of {examples} examples have no finite reference score, first {missing[0]}")
    return table


def save_table(directory: Path, identity: Identity, table: Float32[np.ndarray, "n N"]) -> Path:
    """Writes `<key>.npy` beside `<key>.json` (its identity), the array last and atomically."""
    path = _path(directory, identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(identity, indent=1))
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, table)
    partial.rename(path)
    return path


def find_table(directory: Path, identity: Identity) -> Float32[np.ndarray, "n N"] | None:
    """The table of exactly this identity in a cache directory, or None."""
    path = _path(directory, identity)
    return load_table(path, identity) if path.exists() else None


def load_table(path: Path, identity: Identity) -> Float32[np.ndarray, "n N"]:
    """Reads one table.

    Raises:
      ValueError: it was scored for something else; names every difference.
    """
    saved = json.loads(Path(path).with_suffix(".json").read_text())
    changed = [
        f"{name} {saved.get(name)!r} != {value!r}" for name, value in identity.items() if saved.get(name) != value
    ]
    if changed:
        raise ValueError(f"{path} does not belong to this run ({'; '.join(changed)}): score the reference again")
    return np.load(path)


def _path(directory: Path, identity: Identity) -> Path:
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return Path(directory) / f"{key}.npy"
