"""Evaluates a trained run: the step's metrics on held-out data, and of a policy log-probs, samples and judgements."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prefjax.analysis import evaluation
from prefjax.analysis.evaluation import Scored
from prefjax.analysis.judgements import read_judgements, win_rates
from prefjax.data.jsonl import write_rows
from prefjax.data.prepare import records_of
from prefjax.data.prompts import Prompt, prompt_of
from prefjax.data.readers import find_files, read_rows
from prefjax.data.records import Record
from prefjax.data.sources import columns_in
from prefjax.data.spellings import nearest
from prefjax.data.tokenizers import Tokenizer
from prefjax.models import SamplingOptions
from prefjax.policies.generate import GenerationConfig, response_text
from prefjax.policies.held_out import sample_each, sampled_kl, score_held_out
from prefjax.policies.judge import Judge, answers_in, judged, side_by_side
from prefjax.policies.open import open_policy, open_reference
from prefjax.rows.store import PreparedTrees, open_trees
from prefjax.training.batches import data_directory, evaluation_shape, in_training, load_trees, with_baselines
from prefjax.training.checkpoint import load_parts, load_proof
from prefjax.training.config import StageConfig, objective_of
from prefjax.training.evaluator import Evaluator
from prefjax.training.mesh import make_mesh
from prefjax.training.parameters import Policy, on_mesh, read_json, read_policy, tokenizer_of
from prefjax.training.runs import stage_of
from prefjax.training.stage import make_setup, open_start
from prefjax.training.step import init_params, initial_carried


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """What is asked besides the metrics of the step.

    data            another preference file, all of which is evaluated; "": the run's held-out set
    subset_field    a column of the file: a table by its values
    samples         held-out prompts that are answered; 0: none
    temperature, max_new_tokens   of these samples
    judge           compares two responses
    against         file with another model's answers; "": the reference's samples
    judgements      file of judgements already made
    """

    data: str = ""
    subset_field: str = ""
    samples: int = 0
    temperature: float = 1.0
    max_new_tokens: int = 256
    judge: Judge | None = None
    against: str = ""
    judgements: str = ""

    def __post_init__(self):
        if self.judge is not None and self.judgements:
            raise ValueError("--judge asks for judgements and --judgements has them: give one of the two")
        if (self.judge is not None or self.against) and not self.samples:
            raise ValueError("--judge and --against compare samples: give --samples=N, the number of prompts")


def evaluate_run(
    workdir: str | Path, options: EvaluationOptions = EvaluationOptions(), *, comparisons: Path | None = None
) -> dict[str, Any]:
    """Metrics of the step under "metrics"; of a policy also accuracies, margins, divergences and lengths, and what the
    options ask for, every number with its interval.

    Args:
      workdir: of a run, or of one of its stages.
      comparisons: file that samples and what they were compared with are written to; None: nowhere.

    Raises:
      ValueError: a reward model is asked for samples or subsets; or a file lacks what the options need.
    """
    workdir = Path(workdir)
    stage, start = stage_of(workdir)
    rewards = objective_of(stage).requires.reward_head
    if rewards and (options.samples or options.subset_field or options.judgements):
        raise ValueError(f"{workdir} holds a reward model: it has no samples to judge, nor log-probs by subset")
    names = subset_names(stage, workdir, options) if options.subset_field else None
    metrics = evaluate_stage(stage, workdir, start, data=options.data)
    values = {"data": options.data or "held-out", "seen": seen_in_training(stage, workdir, options.data)}
    values["metrics"] = metrics
    return values if rewards else values | _evaluate_policy(stage, workdir, options, comparisons, names)


def _on(stage: StageConfig, data: str) -> StageConfig:
    """The stage with a preference file to be evaluated on; empty: its own held-out set."""
    return dataclasses.replace(stage, data=dataclasses.replace(stage.data, eval=data)) if data else stage


def _records_with(
    column: str, stage: StageConfig, tokenizer: Tokenizer, directory: Path, trees: PreparedTrees
) -> list[Record]:
    """The held-out trees' records, with one more column of their file."""
    pairs = records_of(stage.data, objective_of(stage).requires, tokenizer, directory, trees, columns=[column])
    return [record for record, _ in pairs]


def subset_names(stage: StageConfig, workdir: Path, options: EvaluationOptions) -> list[str]:
    """What `options.subset_field` says of every held-out tree.

    Raises:
      ValueError: records have no such column; says which there are.
    """
    stage, field = _on(stage, options.data), options.subset_field
    data = stage.data
    tokenizer, directory = tokenizer_of(data, stage.model), data_directory(data, workdir)
    trees = load_trees(stage, tokenizer, directory, "eval", say=False)
    found = _records_with(field, stage, tokenizer, directory, trees)
    lacking = [record.source for record in found if field not in record.columns]
    if not lacking:
        return [str(record.columns[field]) for record in found]
    there = columns_in(trees.manifest["source"], data_dir=data.tfds_dir, manual_dir=data.manual_dir)
    near = nearest(field, there)
    raise ValueError(
        f"--subset_field={field}: {len(lacking)} of {len(found)} records have no such column, as {lacking[0]}; there "
        f"are {', '.join(there)}{f': did you mean {near}?' if near and near != field else ''}"
    )


def seen_in_training(stage: StageConfig, workdir: Path, data: str = "") -> dict[str, int]:
    """Of the data that a run is evaluated on: "records", and as `in_training` counts them; empty where the training
    data are no longer where run.json says.

    Args:
      data: a preference file; empty takes the run's own held-out set.
    """
    folder = Path(read_json(str(workdir), "run.json").get("data", {}).get("train", {}).get("directory", workdir))
    if not (folder / "manifest.json").is_file():
        return {}
    stage = _on(stage, data)
    tokenizer = tokenizer_of(stage.data, stage.model)
    trees = load_trees(stage, tokenizer, data_directory(stage.data, workdir), "eval", say=False)
    return {"records": len(trees), **in_training(trees, open_trees(folder))}


