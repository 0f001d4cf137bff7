"""Evaluates a trained run on its held-out set, or on another file, against the model it started from.

    python -m experiments.evaluate --workdir=runs/dpo [--data=other.jsonl.gz] [--subset_field=source]
    python -m experiments.evaluate --workdir=runs/dpo --samples=256 --judge=my_judges:prefers [--against=other.jsonl.gz]

LOG-PROBS   reward accuracy; ranking accuracy of policy and reference, by whole responses and per token (arXiv
            2405.19534); margins; the distance from the reference; what length has to do with it. --subset_field names
            a column of the file and adds a table by its values, with the mean over them (as RewardBench does, arXiv
            2403.13787).
SAMPLES     --samples=N answers N held-out prompts by the policy and the reference (or takes the answers in the file
            that --against names, which experiments.generate wrote), and adds the KL of the policy's samples. The pairs
            go to WORKDIR/evaluation.comparisons.jsonl.
WIN RATE    --judge=module:function is called with (prompt, response_a, response_b) and gives P(a is better) in [0, 1];
            it sees every pair in both orders, and the two are averaged. Or --judgements=FILE of judgements already
            made: rows with `id` or `prompt`, and `winner` ("policy", "other", "tie") or `preference` of the policy in
            [0, 1]; those of one prompt are averaged. A tie counts one half. Intervals are a bootstrap over prompts.
OUTPUT      WORKDIR/evaluation.json with every number, evaluation.md with tables; --output names another place.
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from jax.sharding import Mesh

from experiments.judging import answers_in, judged, side_by_side, write_rows
from experiments.policies import load_function, open_policy, stage_of
from prefjax.analysis import evaluation
from prefjax.analysis.evaluation import Scored
from prefjax.analysis.evaluation_page import evaluation_page
from prefjax.analysis.judgements import read_judgements, win_rates
from prefjax.analysis.report import json_safe
from prefjax.data.prepare import records_of
from prefjax.data.prompt_rows import Prompt
from prefjax.data.readers import find_files, read_rows
from prefjax.data.records import Record
from prefjax.data.store import PreparedTrees
from prefjax.models import SamplingOptions
from prefjax.training.batches import data_need, load_trees
from prefjax.training.config import StageConfig, find_objective
from prefjax.training.evaluation import sample_each, sampled_kl, score_held_out
from prefjax.training.generation import GenerationConfig, Policy, response_text
from prefjax.training.mesh import make_mesh
from prefjax.training.stage import evaluate_stage, load_policy

_WORKDIR = flags.DEFINE_string("workdir", None, "The --workdir of a finished or stopped training run.")
_DATA = flags.DEFINE_string("data", "", "Another preference file; all of it is evaluated. Empty: the held-out set.")
_OUTPUT = flags.DEFINE_string("output", "", "Where the numbers go as JSON. Empty: WORKDIR/evaluation.json.")
_SUBSET = flags.DEFINE_string("subset_field", "", "A column of the file: a table by its values.")
_SAMPLES = flags.DEFINE_integer("samples", 0, "Held-out prompts that are answered; 0: none.")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of these samples.")
_MAX_NEW = flags.DEFINE_integer("max_new_tokens", 256, "Of these samples.")
_JUDGE = flags.DEFINE_string("judge", "", "module:function that compares two responses.")
_AGAINST = flags.DEFINE_string("against", "", "File with another model's answers. Empty: the reference's samples.")
_JUDGEMENTS = flags.DEFINE_string("judgements", "", "File of judgements already made.")

RecordsWith = Callable[[str], list[Record]]  # a column of the file -> the trees' records, with it


def main(_) -> None:
    if _JUDGE.value and _JUDGEMENTS.value:
        raise app.UsageError("--judge asks for judgements and --judgements has them: give one of the two")
    if (_JUDGE.value or _AGAINST.value) and not _SAMPLES.value:
        raise app.UsageError("--judge and --against compare samples: give --samples=N, the number of prompts")
    judge = load_function(_JUDGE.value) if _JUDGE.value else None
    workdir = Path(_WORKDIR.value)
    output = Path(_OUTPUT.value or workdir / "evaluation.json")
    stage, start = stage_of(workdir)
    rewards = find_objective(stage.objective).trains_reward_model
    if rewards and (_SAMPLES.value or _SUBSET.value or _JUDGEMENTS.value):
        raise app.UsageError(f"{workdir} holds a reward model: it has no samples to judge, nor log-probs by subset")
    metrics = evaluate_stage(stage, workdir, start, data=_DATA.value)
    values = {"data": _DATA.value or "held-out", "metrics": metrics}
    if not rewards:
        values |= _of_policy(stage, workdir, start, judge, output)

    # The step's metrics are at the top level, under the names that metrics.jsonl has.
    flat = {name: value for name, value in values.items() if name != "metrics"} | metrics
    output.write_text(json.dumps(json_safe(_plain(flat)), indent=1, ensure_ascii=False) + "\n")
    command = shlex.join(["python", "-m", "experiments.evaluate", *sys.argv[1:]])
    page = evaluation_page(values, title=f"Evaluation of {workdir.name}: {stage.objective}", command=command)
    output.with_suffix(".md").write_text(page)
    width = max(map(len, metrics))
    print("\n".join(f"{name:<{width}}  {value:.6g}" for name, value in metrics.items()))
    print(f"\n{page}\nwritten to {output} and {output.with_suffix('.md')}")


def _of_policy(stage: StageConfig, workdir: Path, start: str, judge: Any, output: Path) -> dict[str, Any]:
    """What log-probs, samples and judgements say, beyond the metrics of the step."""
    if _DATA.value:
        stage = dataclasses.replace(stage, data=dataclasses.replace(stage.data, eval=_DATA.value))
    mesh = make_mesh(stage.mesh)
    policy = open_policy(str(workdir), mesh)
    reference = load_policy(stage, policy.model, mesh, stage.reference.init_from or start)
    directory = Path(stage.data.directory or workdir / "data")
    trees = load_trees(stage, policy.tokenizer, directory, "eval", say=False)

    def records_with(column: str) -> list[Record]:
        """The trees' records, with one more column of their file."""
        pairs = records_of(stage.data, data_need(stage), policy.tokenizer, directory, trees, columns=[column])
        return [record for record, _ in pairs]

    values = _log_probs(stage, policy, mesh, reference, trees, records_with)
    if _SAMPLES.value:
        values |= _samples(
            stage, policy, reference, trees, records_with, judge, output.with_suffix(".comparisons.jsonl")
        )
    if _JUDGEMENTS.value:
        rows = [item for path in find_files(_JUDGEMENTS.value) for item in read_rows(path)]
        values |= {"win_rate": win_rates(read_judgements(rows)), "against": _JUDGEMENTS.value}
    return values


