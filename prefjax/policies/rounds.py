"""Rounds of sampling, scoring, choosing and training, each from the policy of the one before.

A folder holds what policies start from (`sft/`, where there is such a stage), a folder for every round, which is a run
with its data beside it, and a page. What a phase finished is recorded in `phases.json` with the hash of its file, and
is not done again; what was killed in the middle goes on where it was, as the phase itself does.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax import monitoring

from prefjax.data.config import SYNTHETIC
from prefjax.data.curation import curate_file
from prefjax.data.formats import RecordFormat
from prefjax.data.methods.sequences import columns_of, parse_methods
from prefjax.data.sources import OpenSource
from prefjax.models import SamplingOptions
from prefjax.options import REQUIRED, build, check_ranges, deciding, option, stated
from prefjax.policies.annotate import SAMPLED, annotate_file, load_record_scorer
from prefjax.policies.generate import GenerationConfig, facts_of, generate_file, machine_of
from prefjax.policies.open import open_policy
from prefjax.policies.round_measures import asked, measure
from prefjax.policies.rounds_page import write_page
from prefjax.policies.run_report import report_run
from prefjax.policies.scorers import SCORERS, check_scorer, load_scorer
from prefjax.state_files import naming, read_object, staying, write_whole
from prefjax.training.checkpoint import parameter_hash, require_same
from prefjax.training.config import objective_of
from prefjax.training.mesh import make_mesh
from prefjax.training.parameters import read_policy
from prefjax.training.runs import EARLIER, RunConfig, record_config, run_config
from prefjax.training.stage import run_stage

# What JAX says it took; tracing comes on top.
_COMPILING = tuple(f"/jax/core/compile/{name}_duration" for name in ("jaxpr_to_mlir_module", "backend_compile"))
SAMPLES, SCORED, CHOSEN, MEASURED = "candidates.jsonl", "scored.jsonl", "chosen.jsonl", "measured.json"


class Stopped(Exception):
    """The user asked to stop; everything is saved."""


@dataclasses.dataclass(frozen=True)
class RoundsConfig:
    """Rounds of `experiments.rounds`, which alone reads this: sample from the policy, score, choose, train on what was
    chosen. Iterative DPO (arXiv 2312.16682) with what RSO (arXiv 2309.06657) and others choose."""

    scorer: str = option(REQUIRED, f"what scores responses, as of experiments.generate: {SCORERS}")
    count: int = option(2, "rounds; a larger number adds some to those that are there", at_least=1, decides=False)
    prompts: str = option(
        "",
        "files of prompts, preference data, or named datasets; empty: the prompts of data.train. Those that "
        "data.holdout holds out are answered too, and held out again",
    )
    prompts_per_round: int = option(
        0, "prompts of a round, other ones than in the round before while there are any; 0: all", at_least=0
    )
    samples: int = option(8, "responses to each prompt", at_least=2)
    temperature: float = option(1.0, "of these responses", above=0)
    top_k: int = option(0, "the k most likely tokens are kept; 0: all", at_least=0)
    top_p: float = option(1.0, "the most likely tokens are kept until they add up to it", above=0, at_most=1)
    max_new_tokens: int = option(256, "a response that has not ended by then is cut off", at_least=1)
    batch: int = option(64, "sequences sampled at once", at_least=1)
    select: str = option(
        "pairs(rule='best_worst')",
        "data methods that make training records of the scored responses, docs/data_methods.md: as well rso(count=4), "
        "reward_positions(), pairs(rule='all')",
    )
    reference: str = option(
        "previous",
        'of each round: "previous", the policy that it starts from, or "start", the one before the first round',
        choices=("previous", "start"),
    )
    measured: int = option(
        4,
        "responses to each of up to sampling.prompts held-out prompts, at temperature 1, by which the page compares "
        "rounds; 0: none",
        at_least=0,
    )
    seed: int = option(0, "of the responses and of the order of prompts", at_least=0, at_most=2**31 - 10_001)

    def __post_init__(self):
        check_ranges(self, "rounds")
        columns_of(parse_methods(self.select))
        if not self.scorer:
            raise ValueError(f"rounds.scorer is empty: give --config.rounds.scorer, one of {SCORERS}")

    def drawn(self, number: int) -> GenerationConfig:
        """How the responses of a round are drawn."""
        sampling = SamplingOptions(self.temperature, self.top_k, self.top_p, self.max_new_tokens)
        return GenerationConfig(sampling, self.samples, seed=self.seed + number, batch=self.batch)

    def drawn_to_measure(self) -> GenerationConfig:
        """How held-out prompts are answered, the same by the policy of every round."""
        sampling = SamplingOptions(max_new_tokens=self.max_new_tokens)
        return GenerationConfig(sampling, self.measured, seed=self.seed, batch=self.batch)


@dataclasses.dataclass(frozen=True)
class Rounds:
    """What is done in a folder: the rounds, the options of the run that each of them is, and the command that asks."""

    config: RoundsConfig
    values: Mapping[str, Any]
    workdir: Path
    command: str

    @functools.cached_property
    def run(self) -> RunConfig:
        return run_config(self.values)

    @property
    def start(self) -> str:
        """The policy before the first round: a folder."""
        return self.policy_of(0)

    def policy_of(self, number: int) -> str:
        """The folder of the policy after so many rounds."""
        if number:
            return str(self.folder(number))
        return str(self.workdir / self.run.stages[-2].name) if self.run.stages[:-1] else self.run.stage.init_from

    def folder(self, number: int) -> Path:
        return self.workdir / f"round{number}"

    @property
    def held_out(self) -> str:
        """What is evaluated on, as `data.eval`; empty: what `data.holdout` holds out of a round's prompts."""
        data = self.run.stage.data
        return data.eval or (SYNTHETIC if data.train == SYNTHETIC else "")

    @property
    def data_directory(self) -> str:
        return self.run.stage.data.directory or str(self.workdir / "data")


