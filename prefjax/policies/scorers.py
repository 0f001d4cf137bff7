"""Scorers by name: what says how good the completions of a prompt are."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from prefjax.data.account import Rejection
from prefjax.data.encoding import encode
from prefjax.data.prompts import answered, plain_text
from prefjax.data.records import Text
from prefjax.policies.open import open_policy, open_reference
from prefjax.policies.rewards import open_reward_model
from prefjax.policies.rollouts import score_trees
from prefjax.rows.store import MemoryTrees
from prefjax.rows.trees import TokenTree
from prefjax.training.config import objective_of
from prefjax.training.parameters import Policy
from prefjax.training.runs import stage_of

SCORERS = "logp, mean_logp, implicit:WORKDIR, reward:WORKDIR, or module:function"


class Candidates(NamedTuple):
    """What a scorer sees: a prompt with its completions, and of each the sampler's own log-prob (nats, summed over
    tokens) and number of tokens."""

    prompt: Text
    completions: tuple[str, ...]
    logps: tuple[float, ...]
    lengths: tuple[int, ...]


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
    module:function    function(prompt, completions) -> scores, called once a prompt; a prompt is text or a list of
                       messages {"role", "content"}
    """
    if spec == "logp":
        return lambda candidates: [own.logps for own in candidates]
    if spec == "mean_logp":
        mean = lambda own: [logp / length for logp, length in zip(own.logps, own.lengths, strict=True)]
        return lambda candidates: [mean(own) for own in candidates]
    kind, _, rest = spec.partition(":")
    if kind == "implicit" and rest:
        return _implicit(rest, mesh)
    if kind == "reward" and rest:
        model = open_reward_model(rest)
        return lambda candidates: model([own.prompt for own in candidates], [_answers(own) for own in candidates])
    if not rest:
        raise ValueError(f"scorer {spec!r}: choose {SCORERS}")
    function = load_function(spec)
    return lambda candidates: [function(plain_text(own.prompt), list(own.completions)) for own in candidates]


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


def _answers(own: Candidates) -> tuple[Text, ...]:
    """The completions as responses to their prompt: text, or a message where that is a chat."""
    return answered(own.prompt, own.completions, [0.0] * len(own.completions)).responses


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
    trees = [encode(answered(own.prompt, [text], [0.0]), policy.tokenizer) for text in own.completions]
    if rejected := next((tree for tree in trees if isinstance(tree, Rejection)), None):
        raise ValueError(f"a completion of {str(own.prompt)[:80]!r} cannot be scored: {rejected.reason}, {rejected}")
    return TokenTree(trees[0].prompt, tuple(tree.responses[0] for tree in trees), np.zeros(len(trees), np.float32))