def _log_probs(
    stage: StageConfig, policy: Policy, mesh: Mesh, reference: Any, trees: PreparedTrees, records_with: RecordsWith
) -> dict[str, Any]:
    scored = Scored(*score_held_out(policy.model, mesh, policy.params, reference, trees))
    mean, quantiles = evaluation.margins(scored)
    beta = stage.loss.get("beta", find_objective(stage.objective).options.get("beta"))
    values = {
        "accuracy": evaluation.accuracies(scored),
        "margins": {"mean": mean, "quantiles": quantiles, "beta": None if beta is None else float(beta)},
        "divergence": evaluation.divergences(scored),
        "length": evaluation.lengths(scored),
    }
    if _SUBSET.value:
        records = records_with(_SUBSET.value)
        if absent := next((record for record in records if _SUBSET.value not in record.columns), None):
            raise ValueError(f"--subset_field={_SUBSET.value}: {absent.source} has no such column")
        tables, means = evaluation.by_subset(scored, [str(record.columns[_SUBSET.value]) for record in records])
        values["subsets"] = {"field": _SUBSET.value, "tables": tables, "means": means}
    return values


def _samples(
    stage: StageConfig,
    policy: Policy,
    reference: Any,
    trees: PreparedTrees,
    records_with: RecordsWith,
    judge: Any,
    comparisons: Path,
) -> dict[str, Any]:
    records = records_with("id")
    _, first = np.unique(trees.prompt_hashes, return_index=True)
    prompts = [
        Prompt(records[i].prompt, records[i].source, records[i].columns.get("id"), trees[int(i)].prompt)
        for i in np.sort(first)[: _SAMPLES.value]
    ]
    config = GenerationConfig(SamplingOptions(_TEMPERATURE.value, max_new_tokens=_MAX_NEW.value), seed=stage.seed)
    ours = sample_each(policy, prompts, config)
    values: dict[str, Any] = {"against": _AGAINST.value or "the reference"}
    if _TEMPERATURE.value == 1:
        away = sampled_kl(policy, reference, prompts, ours)
        values["sampled_kl"] = evaluation.clustered_mean(away, np.arange(len(away)))
    if _AGAINST.value:
        others = answers_in(_AGAINST.value, prompts)
    else:
        other = dataclasses.replace(policy, params=reference)
        theirs = sample_each(other, prompts, config)
        others = [response_text(policy.tokenizer, *pair) for pair in zip(prompts, theirs, strict=True)]
    rows = side_by_side(policy, prompts, ours, others)
    if judge is not None:
        rows = judged(rows, judge)
        values["win_rate"] = win_rates(*(np.array([row[name] for row in rows]) for name in ("preference", "swapped")))
    write_rows(comparisons, rows)
    return values


def _plain(value: Any) -> Any:
    """Dataclasses inside as mappings."""
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, Mapping) else value


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    app.run(main)
