"""Evaluates a trained run on its held-out set, or on another file, against the model it started from.

    python -m experiments.evaluate --workdir=runs/dpo [--data=other.jsonl.gz] [--subset_field=source]
    python -m experiments.evaluate --workdir=runs/dpo --samples=256 --judge=my_judges:prefers [--against=other.jsonl.gz]

LOG-PROBS   reward accuracy; ranking accuracy of policy and reference, by whole responses and per token (arXiv
            2405.19534); margins; the distance from the reference; what length has to do with it. --subset_field names
            a column of the file and adds a table by its values, with the mean over them (as RewardBench does, arXiv
            2403.13787).
SAMPLES     --samples=N answers N held-out prompts by the policy and the reference (or takes the answers in the file
            that --against names, which experiments.generate wrote), and adds the KL of the policy's samples. The pairs
            go to WORKDIR/evaluation.comparisons.jsonl, at temperature 1 with the policy's log pi - log ref, nats.
WIN RATE    --judge=module:function is called with (prompt, response_a, response_b) and gives P(a is better) in [0, 1];
            it sees every pair in both orders, and the two are averaged. Or --judgements=FILE of judgements already
            made: rows with `id` or `prompt`, and `winner` ("policy", "other", "tie") or `preference` of the policy in
            [0, 1]; those of one prompt are averaged. A tie counts one half. Intervals are a bootstrap over prompts.
OUTPUT      WORKDIR/evaluation.json with every number, evaluation.md with tables; --output names another place.
"""

from pathlib import Path

import jax
from absl import app, flags

from experiments.command import command_line, start_command
from experiments.distributed_flag import define_distributed
from prefjax.analysis.evaluation_page import evaluation_page
from prefjax.analysis.report import write_json
from prefjax.interrupts import StopRequest
from prefjax.policies.evaluate import EvaluationOptions, evaluate_run
from prefjax.policies.scorers import load_function
from prefjax.training.processes import processes
from prefjax.training.runs import stage_of

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
_DISTRIBUTED = define_distributed()


def main(_) -> None:
    with processes(_DISTRIBUTED.value), StopRequest():
        evaluate()


def evaluate() -> None:
    workdir = Path(_WORKDIR.value)
    output = Path(_OUTPUT.value or workdir / "evaluation.json")
    if output.suffix != ".json":
        raise app.UsageError(f"--output={output} must end in .json: the page goes beside it, with .md")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        options = EvaluationOptions(
            data=_DATA.value,
            subset_field=_SUBSET.value,
            samples=_SAMPLES.value,
            temperature=_TEMPERATURE.value,
            max_new_tokens=_MAX_NEW.value,
            judge=load_function(_JUDGE.value) if _JUDGE.value else None,
            against=_AGAINST.value,
            judgements=_JUDGEMENTS.value,
        )
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    values = evaluate_run(workdir, options, comparisons=output.with_suffix(".comparisons.jsonl"))

    if jax.process_index():
        return
    # The step's metrics are at the top level, under the names that metrics.jsonl has.
    metrics = values["metrics"]
    flat = {name: value for name, value in values.items() if name != "metrics"} | metrics
    write_json(output, flat)
    command = command_line("evaluate")
    title = f"Evaluation of {workdir.name}: {stage_of(workdir)[0].objective}"
    page = evaluation_page(values, title=title, command=command)
    output.with_suffix(".md").write_text(page, encoding="utf-8")
    width = max(map(len, metrics))
    print("\n".join(f"{name:<{width}}  {value:.6g}" for name, value in metrics.items()))
    print(f"\n{page}\nwritten to {output} and {output.with_suffix('.md')}")


if __name__ == "__main__":
    start_command(main, required=["workdir"])
