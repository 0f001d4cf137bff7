"""Runs: a nested mapping of options becomes stages, checked and frozen; a run's folder says which run it is.

A run is a list of stages, each a folder of its own, each starting from the one before; SFT and every preference
objective are stages alike. The last one lies in the run's own folder.
"""

import dataclasses
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from prefjax.models import hub, huggingface
from prefjax.models.families import NUMERICS
from prefjax.options import build, check_ranges, deciding, merged, option, stated
from prefjax.state_files import read_object, staying, write_whole
from prefjax.training.batches import data_directory
from prefjax.training.checkpoint import load_proof, require_same
from prefjax.training.config import StageConfig, defaults_before
from prefjax.training.mesh import make_mesh
from prefjax.training.optimizers import make_optimizer
from prefjax.training.parameters import tokenizer_of
from prefjax.training.scoring import Setup
from prefjax.training.stage import StageResult, load_splits, make_setup, open_start, run_stage
from prefjax.training.writers import check_installed

# Options that may hold a stage before the run's own, by the name of its folder, with the objective it trains.
EARLIER = {"sft": "sft"}
# Options of a run that an earlier stage does not take over.
_NOT_INHERITED = ("reference", "value_network", "reward_head", "lora")
# What a run's folder holds, for whoever opens it.
FOLDER = """# A run of prefjax

Some of this is there only once the run got so far, or was asked for it.

| | |
| --- | --- |
| `.lock` | held by the process that trains here; what it says is of the last one |
| `config.json` | every option of the run; the same command continues it (docs/config.md: what may change) |
| `run.json` | data and its hashes, reference, first loss; each session's command, time, machine, versions, commit |
| `code-*.patch` | what the code had besides that commit: `git checkout COMMIT && git apply FILE` |
| `metrics.jsonl` | a line for each time metrics were logged; names, formulas and units: `prefjax/training/metrics.py` |
| `samples.jsonl` | answers to the same prompts at every evaluation (`train.eval_samples`) |
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
# What of it a run that begins anew deletes; data, scores and compiled programs are found by what they are made of.
_OF_A_RUN = ("checkpoints", "run.json", "code-*.patch", "metrics.jsonl", "samples.jsonl", "tensorboard", "wandb")
_OF_A_RUN += ("wandb.json", "report.md", "plot.png", "result.json", "overview.*", "evaluation.*", "profile")
_OF_A_RUN += ("config.json",)  # the last: who is stopped before it finds a run to delete again


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Samples for the report."""

    prompts: int = option(256, "held-out prompts; 0: no sampling", at_least=0, decides=False)
    max_new_tokens: int = option(128, "tokens a response may have", at_least=1, decides=False)
    temperature: float = option(1.0, "0 takes the most likely token", at_least=0, decides=False)

    def __post_init__(self):
        check_ranges(self, "sampling")


class Stage(NamedTuple):
    """One stage of a run. The name is that of its folder; the last stage has none, and lies in the run's own."""

    name: str
    config: StageConfig

    @property
    def title(self) -> str:
        return self.name.upper() if self.name else self.config.objective


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run: its stages in order, then samples and a report."""

    stages: tuple[Stage, ...]
    sampling: SamplingConfig

    @property
    def stage(self) -> StageConfig:
        """The last stage, which the run is there for."""
        return self.stages[-1].config

    def find(self, name: str) -> StageConfig | None:
        """The stage of this name; None where the run has none."""
        return dict(self.stages).get(name)

    def start(self, workdir: str | Path, name: str = "") -> str:
        """Where a stage starts from: the folder of the stage before, or what the first one names; "": a seed."""
        names = [stage.name for stage in self.stages]
        at = names.index(name)
        return str(Path(workdir) / names[at - 1]) if at else self.stages[0].config.init_from


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """Checks and freezes a nested mapping of options, as `config.json` of a run holds them.

    What starts from a model of the hub, "hf:owner/name", starts from the folder that it is downloaded to.
    Where training starts from a Hugging Face folder, or from a run that did, the architecture is the folder's, and so
    is the tokenizer if `data.tokenizer` is empty. None is as if an option were not there. An earlier stage of which
    nothing is said does not exist; what one that exists does not say is as in the run's own.

    Raises:
      ValueError: names the field that is unknown, missing, of the wrong type, or that the objective does not take.
    """
    earlier = {name: _here(given) for name in EARLIER if (given := stated(values.get(name)))}
    values = _here({name: value for name, value in values.items() if name not in EARLIER})
    sampling = values.pop("sampling", {})
    first = next(iter(earlier.values()), values)
    start = first.get("init_from") or values.get("init_from") or ""
    if not isinstance(start, str):
        raise ValueError(f"config.init_from={start!r} must be of type str")
    folder = origin(start)
    sized = {"vocab_size", "num_layers", "width"} & stated(values.get("model")).keys()
    if values.get("objective") and not _may_be_policy(start) and not sized:
        raise ValueError(_no_start(start, "config.init_from"))
    if folder is not None:
        values["model"] = _model_of(folder, values.get("model", {}))
        data = values.get("data", {})
        values["data"] = {**data, "tokenizer": data.get("tokenizer") or folder}
    own = build(StageConfig, values, "config")
    if earlier and own.init_from:
        before = next(iter(earlier))
        raise ValueError(
            f"config.init_from and config.{before} both say where the policy starts: keep one of them "
            f"(--config.{before}={{}} leaves that stage out)"
        )
    stages = [Stage(name, _earlier_stage(name, given, values)) for name, given in earlier.items()]
    return RunConfig((*stages, Stage("", own)), build(SamplingConfig, sampling, "config.sampling"))


def _here(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options of a stage with folders in place of models of the hub."""

    def found(options: Mapping[str, Any]) -> Mapping[str, Any]:
        source = options.get("init_from")
        return {**options, "init_from": hub.local(source)} if isinstance(source, str) else options

    reference = stage.get("reference")
    return found({**stage, "reference": found(reference)} if isinstance(reference, Mapping) else stage)


