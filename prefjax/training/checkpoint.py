"""Checkpoints through Orbax: train state, data position, and the identity of the run and its reference."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from prefjax.training.step import TrainState


@dataclasses.dataclass
class DataPosition:
    """A data iterator's state, in the shape Grain's Orbax handler saves: one JSON file per process."""

    state: dict

    def get_state(self) -> bytes:
        return json.dumps(self.state).encode()

    def set_state(self, state: bytes) -> None:
        self.state = json.loads(state)

    def start_prefetch(self) -> None:
        """Nothing runs ahead here; the iterator itself is rebuilt from `state`."""


class Checkpointer:
    """Saves and restores {state, data position, identity} under `directory`, one folder per step.

    Args:
      keep: how many of the newest checkpoints stay.
      identity: JSON-able facts that must be equal on resume (initial parameters' hash, reference, data).
    """

    def __init__(self, directory: Path, *, keep: int = 2, identity: dict[str, Any]):
        self.directory = Path(directory).resolve()
        self.identity = identity
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """Newest complete step, None when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data_state: dict) -> None:
        """Starts saving in the background; `close` (or the next save) waits for it."""
        if step == self.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_present(state)),
                data=grain.checkpoint.CheckpointSave(DataPosition(data_state)),
                identity=ocp.args.JsonSave(self.identity),
            ),
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict]:
        """The newest state, placed as `like` (arrays or shapes with shardings), and the data position.

        Raises:
          ValueError: the checkpoint belongs to a run with another identity; names every difference.
        """
        step = self.latest_step()
        saved = self._manager.restore(step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())).identity
        changed = [
            f"{name}: checkpoint has {saved.get(name)!r}, this run {self.identity.get(name)!r}"
            for name in sorted({*saved, *self.identity})
            if saved.get(name) != self.identity.get(name)
        ]
        if changed:
            raise ValueError(
                f"{self.directory} was written by another run. Use a new --workdir, or undo: " + "; ".join(changed)
            )
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _present(like))
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(shapes),
                data=grain.checkpoint.CheckpointRestore(DataPosition({})),
            ),
        )
        return TrainState(**restored.state), restored.data.state

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def _present(state: TrainState) -> dict[str, Any]:
    """The parts of a state that this run has: a run without one of them can be continued by versions without it."""
    return {name: part for name, part in state._asdict().items() if part is not None}


def load_identity(workdir: Path) -> dict[str, Any]:
    """The identity that a run's newest checkpoint was saved with; empty where there is no checkpoint."""
    directory = Path(workdir).resolve() / "checkpoints"
    if not directory.is_dir():
        return {}
    with ocp.CheckpointManager(directory) as manager:
        step = manager.latest_step()
        if step is None:
            return {}
        return manager.restore(step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())).identity


def is_finished(workdir: Path) -> bool:
    """Whether a run's newest checkpoint is that of its last step."""
    directory = Path(workdir).resolve() / "checkpoints"
    if not directory.is_dir():
        return False
    with ocp.CheckpointManager(directory) as manager:
        last = manager.latest_step()
    return last is not None and last == load_identity(workdir)["steps"]


def load_params(workdir: Path, like: Any) -> Any:
    """Parameters of the newest checkpoint in a run's working directory: the part that `like` names, placed as it says.

    Args:
      like: {"policy": ..., and "value": ... where wanted} of arrays, or of shapes with shardings.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    directory = Path(workdir).resolve() / "checkpoints"
    if not directory.is_dir():
        raise FileNotFoundError(f"no checkpoints in {workdir}: it must be the --workdir of an earlier run")
    with ocp.CheckpointManager(directory) as manager:
        step = manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"{directory} holds no complete checkpoint")
        shapes = {"params": jax.tree.map(ocp.utils.to_shape_dtype_struct, like)}
        partial = ocp.args.PyTreeRestore(
            shapes, restore_args=ocp.checkpoint_utils.construct_restore_args(shapes), partial_restore=True
        )
        return manager.restore(step, args=ocp.args.Composite(state=partial)).state["params"]


def parameter_hash(params: Any) -> str:
    """sha256 over paths, dtypes, shapes and bytes of every array: the identity of a set of parameters."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        array = np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if spread else leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
