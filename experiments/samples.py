"""From a trained stage to what its report shows: samples of both models side by side, gold rewards, run facts."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from experiments.door import RunConfig
from prefjax.analysis import Gold, RunResults, Samples, read_metrics, write_report
from prefjax.analysis.runs import flatten
from prefjax.data.prepare import SYNTHETIC, DataConfig
from prefjax.data.synthetic import GARBLED_REWARD, World
from prefjax.models import SamplingOptions
from prefjax.training.rollouts import sample_responses, sequence_logps
from prefjax.training.stage import StageResult


def compare_samples(run: RunConfig, result: StageResult) -> Samples:
    """One response of the model training started from and one of the trained policy to the same held-out prompts."""
    trees, tokenizer, options = result.eval_trees, result.tokenizer, run.sampling
    _, first = np.unique(trees.prompt_hashes, return_index=True)
    prompts = [trees[int(i)].prompt for i in np.sort(first)[: options.prompts]]
    end = result.end_id

    def draw(params):
        responses = sample_responses(
            result.setup.model,
            params,
            prompts,
            SamplingOptions(temperature=options.temperature, max_new_tokens=options.max_new_tokens),
            stop_ids=[end],
            pad_id=tokenizer.pad_id,
            seed=run.stage.seed,
            mesh=result.setup.mesh,
        )
        return [response.tokens for response in responses]

    drawn = {"policy": draw(result.policy), "reference": draw(result.reference)}
    policy_logp, reference_logp = sequence_logps(
        result.setup, [result.policy, result.reference], prompts, drawn["policy"]
    )
    special = tokenizer.special_ids
    text = lambda ids: tokenizer.decode([i for i in ids.tolist() if i not in special])
    asked = [text(prompt) for prompt in prompts]
    said = {name: [text(response) for response in responses] for name, responses in drawn.items()}
    return Samples(
        prompts=asked,
        reference=said["reference"],
        policy=said["policy"],
        policy_logp=policy_logp,
        policy_reference_logp=reference_logp,
        gold=_gold(run.stage.data, asked, said),
        unfinished=sum(response[-1] != end for response in drawn["policy"]),
    )


def report_run(
    run: RunConfig,
    config: ml_collections.ConfigDict,
    result: StageResult,
    workdir: Path,
    command: str,
    seconds: Mapping[str, float],
) -> Path:
    """Samples from a finished stage and writes its report, whose path it returns."""
    started = time.perf_counter()
    samples = None
    if run.sampling.prompts and jax.process_count() == 1:  # sampling sees the whole policy, so one process holds it
        samples = compare_samples(run, result)
    seconds = {**seconds, "samples": time.perf_counter() - started}
    return write_report(workdir, run_results(run, config, result, samples, workdir, command, seconds))


def run_results(
    run: RunConfig,
    config: ml_collections.ConfigDict,
    result: StageResult,
    samples: Samples | None,
    workdir: Path,
    command: str,
    seconds: Mapping[str, float],
) -> RunResults:
    stage = run.stage
    metrics = read_metrics(workdir / "metrics.jsonl")
    return RunResults(
        objective=stage.objective,
        start="SFT" if run.sft is not None else "the initial model",
        data="the synthetic inn" if stage.data.train == SYNTHETIC else stage.data.train,
        command=command,
        config=dict(flatten(config.to_dict())),
        machine=machine(),
        seconds=seconds,
        metrics=metrics,
        heldout_pairs=round(result.eval_metrics.get("pairs", 0)),
        samples=samples,
    )


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    versions = {
        name: importlib.metadata.version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain")
    }
    devices = jax.devices()
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "CPU cores": os.cpu_count(),
        "Python": platform.python_version(),
        **versions,
    }


def _gold(data: DataConfig, prompts: list[str], said: Mapping[str, list[str]]) -> Gold | None:
    """Gold rewards where the prompts come from the synthetic world."""
    if data.train != SYNTHETIC or data.eval not in ("", SYNTHETIC):
        return None
    world = World(data.world.seed)
    reward = lambda texts: np.array([world.gold_reward(p, t) for p, t in zip(prompts, texts, strict=True)])
    best = reward([world.best_response(prompt) for prompt in prompts])
    return Gold(
        reference=reward(said["reference"]),
        policy=reward(said["policy"]),
        floor=GARBLED_REWARD,
        ceiling=float(best.mean()),
    )