def _may_be_policy(source: str) -> bool:
    return bool(source) and (Path(source, "config.json").is_file() or Path(source).name in EARLIER)


def _no_start(start: str, option: str) -> str:
    """Why there is nothing to train from, or to compare with, and how to have it."""
    if not start:
        return "config.init_from is empty: give --config.init_from=FOLDER, a Hugging Face folder or a run's --workdir"
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", start) and not Path(start).parent.is_dir()
    name = start if is_id else "owner/name"
    return (
        f"{option}={start!r} is neither a run's workdir nor a Hugging Face folder here (there is no config.json): "
        f"correct the path, or --{option}=hf:{name} downloads a model of the hub"
    )


def _earlier_stage(name: str, given: Mapping[str, Any], values: Mapping[str, Any]) -> StageConfig:
    """A stage before the run's own: what it does not say is as there, field by field."""
    inherited = {key: value for key, value in values.items() if key not in _NOT_INHERITED}
    # Data methods are for the run's own stage; another takes those in its own options.
    inherited["data"] = values.get("data", {}) | {"methods": ""}
    inherited["rows"] = values.get("rows", {}) | {"mismatched": "record"}  # kto's, which such a stage does not read
    alone = {"objective": EARLIER[name], "loss": {}, "reference": {"kind": "none"}, "accumulation": 1}
    try:
        return build(StageConfig, merged(inherited | alone, given), f"config.{name}")
    except ValueError as error:
        if str(error).startswith("config."):
            raise
        raise ValueError(f"config.{name}: {error}") from error  # a check of a dataclass does not know whose it is


def _check_optimizer(name: str, config: StageConfig) -> None:
    """Says what of an optimiser's options contradicts the others, before anything is read."""
    try:
        make_optimizer(config.optimizer, config.train.steps or 1)
    except ValueError as error:
        raise ValueError(f"config.{name}: {error}" if name else str(error)) from error


def open_run(workdir: str | Path) -> RunConfig:
    """The run that a folder holds.

    Raises:
      ValueError: there is no run, or its config.json is damaged, which the command that trains it writes anew; or
        that has an option which does not exist here. One that it lacks has its default.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise ValueError(f"{workdir} is neither a run's --workdir nor a Hugging Face folder: there is no {path}")
    values = read_object(path)
    try:
        return run_config(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def stage_of(workdir: str | Path) -> tuple[StageConfig, str]:
    """The stage that was trained in a folder, be it a run's own or one of an earlier stage, and where it started."""
    workdir = Path(workdir)
    inside = workdir.name in EARLIER and not (workdir / "config.json").is_file()
    home, name = (workdir.parent, workdir.name) if inside else (workdir, "")
    run = open_run(home)
    stage = run.find(name)
    if stage is None:
        raise ValueError(f"{workdir}: the run had no {name.upper()} stage")
    return stage, run.start(home, name)


def origin(source: str) -> str | None:
    """The Hugging Face folder that a policy goes back to, through the runs between; None: it began from a seed.

    Args:
      source: a Hugging Face folder or model, a run's workdir or the folder of one of its stages, or "".
    """
    path = Path(source := hub.local(source))
    if source and path.name in EARLIER and not (path / "config.json").is_file():
        path = path.parent
    if not source or not (path / "config.json").is_file():
        return None
    if huggingface.is_checkpoint(path):
        return str(path)
    config = read_object(path / "config.json")
    first = next((config[name] for name in EARLIER if config.get(name)), config)
    return origin(first.get("init_from") or config.get("init_from") or "")


