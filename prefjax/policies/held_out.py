"""Held-out responses, one by one: their log-probs under the policy and its reference, and samples of both."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from prefjax.analysis.evaluation import Scored
from prefjax.data.prompts import Prompt
from prefjax.models import ModelConfig
from prefjax.policies.generate import GenerationConfig, Policy, respond
from prefjax.policies.rollouts import Response, one_each, score_trees
from prefjax.rows.store import TreeSource
from prefjax.rows.trees import is_scored


def score_held_out(model: ModelConfig, mesh: Mesh, policy: Any, reference: Any, trees: TreeSource) -> Scored:
    """Scores every response of every tree by the step's own path."""
    ours, theirs = score_trees(model, mesh, [policy, reference], trees, progress="scoring")
    length, target = np.zeros(ours.shape, np.int64), np.zeros(ours.shape, np.float32)
    for index in range(len(trees)):
        tree = trees[index]
        length[index, : len(tree.responses)] = [is_scored(response).sum() for response in tree.responses]
        target[index, : len(tree.responses)] = tree.targets
    return Scored(ours, theirs, length, target, length > 0)


def sampled_kl(
    policy: Policy, reference: Any, prompts: Sequence[Prompt], responses: Sequence[Response]
) -> Float32[np.ndarray, "n"]:
    """log pi(y | x) - log ref(y | x), nats, of responses drawn from the policy at temperature 1.

    Its mean estimates KL(pi || ref) without bias: of whole responses, and of their first tokens where
    `max_new_tokens` cut them off.
    """
    trees = one_each([prompt.tokens for prompt in prompts], [response.tokens for response in responses])
    ours, theirs = score_trees(policy.model, policy.mesh, [policy.params, reference], trees)
    return (ours - theirs)[:, 0]


def sample_each(policy: Policy, prompts: Sequence[Prompt], config: GenerationConfig) -> list[Response]:
    """One response to every prompt."""
    return [own[0] for own in respond(policy, prompts, config)]
