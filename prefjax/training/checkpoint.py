"""Checkpoints through Orbax that prove themselves: train state, data position, the identity of the run, and a proof.

The proof is a JSON item of every checkpoint: fingerprints of all arrays, data position and identity, and a hash over
all of that. Whoever reads a checkpoint reads it here, and holds what was read to the proof; where that fails, the
newest checkpoint that is sound is taken, and a line says so.
"""

import contextlib
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from prefjax.options import differences, merged
from prefjax.training.fingerprints import describe, fingerprints, name_of

T = TypeVar("T")
_MOST_STEPS = 64  # of the newest checkpoints that processes tell each other


class DamagedCheckpointError(ValueError):
    """A checkpoint is not what was saved, or was never complete."""


class NonFiniteStateError(RuntimeError):
    """A state holds NaN or infinite numbers, and is not saved."""


class Proof(NamedTuple):
    """What a checkpoint says of itself.

    identity  what decides the result of the run: equal whenever it is continued
    facts     further ones of the run: `steps`, its length; `epochs`, of which there are so many or None, and before it
              was made longer were; `init_from`, where it started
    position  of the data
    arrays    path -> dtype, shape and fingerprint
    """

    step: int
    identity: dict[str, Any]
    facts: dict[str, Any]
    position: dict[str, Any]
    arrays: dict[str, str]

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self, sort_keys=True).encode()).hexdigest()


class Restored(NamedTuple):
    """What training continues from."""

    state: dict[str, Any]
    proof: Proof


class Checkpointer:
    """Saves and restores state and data position of a run under `directory`, one folder per step.

    Leaving it as a context closes it: what is being written is written to its end.

    Args:
      keep: how many of the newest checkpoints stay.
      identity, facts: see `Proof`; JSON-able.
      defaults: what an identity has where an earlier version did not record it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        identity: dict[str, Any],
        facts: dict[str, Any],
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ):
        self.directory, self._defaults = Path(directory).resolve(), defaults
        self._identity, self._facts = json.loads(json.dumps((identity, facts)))
        logging.getLogger("absl").addFilter(_no_traceback)
        # lightweight: reading what Orbax wrote beside every step would fail where one is damaged.
        options = ocp.CheckpointManagerOptions(lightweight_initialize=True, max_to_keep=keep)
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """Newest complete step, None when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Mapping[str, Any], position: dict[str, Any]) -> None:
        """Starts saving in the background; `close` (or the next save) waits for it.

        Raises:
          NonFiniteStateError: names an array; nothing is saved.
          OSError: this state, or the one before, cannot be written.
        """
        if step == self.latest_step():
            return
        arrays = fingerprints(dict(state))
        bad = {name: found.not_finite for name, found in arrays.items() if found.not_finite}
        if bad:
            name, count = next(iter(bad.items()))
            raise NonFiniteStateError(
                f"step {step}: {name} holds {count} numbers that are not finite, as do {len(bad) - 1} other arrays of "
                f"the state. It is not saved; the newest checkpoint is step {self.latest_step()}"
            )
        texts = {name: found.text for name, found in arrays.items()}
        proof = Proof(step, self._identity, self._facts, position, texts)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(dict(state)),
            proof=ocp.args.JsonSave({**proof._asdict(), "digest": proof.digest()}),
        )
        with _written_to(self.directory):
            self._manager.save(step, args=items)

    def restore(self, like: Mapping[str, Any]) -> Restored | None:
        """The newest sound state's parts, placed as those of `like` (arrays or shapes with shardings); None: no step.

        Damaged checkpoints that are newer are put aside as `damaged-STEP`, so that their steps can be saved again.

        Raises:
          ValueError: the checkpoint belongs to a run with another identity; names every difference.
          DamagedCheckpointError: none is sound.
        """

        def read(step: int) -> Restored:
            proof = _read_proof(self.directory, step)
            there, now = (merged(self._defaults, identity) for identity in (proof.identity, self._identity))
            require_same(self.directory.parent, there, now)
            return Restored(_read_arrays(self.directory, step, proof, dict(like)), proof)

        damaged: list[int] = []
        restored = _newest_sound(self.directory, read, damaged)
        if damaged:
            self._put_aside(damaged)
        return restored

    def _put_aside(self, steps: list[int]) -> None:
        for step in steps if jax.process_index() == 0 else ():
            aside, folder = self.directory / f"damaged-{step}", self.directory / str(step)
            if folder.exists():  # another process may have seen it
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints put aside")
        self._manager.reload()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        """Closes it, after an error too, of which it keeps silent then; not where another process may be gone."""
        if kind is None:
            self.close()
        elif issubclass(kind, Exception) and not issubclass(kind, jax.errors.JaxRuntimeError):
            with contextlib.suppress(OSError):
                self.close()

    def close(self) -> None:
        """Raises OSError where the last state cannot be written."""
        with _written_to(self.directory):
            self._manager.wait_until_finished()
            self._manager.close()


