"""A language model through the commands, for the tables of the size :long: a stem that they share, and their arms.

The stem of a seed is what experiments.train, generate, annotate and curate make: SFT, a reward model (`proxy`) of noisy
pairs, K samples of the SFT policy to each prompt, their proxy rewards, and the pairs that data methods choose of them.
An arm is one run from the SFT policy, as of experiments.train, and what experiments.evaluate says of it. The world is
the inn of prefjax/data/synthetic.py, whose gold reward judges; texts are bytes, the decoder is trained from nothing. It
is far below every model of the papers.

All lies in FOLDER, under a hash of what decides it. A phase that is finished is not done again, and a run that was
killed goes on at its checkpoint (`prefjax.policies.rounds.Phases`), so arms that tables share are trained once.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import figures
from experiments.tables.harness import LONG, ORDER, SECONDS, Claim, Results, Row, Setting, Table, bootstrap_interval
from experiments.tables.sources import source_hash
from prefjax.data.config import SYNTHETIC
from prefjax.data.curation import curate_file
from prefjax.data.formats import RecordFormat
from prefjax.data.prompts import answered
from prefjax.data.readers import read_rows
from prefjax.data.sources import OpenSource
from prefjax.data.synthetic import World
from prefjax.models import SamplingOptions
from prefjax.policies.annotate import SAMPLED, annotate_file, load_record_scorer
from prefjax.policies.evaluate import EvaluationOptions, evaluate_run
from prefjax.policies.generate import GenerationConfig, facts_of, generate_file, machine_of
from prefjax.policies.open import open_mesh, open_policy
from prefjax.policies.round_measures import asked
from prefjax.policies.rounds import Phases
from prefjax.policies.scorers import load_scorer
from prefjax.state_files import read_object, write_whole
from prefjax.training.runs import record_config, run_config
from prefjax.training.stage import run_stage

FOLDER = Path("results", "language_models")
METRIC = "at the end"
COLUMNS = ("SFT", "gold reward", "proxy reward", "gold wins", "proxy wins", "KL")
NEW_TOKENS = 48  # answers have 30
CURATED = {  # the pairs of the stem's samples, by the data method that chooses them
    "sft-sample-rank": "rso(count=4, beta=1000000.0)",
    "rso-sample-rank": "rso(count=4, beta=0.5)",
    "best-worst": "pairs(rule='best_worst')",
    "best-mu-sigma": "reward_positions(rejected=-1.0)",
}
STEM = {
    "layers": 2,
    "width": 64,
    "pairs": 4096,
    "sft_steps": 240,
    "reward_steps": 100,
    "prompts": 256,
    "samples": 8,
    "prompts_per_step": 24,
}
PROTOCOL = {**STEM, "steps": 60, "learning_rate": 6e-4, "answered": 128, "num_seeds": 1}
SMOKE = {
    **{"layers": 1, "width": 16, "pairs": 48, "sft_steps": 2, "reward_steps": 2, "prompts": 8, "samples": 4},
    **{"prompts_per_step": 8, "steps": 2, "answered": 4},
}
SIZES: dict[str, dict[str, Any]] = {"smoke": SMOKE, "long": {}, "paper": {}}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One run from the SFT policy.

    pairs   "direct": the noisy pairs that the reward model learns too; or a key of CURATED
    methods data methods, as `data.methods`
    """

    objective: str
    pairs: str = "direct"
    loss: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    methods: str = ""
    layout: str = "shared_packed"


def cells(config: ml_collections.ConfigDict) -> list[str]:
    """One a seed."""
    return [str(seed) for seed in range(config.num_seeds)]


def table(shows: str, minutes: float, verdict: str) -> Table:
    """What is said of a table of arms."""
    return Table(shows, COLUMNS, minutes, verdict, size=LONG, over="answers")


def settings(arms: Mapping[str, Arm]) -> tuple[Setting, ...]:
    """The rows of a table of arms."""
    return tuple(Setting({"arm": name}, METRIC) for name in arms)


def runner(arms: Mapping[str, Arm]) -> Callable[[ml_collections.ConfigDict, str], Iterator[Row]]:
    """The `run` of a table of arms."""
    return lambda config, cell: rows(config, cell, arms)


def rows(config: ml_collections.ConfigDict, cell: str, arms: Mapping[str, Arm]) -> Iterator[Row]:
    """Of every arm COLUMNS for each answer to a held-out prompt, which `Row.seed` numbers through all seeds; its
    training losses; and what the stem and the arms took."""
    seed, seconds = int(cell), {}
    for name, arm in arms.items():
        said = outcome(config, seed, arm)
        seconds |= said["seconds"]
        for col, values in columns_of(said).items():
            for number, value in enumerate(values, seed * config.answered):
                yield Row(name, col, METRIC, number, config.steps, value)
        for step, loss in said["curve"]:
            yield Row(name, "curve", "loss", seed, step, loss)
    yield Row("stem and arms", "wall", SECONDS, seed, None, sum(seconds.values()))


