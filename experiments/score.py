"""Scores the reference over a run's train and eval data ahead of training, into a cache that runs share.

    python -m experiments.score --config=configs/finetune.py:dpo --workdir=runs/tuned --cache=scores \\
        --config.init_from=SmolLM2-135M-Instruct --config.data.train=preferences.jsonl.gz
    python -m experiments.train ... --config.reference.kind=precomputed --config.reference.cache=scores

Give the options of the training command. Stop it at any time: the same command goes on where it was. A score is that of
a prompt's and a response's tokens, so other objectives, methods and subsets find it too; a run whose model, tokenizer,
chat template or truncation is another one is refused by name, unless it was scored as well. At its start training
scores a few examples again and stops when the cache is off.

--output writes the log-probs per record, as the data method `join` reads them (docs/data_methods.md), and with
--policy=RUN, a trained run or a Hugging Face folder, its log-probs, implicit rewards and losses:

    python -m experiments.score --config=configs/quickstart.py:dpo --workdir=runs/dpo --policy=runs/dpo \\
        --output=losses.jsonl.gz
    --config.data.methods='join(file="losses.jsonl.gz", columns=("loss",)) | easiest(by="loss")'
"""

import dataclasses
from pathlib import Path

import jax
from absl import app, flags

from experiments.command import start_command
from experiments.config_flag import define_config
from experiments.distributed_flag import define_distributed
from prefjax.data.jsonl import SUFFIXES, write_rows
from prefjax.interrupts import StopRequest
from prefjax.policies.precompute import Scored, score_rows, score_stage
from prefjax.training.batches import data_directory
from prefjax.training.checkpoint import is_finished
from prefjax.training.config import ReferenceConfig, StageConfig, objective_of
from prefjax.training.processes import processes
from prefjax.training.runs import RunConfig, run_config
from prefjax.training.stage import score_directory

_CONFIG = define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "That of the run: its SFT stage and prepared data are found there.")
_CACHE = flags.DEFINE_string("cache", "", "Where scores go. Empty: config.reference.cache, or WORKDIR/reference.")
_OUTPUT = flags.DEFINE_string("output", "", "A .jsonl or .jsonl.gz of scores per record. Empty: none.")
_POLICY = flags.DEFINE_string("policy", "", "With --output: a trained run, or a Hugging Face folder, to score too.")
_DISTRIBUTED = define_distributed()


def reference_source(run: RunConfig, workdir: Path) -> str:
    """What the preference stage of a run takes as its reference."""
    if run.stage.reference.init_from:
        return run.stage.reference.init_from
    for name, _ in run.stages[:-1]:
        if not is_finished(workdir / name):
            raise app.UsageError(
                f"{workdir / name} holds no finished {name.upper()} stage, so the reference is not there yet: train it "
                "first, or give --config.reference.init_from"
            )
    return run.start(workdir)


def main(_) -> None:
    if _POLICY.value and not _OUTPUT.value:
        raise app.UsageError("--policy is read with --output only")
    if _OUTPUT.value and not _OUTPUT.value.endswith(SUFFIXES):
        raise app.UsageError(f"--output={_OUTPUT.value} must end in {' or '.join(SUFFIXES)}")
    with processes(_DISTRIBUTED.value), StopRequest():
        score_run()


def score_run() -> None:
    workdir, run = Path(_WORKDIR.value), run_config(_CONFIG.value.to_dict())
    stage = run.stage
    if not objective_of(stage).requires.reference:
        raise app.UsageError(f"objective {stage.objective} reads no reference: give a config of one that does, as dpo")
    cache = Path(_CACHE.value) if _CACHE.value else score_directory(stage, workdir)
    stage = dataclasses.replace(stage, reference=ReferenceConfig("precomputed", stage.reference.init_from))
    data = data_directory(stage.data, workdir)
    reference = score_stage(stage, data, cache, reference_source(run, workdir))
    for split, scored in reference.items():
        print(
            f"[{split}] {scored.table.size} reference log-probs of {len(scored.table)} prompts in {cache}", flush=True
        )
    if _OUTPUT.value:
        policy = score_stage(stage, data, cache, _POLICY.value) if _POLICY.value else None
        write(stage, data, reference, policy)


def write(stage: StageConfig, data: Path, reference: dict[str, Scored], policy: dict[str, Scored] | None) -> None:
    if jax.process_index():
        return
    count = write_rows(_OUTPUT.value, score_rows(stage, data, reference, policy))
    print(f"{count} records written to {_OUTPUT.value}")


if __name__ == "__main__":
    start_command(main, required=["config", "workdir"])
