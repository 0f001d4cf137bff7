"""Runs as their folders describe them, finished or not: metrics, options, sessions, results; seeds grouped."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from prefjax.analysis import statistics
from prefjax.analysis.curves import Rows, curve, last, read_metrics
from prefjax.state_files import read_object

METRICS = "metrics.jsonl"
# Options that change no number of a run, besides the seed that groups may differ in.
_ASIDE = {"seed", "data.directory", "reference.cache"} | {
    f"{stage}train.{name}"
    for stage in ("", "sft.")
    for name in (
        "log_every",
        "eval_every",
        "eval_samples",
        "checkpoint_every",
        "keep_checkpoints",
        "profile_steps",
        "writers",
    )
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run; what its folder lacks is empty.

    metrics  lines of metrics.jsonl
    config   option with dots -> value, of config.json, or of run.json where that is absent
    record   run.json: what the run is made of, and its sessions
    result   result.json: what the report of a finished run measured
    """

    name: str
    metrics: Rows
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def objective(self) -> str:
        return self.config.get("objective") or self.result.get("objective") or "unknown"

    @property
    def last_step(self) -> int:
        """The newest logged step; 0 where none was logged yet."""
        return max((row["step"] for row in self.metrics), default=0)

    @property
    def status(self) -> str:
        """How far it came, and why not further where that is known."""
        planned = self.record.get("steps") or self.config.get("train.steps")
        sessions = self.record.get("sessions", [])
        outcome = sessions[-1]["outcome"] if sessions else None
        if outcome == "finished" or (planned and self.last_step >= planned) or (self.result and not sessions):
            return "finished"
        place = f"step {self.last_step}" + (f" of {planned}" if planned else "")
        if sessions and outcome is None:
            return f"{place}, running or killed"
        return place if outcome is None else f"{place}, {outcome}"

    @property
    def kl(self) -> statistics.Mean | None:
        """KL(trained || starting model) of whole responses from samples, nats; None where nothing was sampled."""
        value = self.result.get("kl")
        return None if value is None else statistics.Mean(**value)

    def values(self, name: str, split: str) -> Float[np.ndarray, "L"]:
        return curve(self.metrics, name, split)[1]

    def newest(self, name: str) -> float | None:
        """The newest held-out value, of training where nothing is held out, or None."""
        held_out = last(self.metrics, name, "eval")
        return last(self.metrics, name, "train") if held_out is None else held_out

    @property
    def accuracy(self) -> statistics.Share | None:
        """Newest reward accuracy with its 95 % interval, of held-out pairs, else of those of a training step."""
        for split in ("eval", "train"):
            value, pairs = (last(self.metrics, name, split) for name in ("reward_accuracy", "pairs"))
            if value is not None and pairs and pairs >= 1:
                return statistics.share(value, round(pairs))
        return None


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed; often only one."""

    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        first = self.runs[0].name
        return first if len(self.runs) == 1 else f"{first} and {len(self.runs) - 1} more seeds"

    def curve(self, name: str, split: str) -> tuple[Int[np.ndarray, "L"], Float[np.ndarray, "L"], Any]:
        """Steps that all runs logged, their mean there, and their standard deviation; None for a single run."""
        curves = [curve(run.metrics, name, split) for run in self.runs]
        steps = curves[0][0]
        for other, _ in curves[1:]:
            steps = np.intersect1d(steps, other)
        values = np.stack([v[np.isin(s, steps)] for s, v in curves])
        return steps, values.mean(0), values.std(0, ddof=1) if len(curves) > 1 else None


def find_runs(folders: Sequence[str | pathlib.Path]) -> list[pathlib.Path]:
    """Folders that hold metrics: those given, and for one that has none, its folders that do, except an SFT stage.

    Raises:
      ValueError: names a folder where there is no run, or one given twice.
    """
    found = []
    for folder in map(pathlib.Path, folders):
        if (folder / METRICS).is_file():
            found.append(folder)
            continue
        inside = sorted(path.parent for path in folder.glob(f"*/{METRICS}") if path.parent.name != "sft")
        if not inside:
            raise ValueError(f"{folder} holds no {METRICS}, nor do the folders in it: give the --workdir of a run")
        found += inside
    resolved = [path.resolve() for path in found]
    twice = [str(path) for path, real in zip(found, resolved, strict=True) if resolved.count(real) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice")
    return found


def read_run(folder: str | pathlib.Path, name: str = "") -> Run:
    """The run of one folder. Raises ValueError for a metrics file that is none."""
    folder = pathlib.Path(folder)
    config, record = _read(folder / "config.json"), _read(folder / "run.json")
    return Run(
        name=name or folder.name,
        metrics=read_metrics(folder / METRICS),
        config=dict(flatten(config or record.get("config", {}))),
        record=record,
        result=_read(folder / "result.json"),
    )


def read_record(folder: str | pathlib.Path) -> dict[str, Any]:
    """A folder's run.json; empty where there is none."""
    return _read(pathlib.Path(folder) / "run.json")


def group_by_seed(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of their first runs. A run whose options are not known is alone."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = {name: value for name, value in run.config.items() if name not in _ASIDE}
        key = json.dumps(same, sort_keys=True, default=str) if run.config else f"alone: {run.name}"
        groups.setdefault(key, []).append(run)
    return [Group(tuple(members)) for members in groups.values()]


def differences(groups: Sequence[Group]) -> list[tuple[str, list[Any]]]:
    """Options in which groups differ, with every group's value; None where a group has no such option.

    Groups without any known option are left out of the comparison.
    """
    configs = [group.runs[0].config for group in groups]
    known = [config for config in configs if config]
    names = dict.fromkeys(name for config in known for name in config if name not in _ASIDE)
    differing = [name for name in names if len({json.dumps(config.get(name), default=str) for config in known}) > 1]
    return [(name, [config.get(name) for config in configs]) for name in differing]


def flatten(values: Mapping[str, Any], prefix: str = ""):
    """(name with dots, value) of a nested mapping, in its order."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read(path: pathlib.Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}