def evaluate_stage(
    config: StageConfig, workdir: str | Path, reference_workdir: str, *, data: str = ""
) -> dict[str, float]:
    """Metrics of a trained run on its held-out set, or on all of another file, in one pass.

    Args:
      reference_workdir: the run whose policy is the reference; empty: fresh parameters from the seed.
      data: a preference file; empty takes the run's own held-out set.

    Raises:
      ValueError: the run's own held-out set is another one by now.
    """
    mesh = make_mesh(config.mesh)
    tokenizer = tokenizer_of(config.data, config.model)
    config = _on(config, data)
    if config.reference.kind == "precomputed":
        config = dataclasses.replace(config, reference=dataclasses.replace(config.reference, kind="live", cache=""))
    directory = data_directory(config.data, workdir)
    trees = with_baselines(config, load_trees(config, tokenizer, directory, "eval"))
    proof = load_proof(workdir)
    if not data and proof is not None and proof.identity["held-out data"] != trees.content_hash:
        raise ValueError(
            f"{directory}: the held-out data are no longer those that {workdir} was trained with, as their hash says: "
            "have those back, or give --data=FILE to evaluate on others"
        )
    setup = make_setup(config, tokenizer, mesh)
    source = config.reference.init_from or reference_workdir
    reference = read_policy(source, setup.model, mesh, seed=config.seed)
    base = open_start(config, setup).policy if setup.lora.rank else reference
    like = {"params": on_mesh(mesh, jax.eval_shape(functools.partial(init_params, setup), base))}
    if (carried := initial_carried(setup)) is not None:
        like["carried"] = on_mesh(mesh, carried)
    saved = load_parts(workdir, like)
    frozen = base if setup.lora.rank or setup.reference == "live" else None
    return Evaluator(setup, trees, evaluation_shape(config, trees))(saved["params"], frozen, saved.get("carried"))


def _evaluate_policy(
    stage: StageConfig,
    workdir: Path,
    options: EvaluationOptions,
    comparisons: Path | None,
    subsets: Sequence[str] | None,
) -> dict[str, Any]:
    """What log-probs, samples and judgements say, beyond the metrics of the step.

    Args:
      subsets: the name of every held-out tree's subset, or None.
    """
    stage = _on(stage, options.data)
    policy = open_policy(workdir, make_mesh(stage.mesh))
    reference = open_reference(workdir, policy)
    directory = data_directory(stage.data, workdir)
    trees = load_trees(stage, policy.tokenizer, directory, "eval", say=False)
    scored = score_held_out(policy.model, policy.mesh, policy.params, reference.params, trees)
    values = _log_probs(stage, scored)
    if subsets is not None:
        tables, means = evaluation.by_subset(scored, subsets)
        values["subsets"] = {"field": options.subset_field, "tables": tables, "means": means}
    if options.samples:
        records = _records_with("id", stage, policy.tokenizer, directory, trees)
        prompts = _prompts(trees, records, options.samples, policy)
        values |= _samples(options, stage.seed, (policy, reference), prompts, comparisons)
    if options.judgements:
        rows = [item for path in find_files(options.judgements) for item in read_rows(path)]
        values |= {"win_rate": win_rates(read_judgements(rows)), "against": options.judgements}
    return values


def _log_probs(stage: StageConfig, scored: Scored) -> dict[str, Any]:
    mean, quantiles = evaluation.margins(scored)
    beta = objective_of(stage).options.get("beta")
    return {
        "accuracy": evaluation.accuracies(scored),
        "margins": {"mean": mean, "quantiles": quantiles, "beta": None if beta is None else float(beta)},
        "divergence": evaluation.divergences(scored),
        "length": evaluation.lengths(scored),
    }


def _prompts(trees: PreparedTrees, records: Sequence[Record], count: int, policy: Policy) -> list[Prompt]:
    """The first held-out prompts, each once, with the ids that their rows have."""
    _, first = np.unique(trees.prompt_hashes, return_index=True)
    return [
        prompt_of(records[i], trees[int(i)].prompt, policy.tokenizer, policy.data.encoding)
        for i in np.sort(first)[:count]
    ]


def _samples(
    options: EvaluationOptions,
    seed: int,
    pair: tuple[Policy, Policy],
    prompts: Sequence[Prompt],
    comparisons: Path | None,
) -> dict[str, Any]:
    """Answers of the policy, and of its reference or another model, side by side."""
    policy, reference = pair
    config = GenerationConfig(SamplingOptions(options.temperature, max_new_tokens=options.max_new_tokens), seed=seed)
    ours = sample_each(policy, prompts, config)
    values: dict[str, Any] = {"against": options.against or "the reference"}
    away = None
    if options.temperature == 1:
        away = sampled_kl(policy, reference.params, prompts, ours)
        values["sampled_kl"] = evaluation.clustered_mean(away, np.arange(len(away)))
    if options.against:
        others = answers_in(options.against, prompts)
    else:
        theirs = sample_each(reference, prompts, config)
        others = [response_text(policy.tokenizer, *said) for said in zip(prompts, theirs, strict=True)]
    rows = side_by_side(policy, prompts, ours, others, away)
    if options.judge is not None:
        rows = judged(rows, options.judge)
        values["win_rate"] = win_rates(*(np.array([row[name] for row in rows]) for name in ("preference", "swapped")))
    if comparisons is not None and not jax.process_index():
        write_rows(comparisons, rows)
    return values