def _model_of(folder: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The model options of a Hugging Face folder with those given beside it, which must not contradict it."""
    read, given = dataclasses.asdict(huggingface.read_config(folder)), stated(given)
    wrong = [
        f"config.model.{name}={value!r}, not {read[name]!r}"
        for name, value in given.items()
        if name in read and name not in NUMERICS and value != read[name] and (name, value) != ("vocab_size", 0)
    ]
    if wrong:
        raise ValueError(f"{'; '.join(wrong)} as {folder} says: leave architecture to the folder")
    return read | {name: value for name, value in given.items() if name not in read or name in NUMERICS}


def record_config(values: Mapping[str, Any], workdir: str | Path) -> None:
    """Writes config.json and README.md into the workdir; of several processes all call it, and the first one writes.

    Raises:
      ValueError: a stage there has a checkpoint, and was trained with other options; lists those of them that decide.
    """
    workdir = Path(workdir)
    for name, config in run_config(values).stages:
        proof = load_proof(workdir / name)
        if proof:
            recorded = (proof.identity["config"], deciding(config))
            there, now = (merged(defaults_before(config), options) for options in recorded)
            require_same(workdir, there, now, f"config.{name}".rstrip("."))
    if jax.process_index():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    write_whole(workdir / "config.json", json.dumps(values, indent=1) + "\n")
    write_whole(workdir / "README.md", FOLDER)


def check_run(run: RunConfig, workdir: str | Path) -> None:
    """Raises what training would before its first step: of options, data and devices, and of the model to start from,
    which is read for it. Writes nothing but prepared data."""
    data = data_directory(run.stage.data, Path(workdir))
    for name, config in run.stages:
        _check_optimizer(name, config)
    setups = [_check_stage(config, data) for _, config in run.stages]
    open_start(run.stages[0].config, setups[0])


def _check_stage(config: StageConfig, data: Path) -> Setup:
    """What a stage needs besides parameters to start from."""
    check_installed(config.train.writers)
    if (other := config.reference.init_from) and not _may_be_policy(other):
        raise ValueError(_no_start(other, "config.reference.init_from"))
    mesh, tokenizer = make_mesh(config.mesh), tokenizer_of(config.data, config.model)
    load_splits(config, tokenizer, data, say=False)
    return make_setup(config, tokenizer, mesh)


def clear_run(run: RunConfig, workdir: str | Path) -> None:
    """Deletes what another run left in the workdir and in the folders of its stages, so that one can begin anew there.
    Of several processes all call it, and the first one deletes.

    Raises:
      ValueError: the run starts from what would be deleted.
    """
    folders = [*(Path(workdir) / name for name in EARLIER), Path(workdir)]
    for source in (source for _, own in run.stages for source in (own.init_from, own.reference.init_from)):
        if source and Path(source).resolve() in [folder.resolve() for folder in folders]:
            raise ValueError(f"--overwrite would delete {source}, which the run starts from: give another --workdir")
    record = Path(workdir) / "config.json"
    if jax.process_index() == 0 and record.is_file() and "objective" in read_object(record):
        for path in (path for folder in folders for name in _OF_A_RUN for path in folder.glob(name)):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the run before is deleted")


def train_run(
    run: RunConfig,
    workdir: str | Path,
    *,
    should_stop: Callable[[int], bool] = lambda step: False,
    seconds: dict[str, float] | None = None,
) -> StageResult:
    """Runs the stages that are not finished yet, one after the other; stops after the running step when asked.

    Args:
      workdir: of the run; stages before the last have folders inside. Prepared data is shared by all.
      seconds: is filled with the wall time of each stage by its title.

    Raises:
      ValueError: a stage cannot use its data or devices; no stage has trained then.
    """
    workdir = Path(workdir)
    data = data_directory(run.stage.data, workdir)
    for name, config in run.stages:
        _check_optimizer(name, config)
    for _, config in run.stages[1:]:  # what is wrong with them is said before the first stage trains
        _check_stage(config, data)
    for name, config in run.stages:
        stage = Stage(name, config)
        print(f"== {stage.title}", flush=True)
        started = time.perf_counter()
        config = dataclasses.replace(config, init_from=run.start(workdir, name))
        with staying(workdir):
            result = run_stage(config, workdir / name, data, should_stop=should_stop)
        if seconds is not None:
            seconds[stage.title] = time.perf_counter() - started
        if not result.finished:
            break
    return result
