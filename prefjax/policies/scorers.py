"""Scorers by name: what says how good the completions of a prompt are."""

import dataclasses
import importlib
import itertools
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from prefjax.data.account import Rejection
from prefjax.data.encoding import NOTHING, encode
from prefjax.data.prompts import answered
from prefjax.data.records import Record, Text, plain_text
from prefjax.data.synthetic import World
from prefjax.policies.open import open_mesh, open_policy, open_reference
from prefjax.policies.rewards import open_reward_model
from prefjax.policies.rollouts import score_trees
from prefjax.rows.store import MemoryTrees
from prefjax.rows.trees import TokenTree
from prefjax.training.config import objective_of
from prefjax.training.parameters import Policy
from prefjax.training.runs import stage_of

SCORERS = (
    "logp, mean_logp, implicit:WORKDIR, reward:WORKDIR, judge:module:function, command:WORDS, gold, or module:function"
)


class Candidates(NamedTuple):
    """What a scorer sees: a prompt with its completions, and of each the sampler's own log-prob (nats, summed over
    tokens) and number of tokens; and what the chat's template was given besides the turns, as `Record.given`."""

    prompt: Text
    completions: tuple[str, ...]
    logps: tuple[float, ...]
    lengths: tuple[int, ...]
    given: Mapping[str, str] = NOTHING

    @property
    def record(self) -> Record:
        """A ranking of the completions, without scores yet."""
        unscored = answered(self.prompt, self.completions, [0.0] * len(self.completions))
        return dataclasses.replace(unscored, **self.given)


# One score per completion of every prompt, higher is better. Scores are finite.
Scorer = Callable[[Sequence[Candidates]], Sequence[Sequence[float]]]


def load_function(spec: str) -> Callable[..., Any]:
    """The function that "module:function" names. Raises ValueError where there is none."""
    module, _, name = spec.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{spec!r}: write module:function, importable from here ({error})") from error
    if not callable(function):
        raise ValueError(f"{spec!r} is no function")
    return function


def load_scorer(spec: str, mesh: Mesh) -> Scorer:
    """A scorer by name.

    logp               the sampler's own log-prob of the completion, nats
    mean_logp          the same, per token
    implicit:WORKDIR   beta (log pi - log ref) of a trained run, the reward that its policy is optimal for up to a
                       function of the prompt (DPO, arXiv 2305.18290, equation 5); beta = 1 where its loss has none
    reward:WORKDIR     what a run's reward model says
    judge:module:function  function(prompt, a, b) -> P(a is better), in [0, 1]: the mean over the prompt's other
                       completions, each pair seen in both orders
    command:WORDS      a program, started once a chunk: reads lines {"prompt", "completions"} from stdin, and writes a
                       list of scores for each, a line each, to stdout
    gold               the gold reward of the synthetic world
    module:function    function(prompt, completions) -> scores, called once a prompt; a prompt is text or a list of
                       messages {"role", "content"}
    """
    if spec == "logp":
        return lambda candidates: [own.logps for own in candidates]
    if spec == "mean_logp":
        mean = lambda own: [logp / length for logp, length in zip(own.logps, own.lengths, strict=True)]
        return lambda candidates: [mean(own) for own in candidates]
    if spec == "gold":
        world = World()
        return lambda candidates: [
            [world.gold_reward(own.prompt, text) for text in own.completions] for own in candidates
        ]
    kind, _, rest = spec.partition(":")
    if kind == "judge" and rest:
        judge = load_function(rest)
        return lambda candidates: [_wins(judge, own) for own in candidates]
    if kind == "command" and rest:
        words = shlex.split(rest)
        if shutil.which(words[0]) is None:
            raise ValueError(f"scorer {spec!r}: there is no program {words[0]!r}")
        return lambda candidates: _by_command(words, candidates)
    if kind == "implicit" and rest:
        return _implicit(rest, mesh)
    if kind == "reward" and rest:
        model = open_reward_model(rest)
        return lambda candidates: model.scores_of([own.record for own in candidates])
    if not rest:
        raise ValueError(f"scorer {spec!r}: choose {SCORERS}")
    function = load_function(spec)
    return lambda candidates: [function(plain_text(own.prompt), list(own.completions)) for own in candidates]