def require_same(workdir: Path, there: Any, now: Any, path: str = "") -> None:
    """Raises ValueError where a run with one identity would continue one with another; names every difference."""
    changed = [f"{name}: {before!r} there, {after!r} now" for name, before, after in differences(there, now, path)]
    if changed:
        raise ValueError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}). Give the same options to continue it, "
            "a new --workdir, or --overwrite, with which experiments.train deletes that run and begins anew"
        )


def load_proof(workdir: str | Path) -> Proof | None:
    """What the newest checkpoint of a run says of itself; None where there is no checkpoint."""
    directory = Path(workdir).resolve() / "checkpoints"
    return _newest_sound(directory, lambda step: _read_proof(directory, step), [])


def is_finished(workdir: str | Path) -> bool:
    """Whether a run's newest checkpoint is that of its last step."""
    proof = load_proof(workdir)
    return proof is not None and proof.step == proof.facts["steps"]


def load_params(workdir: str | Path, like: Any) -> Any:
    """Parameters of the newest sound checkpoint in a run's working directory: the part that `like` names, placed as it
    says. As `load_parts`.

    Args:
      like: {"policy": ..., and "value": ... where wanted} of arrays, or of shapes with shardings.
    """
    return load_parts(workdir, {"params": like})["params"]


def load_parts(workdir: str | Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of the train state of the newest sound checkpoint in a run's working directory.

    Args:
      like: by their names, {"params": ..., "carried": ...}, of arrays, or of shapes with shardings.

    Raises:
      FileNotFoundError: there is no checkpoint.
      DamagedCheckpointError: none is sound.
      ValueError: an array is absent or has another shape; names it.
    """
    directory = Path(workdir).resolve() / "checkpoints"
    if not directory.is_dir():
        raise FileNotFoundError(f"no checkpoints in {workdir}: it must be the --workdir of an earlier run")
    read = lambda step: _read_arrays(directory, step, _read_proof(directory, step), dict(like))
    parts = _newest_sound(directory, read, [])
    if parts is None:
        raise FileNotFoundError(f"{directory} holds no complete checkpoint")
    return parts


@contextlib.contextmanager
def _written_to(directory: Path) -> Iterator[None]:
    """A disk that is full, read-only or gone by one name: Orbax's threads and TensorStore have many for it."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # another process is gone
        raise
    except Exception as error:
        raise OSError(
            f"{directory}: a checkpoint cannot be written ({_first_line(error)}). Make room for it, or have the folder "
            "back and writable; the same command then goes on from the newest one that is there"
        ) from error


def _no_traceback(record: logging.LogRecord) -> bool:
    """Orbax's threads log what fails in them with a traceback; saving, or closing, raises it again."""
    return not (record.exc_info and "orbax" in record.pathname)


def _first_line(error: Exception) -> str:
    return "".join(str(error).strip().splitlines()[:1])[:200] or type(error).__name__


def _steps(directory: Path) -> list[int]:
    """Steps of which any process sees a folder, the newest first: what another does not see, it cannot read."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    steps = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    if jax.process_count() > 1:
        told = np.full(_MOST_STEPS, -1, np.int32)
        told[: len(steps)] = steps[:_MOST_STEPS]
        steps = sorted(set(np.ravel(multihost_utils.process_allgather(told)).tolist()) - {-1}, reverse=True)
    return steps


def _newest_sound(directory: Path, read: Callable[[int], T], damaged: list[int]) -> T | None:
    """What is read of the newest checkpoint that is sound; None where there is none at all. Says what it passed by.

    Args:
      damaged: gets the steps that are not sound.
    """
    said = []
    for step in _steps(directory):
        try:
            value = read(step)
        except DamagedCheckpointError as error:
            damaged.append(step)
            said.append(f"checkpoint {directory / str(step)} is damaged ({error})")
            continue
        if said and jax.process_index() == 0:
            print(f"{'; '.join(said)}: step {step} is taken instead", file=sys.stderr, flush=True)
        return value
    if said:
        raise DamagedCheckpointError(f"{'; '.join(said)}. No other is there: delete {directory} to start anew")
    return None


def _read_proof(directory: Path, step: int) -> Proof:
    def read() -> Proof:
        saved = ocp.JsonCheckpointHandler().restore(directory / str(step) / "proof")
        digest, proof = saved.pop("digest"), Proof(**saved)
        if digest != proof.digest() or step != proof.step:
            raise DamagedCheckpointError("its proof is not what was saved")
        return proof

    return _whole(read, "its proof cannot be read: half-written, or of an earlier version")


def _read_arrays(directory: Path, step: int, proof: Proof, like: Any) -> Any:
    """The arrays that `like` names, held to the proof in the dtype they were saved in, then cast."""
    wanted = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    saved = {name: proof.arrays.get(name, "").rpartition(" ")[0] for name in wanted}  # dtype and shape
    shape = lambda text: text.partition(" ")[2]
    other = [name for name, leaf in wanted.items() if shape(saved[name]) != shape(describe(leaf))]
    if other:
        raise ValueError(
            f"{directory / str(step)}: {other[0]} is {saved[other[0]] or 'absent'} there, not "
            f"{describe(wanted[other[0]])}, and so are {len(other) - 1} other arrays: it was trained with other options"
        )
    shapes = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(
            leaf.shape, np.dtype(saved[name_of(path)].partition(" ")[0]), sharding=leaf.sharding
        ),
        jax.tree.map(ocp.utils.to_shape_dtype_struct, like),
    )
    partial = ocp.args.PyTreeRestore(
        shapes, restore_args=ocp.checkpoint_utils.construct_restore_args(shapes), partial_restore=True
    )
    folder = directory / str(step) / "state"
    read = _whole(lambda: ocp.PyTreeCheckpointHandler().restore(folder, args=partial), "its arrays cannot be read")
    wrong = [name for name, found in fingerprints(read).items() if found.text != proof.arrays[name]]
    if wrong:
        raise DamagedCheckpointError(f"{wrong[0]} and {len(wrong) - 1} other arrays are not what was saved")
    return jax.tree.map(lambda leaf, want: leaf.astype(want.dtype), read, like)


def _whole(read: Callable[[], T], failure: str) -> T:
    """What is read, by all processes or by none.

    Args:
      read: waits for no other process, as Orbax's own `restore` does at its end, where one that failed never comes.

    Raises:
      DamagedCheckpointError: what Orbax and its files raise says nothing about what they were read for.
    """
    value, problem = None, None
    try:
        value = read()
    except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        problem = error if isinstance(error, DamagedCheckpointError) else f"{failure}: {_first_line(error)}"
    if jax.process_count() > 1 and multihost_utils.process_allgather(np.array(problem is not None)).any():
        problem = problem or "another process cannot read it"
    if problem is not None:
        raise DamagedCheckpointError(str(problem))
    return value


def parameter_hash(params: Any) -> str:
    """sha256 over paths, dtypes, shapes and bytes of every array: the identity of a set of parameters."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        array = np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if spread else leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