def columns_of(said: Mapping[str, Any]) -> dict[str, list[float]]:
    """COLUMNS of an arm's evaluation: a number for each answer. A tie wins one half."""
    gold, proxy = (np.array(said[name]) for name in ("gold", "proxy"))  # [prompts, 2]: the arm's, the SFT policy's
    wins = lambda both: ((both[:, 0] > both[:, 1]) + 0.5 * (both[:, 0] == both[:, 1])).tolist()
    values = (gold[:, 1].tolist(), gold[:, 0].tolist(), proxy[:, 0].tolist(), wins(gold), wins(proxy), said["kl"])
    return dict(zip(COLUMNS, values, strict=True))


def outcome(config: ml_collections.ConfigDict, seed: int, arm: Arm) -> dict[str, Any]:
    """Trains and evaluates an arm, and the stem before it, unless they are there.

    gold, proxy   [prompts, 2]: rewards of the arm's and of the SFT policy's answer to each held-out prompt
    kl            [prompts]: log pi - log SFT of the arm's answers, nats, whose mean is the KL
    curve         (step, training loss)
    seconds       of every phase that made it, by name
    """
    decides = {name: config[name] for name in STEM} | {"seed": seed, "source": _source(), "jax": jax.__version__}
    stem = FOLDER / _digest(decides)
    values = _arm(config, seed, arm, stem)
    folder = stem / "arms" / _digest(values | {"answered": config.answered})
    folder.mkdir(parents=True, exist_ok=True)
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(FOLDER / "compiled"))
    with open(stem / "lock", "w") as lock, open(stem / "log.txt", "a") as log, contextlib.redirect_stdout(log):
        fcntl.flock(lock, fcntl.LOCK_EX)  # tables of other processes may want the same
        grown, phases = _grow(config, seed, stem), Phases(folder)
        phases.run("train", "run.json", lambda _: _train(values, folder, stem))
        phases.run("evaluate", "evaluation.json", lambda path: _evaluate(config, stem, path))
    seconds = {f"stem {name}": phase["seconds"] for name, phase in grown.items()}
    seconds |= {f"{folder.name} {name}": phase["seconds"] for name, phase in phases.done.items()}
    logged = [row for _, row in read_rows(folder / "metrics.jsonl") if row.get("split", "train") == "train"]
    curve = [(row["step"], row["loss"]) for row in logged if "loss" in row]
    return {**read_object(folder / "evaluation.json"), "curve": curve, "seconds": seconds}


