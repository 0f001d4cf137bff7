"""The door: a locked ConfigDict goes in, frozen dataclasses come out, and nothing below ever sees a ConfigDict."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from prefjax.models import huggingface
from prefjax.models.families import NUMERICS
from prefjax.training.rewards import RewardModel, load_reward_model
from prefjax.training.stage import StageConfig, find_objective

# Changing these between runs in one workdir changes no number.
_CADENCE = {"log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "profile_steps", "writers"}
# What a run's folder holds, for whoever opens it.
FOLDER = """# A run of prefjax

Some of this is there only once the run got so far, or was asked for it.

| | |
| --- | --- |
| `config.json` | every option of the run; the same command continues it only with the same ones |
| `run.json` | data and its hashes, reference, first loss; each session's command, time, machine, versions, commit |
| `code-*.patch` | what the code had besides that commit: `git checkout COMMIT && git apply FILE` |
| `metrics.jsonl` | a line for each time metrics were logged; names, formulas and units: `prefjax/training/metrics.py` |
| `tensorboard/`, `wandb/`, `wandb.json` | the same for other tools; the id of the run at Weights & Biases |
| `report.md`, `plot.png`, `result.json` | the finished run on a page, its picture, its numbers |
| `overview.md`, `overview.png`, `overview.json` | curves and what is odd about them, by `experiments.report` |
| `evaluation.json` | metrics of the last `experiments.evaluate` |
| `checkpoints/` | training state, one folder a step |
| `sft/` | the stage before, a folder like this one |
| `data/` | prepared data; its manifests say what happened to every record |
| `reference/` | precomputed reference log-probs |
| `profile/` | traces of steps (`train.profile_steps`), for XProf, TensorBoard's profiler or Perfetto |
| `compiled/` | compiled programs; may be deleted |

    python -m experiments.report --runs=FOLDER,ANOTHER        curves side by side, what differs, what is odd
    python -m experiments.evaluate --workdir=FOLDER           held-out metrics, also of another file
    python -m experiments.export --workdir=FOLDER --output=D  a Hugging Face folder
"""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Samples for the report: held-out prompts (0: no sampling), and tokens a response may have."""

    prompts: int = 256
    max_new_tokens: int = 128
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run: an optional SFT stage, then the preference stage, then samples and a report."""

    stage: StageConfig
    sft: StageConfig | None
    sampling: SamplingConfig


def run_config(config: ml_collections.ConfigDict) -> RunConfig:
    """Checks and freezes a config as `configs/quickstart.py` makes it.

    Where training starts from a Hugging Face folder, or from a run that did, the architecture is the folder's, and so
    is the tokenizer if `data.tokenizer` is empty.

    Raises:
      ValueError: names the field that is unknown, missing, of the wrong type, or that the objective does not take.
    """
    values = config.to_dict()
    sft, sampling = values.pop("sft", None), values.pop("sampling", {})
    folder = origin((sft or {}).get("init_from") or values.get("init_from") or "")
    if folder is not None:
        values["model"] = _model_of(folder, values.get("model", {}))
        data = values.get("data", {})
        values["data"] = {**data, "tokenizer": data.get("tokenizer") or folder}
    stage = build(StageConfig, values, "config")
    find_objective(stage.objective).check_options(stage.loss)
    sft_stage = None
    if sft is not None:
        if stage.init_from:
            raise ValueError("config.init_from and config.sft both say where the policy starts: keep one of them")
        apart = ("reference", "value_network", "reward_head", "lora")
        inherited = {name: value for name, value in values.items() if name not in apart}
        # Data methods are for the preference stage; SFT takes its own, in config.sft.data.
        inherited["data"] = values.get("data", {}) | {"methods": ""}
        own = inherited | {"objective": "sft", "loss": {}, "reference": {"kind": "none"}, "accumulation": 1} | sft
        sft_stage = build(StageConfig, own, "config.sft")
    return RunConfig(stage=stage, sft=sft_stage, sampling=build(SamplingConfig, sampling, "config.sampling"))


def reward_scorer(workdir: str | Path) -> RewardModel:
    """The reward model of a run: called with prompts and the completions of each, it returns a score for each.

    Raises:
      ValueError: the run trained a policy.
      FileNotFoundError: there is no run.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{workdir} holds no config.json: it must be the --workdir of a training run")
    return load_reward_model(run_config(ml_collections.ConfigDict(json.loads(path.read_text()))).stage, workdir)


def origin(source: str) -> str | None:
    """The Hugging Face folder that a policy goes back to, through the runs between; None: it began from a seed.

    Args:
      source: a Hugging Face folder, a run's workdir, or "".
    """
    path = Path(source) / "config.json"
    if not source or not path.is_file():
        return None
    if huggingface.is_checkpoint(source):
        return source
    config = json.loads(path.read_text())
    return origin((config.get("sft") or {}).get("init_from") or config.get("init_from") or "")


def _model_of(folder: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The model options of a Hugging Face folder with those given beside it, which must not contradict it."""
    read = dataclasses.asdict(huggingface.read_config(folder))
    wrong = [
        f"config.model.{name}={value!r}, not {read[name]!r}"
        for name, value in given.items()
        if name in read and name not in NUMERICS and value != read[name] and (name, value) != ("vocab_size", 0)
    ]
    if wrong:
        raise ValueError(f"{'; '.join(wrong)} as {folder} says: leave architecture to the folder")
    return read | {name: value for name, value in given.items() if name not in read or name in NUMERICS}


def build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """A dataclass from a nested mapping, by field names and types; lists become tuples.

    Raises:
      ValueError: names the field by its full path.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"{path}.{unknown[0]} is not an option; {path} takes {', '.join(fields)}")
    made = {}
    for name, field in fields.items():
        if name in values:
            made[name] = _convert(hints[name], values[name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{path}.{name} is missing")
    return cls(**made)


def _convert(hint: Any, value: Any, path: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and types.NoneType in options:
        return None
    kind = next(option for option in options if option is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        return build(kind, value, path)
    origin = typing.get_origin(kind) or kind
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if origin is Mapping and isinstance(value, Mapping):
        return dict(value)
    if type(value) is not origin:
        raise ValueError(f"{path}={value!r} must be of type {getattr(origin, '__name__', origin)}")
    return value


def remember(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes config.json and README.md into the workdir, or checks that a run continued there has the same config.

    Raises:
      ValueError: lists the options that differ; logging and checkpoint cadence may.
    """
    path = workdir / "config.json"
    new = json.loads(config.to_json_best_effort())
    if path.exists():
        old = json.loads(path.read_text())
        changed = [
            f"{name}: {a!r} there, {b!r} now"
            for name, a, b in _differences(old, new)
            if name.split(".")[-1] not in _CADENCE
        ]
        if changed:
            raise ValueError(
                f"{workdir} holds a run with another config ({'; '.join(changed)}). "
                "Give the same options to continue it, or a new --workdir"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(new, indent=1) + "\n")
    (workdir / "README.md").write_text(FOLDER)


def _differences(old: Any, new: Any, path: str = "config"):
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from _differences(old.get(name), new.get(name), f"{path}.{name}")
    elif old != new:
        yield path, old, new