def _wins(judge: Callable[..., float], own: Candidates) -> list[float]:
    """The share of the other completions that each one wins against; equal texts are not shown, and win a half."""
    texts, others = own.completions, len(own.completions) - 1
    if not others:
        raise ValueError(f"a judge compares, and {str(own.prompt)[:80]!r} has one completion: give at least two")
    wins, prompt = np.full((len(texts), len(texts)), 0.5), plain_text(own.prompt)
    for i, j in itertools.combinations(range(len(texts)), 2):
        if texts[i] != texts[j]:
            first, second = float(judge(prompt, texts[i], texts[j])), float(judge(prompt, texts[j], texts[i]))
            if not (0 <= first <= 1 and 0 <= second <= 1):
                raise ValueError(f"the judge gave {first} and {second}: it must give P(a is better), in [0, 1]")
            wins[i, j] = (first + 1 - second) / 2
            wins[j, i] = 1 - wins[i, j]
    return ((wins.sum(1) - 0.5) / others).tolist()


def _by_command(words: Sequence[str], candidates: Sequence[Candidates]) -> list[list[float]]:
    """What a program says of the candidates.

    Raises:
      ValueError: it fails, or writes something else than a list of scores for each.
    """
    asked = [{"prompt": plain_text(own.prompt), "completions": list(own.completions)} for own in candidates]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in asked)
    done = subprocess.run(words, input=lines, capture_output=True, encoding="utf-8")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise ValueError(f"the scorer {shlex.join(words)!r} ended with status {done.returncode}: {last}")
    try:
        return [[float(score) for score in json.loads(line)] for line in done.stdout.splitlines()]
    except (TypeError, ValueError) as error:
        raise ValueError(f"the scorer {shlex.join(words)!r} must write a list of scores a line: {error}") from error


def check_scorer(spec: str) -> None:
    """Raises ValueError where `load_scorer` would, but opens no model."""
    kind, _, rest = spec.partition(":")
    if kind in ("implicit", "reward") and rest:
        stage_of(rest)
    else:
        load_scorer(spec, open_mesh())


def checked(scorer: Scorer, candidates: Sequence[Candidates]) -> list[list[float]]:
    """The scores. Raises ValueError where one is missing or not finite."""
    scores = [[float(score) for score in own] for own in scorer(candidates)] if candidates else []
    if len(scores) != len(candidates):
        raise ValueError(f"the scorer gave scores of {len(scores)} prompts for {len(candidates)}")
    for own, candidate in zip(scores, candidates, strict=True):
        if len(own) != len(candidate.completions) or not np.isfinite(own).all():
            raise ValueError(
                f"the scorer gave {own} for the {len(candidate.completions)} completions of "
                f"{str(candidate.prompt)[:80]!r}: it must give one finite number for each"
            )
    return scores


def _implicit(workdir: str, mesh: Mesh) -> Scorer:
    policy = open_policy(workdir, mesh)
    stage, _ = stage_of(workdir)
    objective = objective_of(stage)
    if not objective.requires.reference:
        raise ValueError(f"implicit:{workdir}: {stage.objective} has no reference, so its policy is no implicit reward")
    reference = open_reference(workdir, policy).params
    beta = float(objective.options.get("beta", 1.0))

    def score(candidates: Sequence[Candidates]) -> list[list[float]]:
        trees = MemoryTrees(_tree(own, policy) for own in candidates)
        ours, theirs = score_trees(policy.model, mesh, [policy.params, reference], trees)
        rewards = beta * (ours.astype(np.float64) - theirs)
        return [row[: len(own.completions)].tolist() for row, own in zip(rewards, candidates, strict=True)]

    return score


def _tree(own: Candidates, policy: Policy) -> TokenTree:
    """One tree of all completions, which may be equal, as a training record's would not."""
    encoding = policy.data.encoding
    encoding = dataclasses.replace(encoding.without_limits(), special_text=encoding.special_text)
    alone = [own.record.select((k,), (0.0,), "ranked") for k in range(len(own.completions))]
    trees = [encode(record, policy.tokenizer, encoding) for record in alone]
    if rejected := next((tree for tree in trees if isinstance(tree, Rejection)), None):
        raise ValueError(f"a completion of {str(own.prompt)[:80]!r} cannot be scored: {rejected.reason}, {rejected}")
    return TokenTree(trees[0].prompt, tuple(tree.responses[0] for tree in trees), np.zeros(len(trees), np.float32))