def _source() -> str:
    return source_hash(__name__)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _common(config: ml_collections.ConfigDict, seed: int) -> dict[str, Any]:
    """Options of every run here."""
    world = dict(train_examples=config.pairs, eval_examples=2 * config.answered, temperature=1.0, seed=seed)
    heads = dict(num_heads=4, num_kv_heads=2, head_width=config.width // 4)
    model = dict(num_layers=config.layers, width=config.width, mlp_width=3 * config.width, **heads)
    return {
        "loss": {},
        "seed": seed,
        "data": dict(world=world),
        "rows": dict(batching="prompts", prompts_per_step=config.prompts_per_step, tokens_per_step=2048),
        "model": dict(vocab_size=0, tie_embeddings=False, **model),
    }


def _optimizer(rate: float, steps: int) -> dict[str, Any]:
    return dict(learning_rate=rate, schedule="cosine", warmup_steps=steps // 10)


def _grow(config: ml_collections.ConfigDict, seed: int, stem: Path) -> dict[str, Any]:
    """SFT, reward model, samples, proxy rewards and pairs: what the stem's phases say."""
    common, phases = _common(config, seed), Phases(stem)
    none = {"reference": {"kind": "none"}}
    sft = {
        **(common | none),
        "objective": "sft",
        "rows": common["rows"] | dict(prompts_per_step=2 * config.prompts_per_step),
        "optimizer": _optimizer(4e-3, config.sft_steps) | dict(final_scale=0.05, b2=0.95),
        "train": dict(steps=config.sft_steps),
    }
    proxy = {
        **(common | none),
        **dict(objective="bt", loss=dict(centering=0.01), reward_head=dict(width=1), init_from=str(stem / "sft")),
        "optimizer": _optimizer(3e-3, config.reward_steps),
        "train": dict(steps=config.reward_steps),
    }
    phases.run("train sft", "sft/run.json", lambda _: _train(sft, stem / "sft", stem))
    phases.run("train proxy", "proxy/run.json", lambda _: _train(proxy, stem / "proxy", stem))
    phases.run("generate", "samples.jsonl", lambda path: _generate(config, seed, stem, path))
    phases.run("annotate", "scored.jsonl", lambda path: _annotate(stem, path))
    for name, method in CURATED.items():
        curate = lambda path, method=method: {"rows": curate_file(str(stem / "scored.jsonl"), method, path)[0]}
        phases.run(f"curate {name}", f"{name}.jsonl", curate)
    return phases.done


def _arm(config: ml_collections.ConfigDict, seed: int, arm: Arm, stem: Path) -> dict[str, Any]:
    """The options of an arm's run."""
    common = _common(config, seed)
    data = common["data"] | dict(methods=arm.methods)
    if arm.pairs != "direct":
        data |= dict(train=str(stem / f"{arm.pairs}.jsonl"), eval=SYNTHETIC)
    reads = arm.objective not in ("sft", "slic")
    return {
        **common,
        **dict(objective=arm.objective, loss=dict(arm.loss), init_from=str(stem / "sft"), data=data),
        "reference": {"kind": "live" if reads else "none"},
        "rows": common["rows"] | dict(layout=arm.layout),
        "optimizer": _optimizer(config.learning_rate, config.steps),
        "train": dict(steps=config.steps, log_every=max(1, config.steps // 20)),
    }


def _train(values: Mapping[str, Any], folder: Path, stem: Path) -> dict[str, Any]:
    """As experiments.train, without samples for a report."""
    record_config(values, folder)
    run_stage(run_config(values).stage, folder, stem / "data")
    return {}


def _generate(config: ml_collections.ConfigDict, seed: int, stem: Path, path: Path) -> dict[str, Any]:
    source, mesh = str(stem / "sft"), open_mesh()
    policy = open_policy(source, mesh)
    prompts, sources, _ = asked(SYNTHETIC, policy, source)
    drawn = GenerationConfig(SamplingOptions(max_new_tokens=NEW_TOKENS), config.samples, seed=seed, batch=256)
    identity = {"model": source, **facts_of(policy), "prompts": sources, "scorer": "logp"}
    made = generate_file(
        policy,
        prompts[: config.prompts],
        drawn,
        path,
        identity=identity,
        about=machine_of(policy),
        scorer=load_scorer("logp", mesh),
    )
    return made["counts"]


def _annotate(stem: Path, path: Path) -> dict[str, Any]:
    records, account = OpenSource(str(stem / "samples.jsonl")).read(RecordFormat(ties="keep"), more=SAMPLED)
    scorer = f"reward:{stem / 'proxy'}"
    about = {"account": account.as_dict()}
    manifest = annotate_file(
        records, load_record_scorer(scorer, open_mesh()), path, identity={"scorer": scorer}, about=about
    )
    return {"rows": manifest["rows"]}


def gold_judge(prompt: str, first: str, second: str) -> float:
    """P(the first is better), by gold reward; a tie is one half."""
    gap = World().gold_reward(prompt, first) - World().gold_reward(prompt, second)
    return 0.5 + 0.5 * float(np.sign(gap))


def _evaluate(config: ml_collections.ConfigDict, stem: Path, path: Path) -> dict[str, Any]:
    """As experiments.evaluate with a judge; and the rewards of what it compared."""
    compared = path.with_name("comparisons.jsonl")
    options = EvaluationOptions(samples=config.answered, max_new_tokens=NEW_TOKENS, judge=gold_judge)
    values = evaluate_run(path.parent, options, comparisons=compared)
    compared = [row for _, row in read_rows(compared)]
    pairs = [(row["prompt"], (row["policy"], row["other"])) for row in compared]
    gold = [[World().gold_reward(prompt, text) for text in both] for prompt, both in pairs]
    score = load_record_scorer(f"reward:{stem / 'proxy'}", open_mesh())
    proxy = [own for _, own in score([answered(prompt, both, (0.0, 0.0)) for prompt, both in pairs])[0]]
    said = {"gold": gold, "proxy": proxy, "kl": [row["log_ratio"] for row in compared], "metrics": values["metrics"]}
    write_whole(path, json.dumps(said))
    return {}


def lead(results: Results, better: str, worse: str, col: str) -> tuple[float, float]:
    """The 95 % interval of how much more one arm has than another: a bootstrap over answers, paired by prompt and seed.
    Of one seed it says nothing about others."""
    return results.lead(better, worse, col, METRIC)


def ahead_of(worse: str) -> Callable[[Results, Setting], float]:
    """Minus the lower end of the interval of an arm's lead over another: at most 0 where it is ahead."""
    return lambda results, s: -lead(results, s.key, worse, "gold reward")[0]


def not_ahead_of(worse: str) -> Callable[[Results, Setting], float]:
    """The lower end of the same: at most 0 where no lead can be told."""
    return lambda results, s: lead(results, s.key, worse, "gold reward")[0]


def above_sft(results: Results, s: Setting) -> float:
    """Minus the lower end of the interval of an arm's gold reward over that of the SFT policy."""
    gap = results.final(s.key, "gold reward", METRIC) - results.final(s.key, "SFT", METRIC)
    return -bootstrap_interval(gap)[0]


def learns(where: Callable[[Setting], bool]) -> Claim:
    """That arms earn more than the SFT policy."""
    text = "the gold reward is above that of SFT (minus the lower end of the 95 % interval)"
    return Claim("learns", text, where, above_sft, verdict=ORDER)


def plot(results: Results, rows: tuple[Setting, ...]) -> matplotlib.figure.Figure:
    """Gold rewards of arms, beside that of the SFT policy."""
    return figures.dots(results, rows, known="SFT", ours="gold reward")