class Phases:
    """What is finished in a folder, by `phases.json`."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / "phases.json"
        self.done: dict[str, dict[str, Any]] = read_object(self.path) if self.path.exists() else {}

    def run(self, name: str, file: str, work: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
        """What a phase that makes a file says of itself; it is done now unless it was before.

        Raises:
          ValueError: it was, and its file is another one by now.
        """
        path, title = self.folder / file, f"{self.folder.name}: {name}"
        if name in self.done:
            if not path.exists() or sha256(path) != self.done[name]["sha256"]:
                raise ValueError(
                    f"{path} is not what the phase {name} made, as its hash in {self.path} says: have it back, or "
                    f"delete {self.folder}, and what was made of it, to have it made again"
                )
            print(f"== {title}: done before", flush=True)
            return self.done[name]
        print(f"== {title}", flush=True)
        started = time.perf_counter()
        with staying(self.folder), naming(path), _compiling() as compiled:
            facts = work(path)
        took = {"seconds": round(time.perf_counter() - started, 3), "compiling": round(sum(compiled), 3)}
        self.record(name, {"file": file, "sha256": sha256(path), **took, **facts})
        return self.done[name]

    def record(self, name: str, facts: dict[str, Any]) -> None:
        self.done[name] = facts
        write_whole(self.path, json.dumps(self.done, indent=1, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _compiling() -> Iterator[list[float]]:
    """Seconds of every program that is lowered and compiled inside, or read from where compiled ones are kept."""
    seconds: list[float] = []

    def note(event: str, duration: float, **_: object) -> None:
        if event in _COMPILING:
            seconds.append(duration)

    monitoring.register_event_duration_secs_listener(note)
    try:
        yield seconds
    finally:
        monitoring.unregister_event_duration_listener(note)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rounds_of(values: Mapping[str, Any], workdir: Path, command: str) -> Rounds:
    """The rounds that a nested mapping of options asks for: those of a run, and `rounds`.

    Raises:
      ValueError: an option that cannot be, a run of which no rounds can be made, a scorer that is not there, or rounds
        of other options in the folder; names them.
    """
    config = build(RoundsConfig, values.get("rounds", {}), "config.rounds")
    rounds = Rounds(config, {name: value for name, value in values.items() if name != "rounds"}, workdir, command)
    stage = rounds.run.stage
    if objective_of(stage).requires.reward_head:
        raise ValueError(f"{stage.objective} trains a reward model, which cannot be sampled from: give one of a policy")
    if not rounds.start:
        raise ValueError("rounds sample from a policy first: give config.init_from, or say something of config.sft")
    check_scorer(config.scorer)
    if (rounds.folder(1) / "phases.json").exists():
        there = read_object(workdir / "config.json")
        before = Rounds(build(RoundsConfig, there.pop("rounds"), "config.rounds"), there, workdir, command)
        require_same(workdir, _identity(before), _identity(rounds), "config")
    return rounds


def _identity(rounds: Rounds) -> dict[str, Any]:
    """What must be the same for a round to follow others. A run that is continued may change some of it, as hashes of
    what it names are compared; here what was finished is not looked at again."""
    stages = {}
    for name, stage in rounds.run.stages:
        named = {"train": stage.data.train, "eval": stage.data.eval, "init_from": stage.init_from}
        stages[name or "run"] = deciding(stage) | named | {"steps": stage.train.steps, "epochs": stage.train.epochs}
    return {"rounds": deciding(rounds.config), **stages}


def run_rounds(rounds: Rounds, *, should_stop: Callable[[int], bool] = lambda step: False) -> Path:
    """Does what is not done yet, in order; returns the page.

    Raises:
      Stopped: `should_stop`, asked after every training step, said so.
      ValueError: a phase has nothing to go on with, or a file of one is another by now.
    """
    rounds.workdir.mkdir(parents=True, exist_ok=True)
    values = {**rounds.values, "rounds": dataclasses.asdict(rounds.config)}
    write_whole(rounds.workdir / "config.json", json.dumps(values, indent=1) + "\n")
    begun = Phases(rounds.workdir)
    for name, stage in rounds.run.stages[:-1]:
        folder, values = rounds.workdir / name, dataclasses.asdict(stage)
        train = functools.partial(_train, rounds, values, folder, should_stop, report=False)
        begun.run(name, f"{name}/run.json", lambda _, train=train: train())
    if rounds.config.measured:
        begun.run("measure", MEASURED, lambda path: _measure(rounds, 0, path))
    for number in range(1, rounds.config.count + 1):
        run_round(rounds, number, should_stop)
    done = [Phases(folder).done for folder in (rounds.workdir, *map(rounds.folder, range(1, rounds.config.count + 1)))]
    return write_page(rounds.workdir, rounds.command, rounds.run.stage.objective, rounds.config.scorer, done)


def run_round(rounds: Rounds, number: int, should_stop: Callable[[int], bool]) -> None:
    """One round; its folder is the run that it trains, with the data beside it."""
    folder = rounds.folder(number)
    folder.mkdir(parents=True, exist_ok=True)
    phases, values = Phases(folder), round_values(rounds, number)
    phases.run("generate", SAMPLES, lambda path: _generate(rounds, number, path))
    phases.run("annotate", SCORED, lambda path: _annotate(rounds, folder / SAMPLES, path))
    phases.run("select", CHOSEN, lambda path: _select(rounds, folder / SCORED, path))
    phases.run("train", "run.json", lambda _: _train(rounds, values, folder, should_stop))
    if rounds.config.measured:
        phases.run("measure", MEASURED, lambda path: _measure(rounds, number, path))


def round_values(rounds: Rounds, number: int) -> dict[str, Any]:
    """The options of the run that a round trains."""
    values = {name: value for name, value in rounds.values.items() if name not in EARLIER}
    chosen = str(rounds.folder(number) / CHOSEN)
    own = {"train": chosen, "eval": rounds.held_out, "directory": rounds.data_directory}
    values |= {"init_from": rounds.policy_of(number - 1), "data": {**values.get("data", {}), **own}}
    if rounds.config.reference == "start" and number > 1:
        values["reference"] = {**values.get("reference", {}), "init_from": rounds.start}
    return values


def _generate(rounds: Rounds, number: int, path: Path) -> dict[str, Any]:
    config, source = rounds.config, rounds.policy_of(number - 1)
    policy = open_policy(source, make_mesh(rounds.run.stage.mesh))
    given = config.prompts or rounds.run.stage.data.train
    prompts, sources, account = asked(given, policy, rounds.start)
    count = min(config.prompts_per_round or len(prompts), len(prompts))
    order = np.random.default_rng(config.seed).permutation(len(prompts))
    taken = order[((number - 1) * count + np.arange(count)) % max(len(prompts), 1)]
    about = {"command": rounds.command, **machine_of(policy), "account": account.as_dict()}
    identity = {"model": source, **facts_of(policy), "prompts": sources, "taken": taken.tolist(), "scorer": "logp"}
    made = generate_file(
        policy,
        [prompts[i] for i in taken],
        config.drawn(number),
        path,
        identity=identity,
        about=about,
        scorer=load_scorer("logp", policy.mesh),
    )
    return {"rows": made["rows"], **made["counts"]}


def _annotate(rounds: Rounds, samples: Path, path: Path) -> dict[str, Any]:
    records, account = OpenSource(str(samples)).read(RecordFormat(ties="keep"), more=SAMPLED)
    score = load_record_scorer(rounds.config.scorer, make_mesh(rounds.run.stage.mesh))
    about = {"command": rounds.command, "account": account.as_dict()}
    identity = {"sources": {samples.name: sha256(samples)}, "scorer": rounds.config.scorer}
    return {"rows": annotate_file(records, score, path, identity=identity, about=about)["rows"]}


def _select(rounds: Rounds, scored: Path, path: Path) -> dict[str, Any]:
    count, account = curate_file(str(scored), rounds.config.select, path)
    if not count:
        raise ValueError(
            f"rounds.select={rounds.config.select!r} leaves nothing of {scored}{account.main_loss()}\n\n{account}"
        )
    print(account, flush=True)
    return {"rows": count}


def _train(
    rounds: Rounds,
    values: Mapping[str, Any],
    folder: Path,
    should_stop: Callable[[int], bool],
    *,
    report: bool = True,
) -> dict[str, Any]:
    record_config(values, folder)
    run, started = run_config(values), time.perf_counter()
    result = run_stage(run.stage, folder, Path(rounds.data_directory), should_stop=should_stop)
    if not result.finished:
        raise Stopped
    if report:
        seconds = {run.stage.objective: time.perf_counter() - started}
        run = dataclasses.replace(run, sampling=rounds.run.sampling)
        report_run(run, stated(values), result, folder, rounds.command, seconds)
    return {"parameters": parameter_hash(result.policy)}


def _measure(rounds: Rounds, number: int, path: Path) -> dict[str, Any]:
    stage = rounds.run.stage
    policy = open_policy(rounds.policy_of(number), make_mesh(stage.mesh))
    given = rounds.held_out or rounds.config.prompts or stage.data.train
    share = 1.0 if rounds.held_out else stage.data.holdout
    prompts, _, _ = asked(given, policy, rounds.start, held_out=share)
    values = measure(
        policy,
        prompts[: rounds.run.sampling.prompts],
        rounds.config.drawn_to_measure(),
        score=load_record_scorer(rounds.config.scorer, policy.mesh),
        start=read_policy(rounds.start, policy.model, policy.mesh, seed=stage.seed) if number else None,
        gold=rounds.held_out == SYNTHETIC,
    )
    write_whole(path, json.dumps(values, indent=1) + "\n")
    return values
