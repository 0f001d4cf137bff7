"""Where metrics go: metrics.jsonl always; TensorBoard event files and Weights & Biases where `train.writers` asks."""

import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from prefjax.state_files import read_or_put_aside, write_whole

# name -> (the package it needs, the command that installs it)
WRITERS = {
    "tensorboard": ("tensorboardX", "pip install -r requirements-loggers.txt"),
    "wandb": ("wandb", "pip install -r requirements-loggers.txt"),
}


@runtime_checkable
class Writer(Protocol):
    """Takes metrics of increasing steps, by split: "train" or "eval"."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None: ...


def check_installed(names: Sequence[str]) -> None:
    """Raises ModuleNotFoundError that says how to install what is missing."""
    for package, how in (WRITERS[name] for name in names):
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(
                f"train.writers={tuple(names)!r} needs the package {package}, which is not installed: {how}"
            )


class Writers:
    """metrics.jsonl and the named writers as one; of several processes only the first writes.

    Leaving it as a context closes all of them, also after an error.

    Args:
      resume_step: the step training continues from (0: from the start); no writer keeps a later one twice.
      config: shown beside the curves where a writer can.
    """

    def __init__(self, names: Sequence[str], workdir: Path, *, resume_step: int, config: Mapping[str, Any]):
        check_installed(names)
        self._writers: list[MetricsFile | TensorBoard | WeightsAndBiases] = []
        self._there: set[tuple[int, str]] = set()
        if jax.process_index():
            return
        file = MetricsFile(workdir / "metrics.jsonl", resume_step=resume_step)
        self._writers.append(file)
        self._there = {(line["step"], line["split"]) for line in file.kept if line["step"] == resume_step}
        if "tensorboard" in names:
            self._writers.append(TensorBoard(workdir / "tensorboard", resume_step=resume_step))
        if "wandb" in names:
            self._writers.append(WeightsAndBiases(workdir, config=config))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """What metrics.jsonl has from the session before, as an evaluation that comes again, is not written twice."""
        for writer in self._writers if (step, split) not in self._there else ():
            writer.write(step, split, values)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for writer in self._writers:
            writer.close(failed=kind is not None)


class MetricsFile:
    """metrics.jsonl: one object per line, {"step": int, "split": "train" | "eval", name: value, ...}.

    On resume, lines past the restored step are cut, so that a repeated step is never written twice; damaged ones, as a
    last one that is not whole, are left out and named.
    """

    def __init__(self, path: Path, *, resume_step: int = 0):
        self.path = path
        lines = [_metrics_of(line) for line in path.read_bytes().splitlines()] if path.exists() else []
        if None in lines:
            numbers = ", ".join(str(number) for number, line in enumerate(lines, start=1) if line is None)
            print(f"{path}: damaged and left out: line {numbers}", file=sys.stderr, flush=True)
        self.kept = [line for line in lines if line is not None and line["step"] <= resume_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(json.dumps(line) + "\n" for line in self.kept))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        # One that is gone, with its folder or disk, is not begun anew without the lines before.
        with open(self.path, "a", opener=lambda path, how: os.open(path, how & ~os.O_CREAT)) as file:
            file.write(json.dumps({"step": step, "split": split, **values}) + "\n")

    def close(self, *, failed: bool) -> None:
        """Every line is already on disk."""


def _metrics_of(line: bytes) -> dict[str, Any] | None:
    """None where it is no line of metrics."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(values, dict) and type(values.get("step")) is int and values.get("split") in ("train", "eval")
    return values if whole else None


class TensorBoard:
    """Scalars "<split>/<name>" in event files; each session has a file of its own.

    Its first event tells TensorBoard to forget, of the files before, all steps that come again.
    """

    def __init__(self, directory: Path, *, resume_step: int = 0):
        import tensorboardX

        # Names of event files have whole seconds: the suffix keeps sessions of the same second apart.
        self._writer = tensorboardX.SummaryWriter(
            str(directory), purge_step=resume_step + 1, filename_suffix=f".{resume_step}.{secrets.token_hex(2)}"
        )

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Scalars "<split>/<name>" of one run at Weights & Biases, whose id wandb.json keeps for the sessions after.

    Project, entity and mode are W&B's own variables: WANDB_PROJECT (here "prefjax" by default), WANDB_ENTITY,
    WANDB_MODE=offline. A run there only grows, so what a session before sent is not sent again: a resumed run repeats
    it number for number.
    """

    def __init__(self, workdir: Path, *, config: Mapping[str, Any]):
        import wandb

        self._path = workdir / "wandb.json"
        workdir.mkdir(parents=True, exist_ok=True)
        saved = read_or_put_aside(self._path) or {"id": secrets.token_hex(6), "sent": {}}
        self._id, self._sent = saved["id"], saved["sent"]  # id of the run; split -> newest step sent
        self._save()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "prefjax"),
            name="/".join(workdir.resolve().parts[-2:]),
            id=self._id,
            resume="allow",
            dir=str(workdir),
            config=dict(config),
            allow_val_change=True,  # how often is logged may change between sessions
        )

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        if step <= self._sent.get(split, 0):
            return
        self._run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)
        self._sent[split] = step
        self._save()

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))

    def _save(self) -> None:
        write_whole(self._path, json.dumps({"id": self._id, "sent": self._sent}) + "\n")
