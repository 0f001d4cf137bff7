"""run.json: what a stage's run is made of, and every session that worked on it, with the code of each.

    objective, seed, steps, config    the stage as it was asked for
    context                           positions that the policy was made for, as its Hugging Face folder says; or null
    data                              of either split: folder, source, number of trees, content hash
    initial_policy, reference         where they came from, and a hash of their parameters
    start_check                       loss of the first batch, its closed form, largest |log pi - log ref|; null: none
    sessions                          a list that only grows: when, by which command, on what, from and to which step

A session that was killed has no `ended`.
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

import prefjax
from prefjax.state_files import read_or_put_aside, write_whole

PACKAGES = tuple(
    "jax jaxlib flax optax orbax-checkpoint grain numpy tensorflow-datasets array-record transformers tokenizers "
    "safetensors ml-collections libtpu jax-cuda12-plugin jax-cuda13-plugin".split()
)
LARGEST_PATCH = 1_000_000  # bytes; a larger difference is data, or belongs in a commit
_MOST_NAMES = 50  # of changed files in run.json


class Session:
    """One process's work on a run; `reached` says how far it came."""

    def __init__(self, path: Path, record: dict[str, Any]):
        self._path, self._record = path, record

    def reached(self, step: int, *, finished: bool) -> None:
        self._record["sessions"][-1] |= {"to_step": step, "outcome": "finished" if finished else "stopped"}

    def save(self) -> None:
        if jax.process_index():
            return
        write_whole(self._path, json.dumps(self._record, indent=1, default=str, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def session(workdir: Path, facts: Mapping[str, Any], *, from_step: int) -> Iterator[Session]:
    """Adds a session to `workdir`/run.json, which is made if absent; writes it at the start and at the end.

    Args:
      facts: of the run, JSON-able; a fact that is None leaves that of an earlier session.
    """
    path = workdir / "run.json"
    old = {} if jax.process_index() else read_or_put_aside(path)
    now = {name: value for name, value in facts.items() if value is not None}
    entry = {"started": _time(), "ended": None, "from_step": from_step, "to_step": None, "outcome": None}
    if not jax.process_index():
        workdir.mkdir(parents=True, exist_ok=True)
        entry |= session_facts() | {"code": code_state(workdir)}
    record = dict.fromkeys(facts) | old | now
    record["sessions"] = [*old.get("sessions", []), entry]
    current = Session(path, record)
    current.save()
    try:
        yield current
    except BaseException as error:
        entry["outcome"] = f"{type(error).__name__}: {error}".strip(": ")
        raise
    finally:
        entry["ended"] = _time()
        current.save()


def session_facts() -> dict[str, Any]:
    """The command of this process, and what it runs on."""
    devices = jax.devices()
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "command": shlex.join(sys.orig_argv),
        "directory": os.getcwd(),
        "host": platform.node(),
        "platform": platform.platform(),
        "devices": {"count": len(devices), "kind": devices[0].device_kind, "processes": jax.process_count()},
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": versions,
    }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    versions = {
        name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain")
    }
    devices = jax.devices()
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "CPU cores": os.cpu_count(),
        "Python": platform.python_version(),
        **versions,
    }


def code_state(workdir: Path) -> dict[str, Any]:
    """Version and git state of this package's code; where it is changed, the changes as a patch file in `workdir`.

    The patch holds tracked files and new Python files, so that `git checkout COMMIT && git apply FILE` gives the code
    back; other new files are named.

    Returns:
      version, commit (None, and `why`, outside a repository), dirty, changed (lines of `git status`), and patch, the
      file's name (None, and `why`, when it would exceed LARGEST_PATCH).
    """
    package = Path(prefjax.__file__).resolve().parent
    state: dict[str, Any] = {"version": prefjax.__version__}
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        root = Path(_git(package, "rev-parse", "--show-toplevel").strip())
        commit = _git(root, "rev-parse", "HEAD").strip()
        outside = [".", f":(exclude){workdir.resolve().relative_to(root)}"] if _inside(workdir, root) else ["."]
        changed = _git(root, "status", "--porcelain", "--", *outside).splitlines()
        state |= {"commit": commit, "dirty": bool(changed), "changed": changed[:_MOST_NAMES]}
        if len(changed) > _MOST_NAMES:
            state["changed"].append(f"... and {len(changed) - _MOST_NAMES} more")
        if changed:
            state |= _save_patch(workdir, _difference(root, outside))
    except FileNotFoundError:
        state |= {"commit": None, "why": "git is not installed"}
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        state |= {"commit": None, "why": f"{package} is in no git repository that can be read: {said[0]}"}
    return state


def _save_patch(workdir: Path, patch: str) -> dict[str, Any]:
    data = patch.encode(errors="surrogateescape")
    if not data:
        return {"patch": None, "why": "only files that are no code are new"}
    if len(data) > LARGEST_PATCH:
        return {"patch": None, "why": f"the difference has {len(data)} bytes, above {LARGEST_PATCH}: commit it"}
    name = f"code-{hashlib.sha256(data).hexdigest()[:12]}.patch"
    (workdir / name).write_bytes(data)
    return {"patch": name}


def _difference(root: Path, paths: list[str]) -> str:
    """Everything that differs from HEAD, new Python files included; the repository's own index stays as it is."""
    with tempfile.TemporaryDirectory() as scratch:
        index = Path(scratch) / "index"
        shutil.copyfile(root / _git(root, "rev-parse", "--git-path", "index").strip(), index)
        new = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *paths).split("\0")
        new = [name for name in new if name.endswith(".py")]
        if new:
            _git(root, "add", "--intent-to-add", "--", *new, index=index)
        return _git(root, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-color", "--", *paths, index=index)


def _git(directory: Path, *arguments: str, index: Path | None = None) -> str:
    environment = os.environ | ({} if index is None else {"GIT_INDEX_FILE": str(index)})
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments],
        capture_output=True,
        check=True,
        timeout=60,
        env=environment,
        encoding="utf-8",
        errors="surrogateescape",
    )
    return done.stdout


def _inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root) and path.resolve() != root


def _time() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
