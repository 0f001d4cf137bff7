"""From a trained stage to what its report shows: samples of both models side by side, gold rewards, run facts."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prefjax.analysis import Gold, Rewards, RunResults, Samples, read_metrics
from prefjax.analysis.runs import flatten
from prefjax.data.config import SYNTHETIC, DataConfig
from prefjax.data.prepare import full_account
from prefjax.data.synthetic import GARBLED_REWARD, World
from prefjax.models import SamplingOptions
from prefjax.models.lora import LoraConfig
from prefjax.policies.rewards import RewardModel
from prefjax.policies.rollouts import Sampler, sample_responses, sequence_logps
from prefjax.rows.store import open_trees
from prefjax.rows.trees import token_ids
from prefjax.training import provenance
from prefjax.training.parameters import read_json
from prefjax.training.runs import RunConfig
from prefjax.training.stage import StageResult


def compare_samples(run: RunConfig, result: StageResult) -> Samples:
    """One response of the model training started from and one of the trained policy to the same held-out prompts."""
    trees, tokenizer, options = result.eval_trees, result.tokenizer, run.sampling
    _, first = np.unique(trees.prompt_hashes, return_index=True)
    prompts = [trees[int(i)].prompt for i in np.sort(first)[: options.prompts]]

    def draw(params):
        responses = sample_responses(
            Sampler(result.setup.model, params, result.end_ids, tokenizer.pad_id, result.setup.mesh),
            prompts,
            SamplingOptions(temperature=options.temperature, max_new_tokens=options.max_new_tokens),
            seed=run.stage.seed,
        )
        return [response.tokens for response in responses]

    drawn = {"policy": draw(result.policy), "reference": draw(result.reference)}
    policy_logp, reference_logp = sequence_logps(
        result.setup, [result.policy, result.reference], prompts, drawn["policy"]
    )
    text = _text_of(result)
    asked = [text(prompt) for prompt in prompts]
    said = {name: [text(response) for response in responses] for name, responses in drawn.items()}
    return Samples(
        prompts=asked,
        reference=said["reference"],
        policy=said["policy"],
        policy_logp=policy_logp,
        policy_reference_logp=reference_logp,
        gold=_gold(run.stage.data, asked, said),
        unfinished=sum(response[-1] not in result.end_ids for response in drawn["policy"]),
    )


def report_run(
    run: RunConfig,
    config: Mapping[str, Any],
    result: StageResult,
    workdir: Path,
    command: str,
    seconds: Mapping[str, float],
) -> Path | None:
    """Samples from a finished stage; the first process writes the report, and only it returns where."""
    started = time.perf_counter()
    samples = rewards = None
    if result.setup.objective.requires.reward_head:
        rewards = held_out_rewards(run, result)
    elif run.sampling.prompts:
        samples = compare_samples(run, result)
    if jax.process_index():
        return None
    from prefjax.analysis.report import write_report  # it draws, which only those who want the page install

    seconds = {**seconds, "samples" if rewards is None else "rewards": time.perf_counter() - started}
    stage = run.stage
    results = RunResults(
        objective=stage.objective,
        start=run.stages[-2].title if len(run.stages) > 1 else "the initial model",
        data="the synthetic inn" if stage.data.train == SYNTHETIC else stage.data.train,
        command=command,
        config=dict(flatten(config)),
        machine=provenance.machine(),
        seconds=seconds,
        metrics=read_metrics(workdir / "metrics.jsonl"),
        heldout_pairs=round(result.eval_metrics.get("pairs", 0)),
        samples=samples,
        rewards=rewards,
        accounts=_accounts(workdir),
    )
    return write_report(workdir, results)


def held_out_rewards(run: RunConfig, result: StageResult) -> Rewards:
    """The reward model's scores of all held-out responses, beside their gold rewards where these are known."""
    setup = dataclasses.replace(result.setup, lora=LoraConfig())
    if setup.reward_head.width > 1:
        return Rewards()
    trees, text = result.eval_trees, _text_of(result)
    predicted = np.concatenate(RewardModel(setup, result.policy, result.tokenizer, run.stage.data).score_trees(trees))
    asked, said = [], []
    for tree in (trees[i] for i in range(len(trees))):
        asked += [text(tree.prompt)] * len(tree.responses)
        said += [text(token_ids(response)) for response in tree.responses]
    return Rewards(predicted=predicted, gold=_gold_rewards(run.stage.data, asked, said))


def _accounts(workdir: Path) -> dict[str, str]:
    """What became of the records of both splits, as long as their prepared trees are there."""
    splits = {"Training": "train", "Held-out": "eval"}
    data = read_json(str(workdir), "run.json").get("data", {})
    folders = {name: Path(data[split]["directory"]) for name, split in splits.items() if split in data}
    return {name: full_account(open_trees(at)) for name, at in folders.items() if (at / "manifest.json").is_file()}


def _text_of(result: StageResult) -> Callable[[np.ndarray], str]:
    """Token ids -> text, without special tokens."""
    special, decode = result.tokenizer.special_ids, result.tokenizer.decode
    return lambda ids: decode([i for i in ids.tolist() if i not in special])


def _gold_rewards(data: DataConfig, prompts: list[str], texts: list[str]) -> np.ndarray | None:
    """Gold rewards where the held-out prompts come from the synthetic world."""
    if (data.eval or data.train) != SYNTHETIC:
        return None
    world = World(data.world.seed)
    return np.array([world.gold_reward(p, t) for p, t in zip(prompts, texts, strict=True)])


def _gold(data: DataConfig, prompts: list[str], said: Mapping[str, list[str]]) -> Gold | None:
    reward = functools.partial(_gold_rewards, data, prompts)
    reference, policy = reward(said["reference"]), reward(said["policy"])
    if reference is None:
        return None
    best = reward([World(data.world.seed).best_response(prompt) for prompt in prompts])
    return Gold(reference=reference, policy=policy, floor=GARBLED_REWARD, ceiling=float(best.mean()))
