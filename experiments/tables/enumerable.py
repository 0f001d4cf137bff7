"""A language model whose responses can be listed: rewards, KL and the optimal policy are sums, not samples.

X prompts with Y responses each. A response has D features, the policy is log-linear in them around the reference,

    log pi(y|x) = log ref(y|x) + features(x, y) . theta - log Z(x),

and so is the reference itself. theta = 0 is the reference. The gold reward is linear in the features too, so that the
optimum of the KL-regularised reward, ref exp(reward / beta) / Z, is a policy of the family; `noise` adds a part that
is not. Worlds, data and measures are NumPy in float64; what a loss is trained through, `log_policy` and `responses`,
is jax.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Array, Float, Int

from experiments.tables.harness import UsageError
from prefjax.losses import Objective, Responses, objective

SHAPE = {"prompts": 64, "responses": 256, "width": 32}  # of the worlds of a table, as its PROTOCOL has it


class World(NamedTuple):
    """features [X, Y, D], reference_logp [X, Y] in nats, reward [X, Y] of mean 0 and variance 1 over all of them."""

    features: Float[np.ndarray, "X Y D"]
    reference_logp: Float[np.ndarray, "X Y"]
    reward: Float[np.ndarray, "X Y"]


class Pairs(NamedTuple):
    """N comparisons: prompt [N], its two responses [N, 2], the chosen one first."""

    prompt: Int[np.ndarray, "N"]
    response: Int[np.ndarray, "N 2"]


def make_world(seed: int, *, prompts: int, responses: int, width: int, noise: float = 0.0) -> World:
    """Features and both directions are standard normal, scaled so that the reference's logits have variance 1.

    noise: standard deviation of the part of the reward that the features do not hold, where theirs is 1.
    """
    rng = np.random.default_rng([seed, 0])
    features = rng.normal(size=(prompts, responses, width)) / np.sqrt(width)
    reference = features @ rng.normal(size=width)
    reward = features @ rng.normal(size=width) + noise * rng.normal(size=reference.shape)
    return World(features, scipy.special.log_softmax(reference, axis=1), (reward - reward.mean()) / reward.std())


def world_of(config: ml_collections.ConfigDict, seed: int = 0, noise: float = 0.0) -> World:
    """The world of one seed; config holds its shape, see `SHAPE`."""
    return make_world(seed, prompts=config.prompts, responses=config.responses, width=config.width, noise=noise)


def worlds(config: ml_collections.ConfigDict, noise: float = 0.0) -> list[World]:
    """The world of every seed."""
    return [world_of(config, seed, noise) for seed in range(config.num_seeds)]


def shifted(rng: np.random.Generator, world: World, by: float) -> World:
    """The world with another reference: moved along a random direction, which changes its logits by variance by^2."""
    shift = by * world.features @ rng.normal(size=world.features.shape[-1])
    return world._replace(reference_logp=scipy.special.log_softmax(world.reference_logp + shift, axis=1))


def draw(rng: np.random.Generator, world: World, count: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` prompts [N], uniformly, and `each` responses to each of them [N, K] from the reference."""
    prompt = rng.integers(len(world.reward), size=count)
    cumulative = np.cumsum(np.exp(world.reference_logp), axis=1)
    at = rng.random((count, each)) * cumulative[prompt, -1:]
    return prompt, (at[..., None] >= cumulative[prompt, None, :]).sum(-1)


def prefer_first(world: World, pairs: Pairs) -> Float[np.ndarray, "N"]:
    """P(the first response is the better one): Bradley-Terry in the gold reward."""
    return scipy.special.softmax(world.reward[pairs.prompt[:, None], pairs.response], axis=1)[:, 0]


def draw_pairs(rng: np.random.Generator, world: World, count: int, flip_rate: float = 0.0) -> Pairs:
    """Pairs of reference samples with Bradley-Terry labels, each label then exchanged with probability flip_rate."""
    pairs = Pairs(*draw(rng, world, count, 2))
    first = rng.random(count) < prefer_first(world, pairs)
    first ^= rng.random(count) < flip_rate
    return Pairs(pairs.prompt, np.where(first[:, None], pairs.response, pairs.response[:, ::-1]))


def drawn_pairs(config: ml_collections.ConfigDict, worlds: Sequence[World]) -> list[Pairs]:
    """The pairs of every seed: config.pairs of them in its world, with labels exchanged at config.flip_rate."""
    return [
        draw_pairs(np.random.default_rng([seed, 1]), world, config.pairs, config.flip_rate)
        for seed, world in enumerate(worlds)
    ]


def optimum(world: World, beta: float) -> Float[np.ndarray, "X Y"]:
    """log of the policy with the highest reward - beta KL (arXiv 2305.18290, equation 4)."""
    return scipy.special.log_softmax(world.reference_logp + world.reward / beta, axis=1)


def optimal_value(world: World, beta: float) -> Float[np.ndarray, "X"]:
    """beta log of the mean of exp(reward / beta) under the reference: what that policy attains, per prompt."""
    return beta * scipy.special.logsumexp(world.reference_logp + world.reward / beta, axis=1)


def mean_reward(world: World, logp: Float[np.ndarray, "X Y"]) -> float:
    return float((np.exp(logp) * world.reward).sum(1).mean())


def kl(logp: Float[np.ndarray, "X Y"], other: Float[np.ndarray, "X Y"]) -> float:
    """KL(policy || other), nats, averaged over prompts."""
    return float((np.exp(logp) * (logp - other)).sum(1).mean())


def reward_and_kl(world: World, logp: Float[np.ndarray, "X Y"], beta: float) -> dict[str, float]:
    """By column: the mean reward of the optimum and of a policy, and the policy's KL to the reference, nats."""
    return {
        "RLHF optimum": mean_reward(world, optimum(world, beta)),
        "reward": mean_reward(world, logp),
        "KL": kl(logp, world.reference_logp),
    }


def win_rate(world: World, logp: Float[np.ndarray, "X Y"], other: Float[np.ndarray, "X Y"]) -> float:
    """How often a sample of one policy has more reward than a sample of the other to the same prompt; ties half."""
    order = np.argsort(world.reward, axis=1)
    ours, theirs = (np.take_along_axis(np.exp(p), order, axis=1) for p in (logp, other))
    return float((ours * (np.cumsum(theirs, axis=1) - theirs / 2)).sum(1).mean())


def regularised(world: World, logp: Float[np.ndarray, "X Y"], beta: float) -> float:
    """Mean reward - beta KL(policy || reference), what RLHF maximises."""
    return mean_reward(world, logp) - beta * kl(logp, world.reference_logp)


def listed_policy(world: World, theta: Float[np.ndarray, "D"]) -> Float[np.ndarray, "X Y"]:
    """log pi of all responses, nats, to measure a policy by."""
    return scipy.special.log_softmax(world.reference_logp + world.features @ np.asarray(theta, np.float64), axis=1)


def log_policy(world: World, theta: Float[Array, "D"]) -> Float[Array, "X Y"]:
    """log pi of all responses, nats, to train through."""
    return jax.nn.log_softmax(world.reference_logp + world.features @ theta)


def responses(
    world: World, logp: Float[Array, "X Y"], prompt: Int[Array, "N"], response: Int[Array, "N K"]
) -> Responses:
    """What an objective receives of these responses when this is the policy."""
    at = prompt[:, None], response
    return Responses(logp=logp[at], reference_logp=jnp.asarray(world.reference_logp)[at])


def labelled(
    world: World, logp: Float[Array, "X Y"], prompt: Int[Array, "N"], response: Int[Array, "N 2"]
) -> Responses:
    """What an objective on pairs or on labels receives of pairs, chosen first: KTO reads two labelled responses to a
    prompt, and for its mismatched one the chosen response of the batch's next pair. Responses have one token."""
    r = responses(world, logp, prompt, response)
    other = prompt, jnp.roll(response[:, 0], -1)
    return r.replace(
        target=jnp.broadcast_to(jnp.array([1.0, 0.0], r.logp.dtype), r.logp.shape),
        length=jnp.ones_like(r.logp),
        baseline_logp=logp[other],
        baseline_reference_logp=jnp.asarray(world.reference_logp)[other],
    )


def gap_responses(
    world: World, theta: Float[Array, "D"], prompt: Int[Array, "N"], response: Int[Array, "N 2"], **fields: Array
) -> Responses:
    """What an objective of the gap log pi(a|x) - log pi(b|x) alone receives of pairs: log-probs without log Z(x), which
    cancels in the gap, so that the two responses are scored and not all Y. Responses have one token."""
    at = prompt[:, None], response
    reference = jnp.asarray(world.reference_logp)[at]
    logp = reference + jnp.asarray(world.features)[at] @ theta
    return Responses(logp=logp, reference_logp=reference, length=jnp.ones_like(logp), **fields)


def check_own(name: str, gives: frozenset[str] = frozenset({"reference_logp", "length", "target"})) -> Objective:
    """An objective of a user, by its name or module:function, if it is one of pairs and reads no more than is given.

    Raises:
        UsageError: it is not; the message says why.
    """
    try:
        own = objective(name)
    except ValueError as error:
        raise UsageError(f"--rows=+{name}: {error}") from error
    needs = sorted(own.requires.inputs - gives)
    if own.requires.group_size != 2 or needs:
        what = f"it reads {', '.join(needs)}" if needs else "it is no loss of pairs"
        raise UsageError(f"--rows=+{name}: {what}; here a response has log-probs under policy and reference only")
    return own


def minimise(
    value_and_gradient: Callable[..., tuple[Array, Array]], start: Float[np.ndarray, "P"], *rest, steps: int = 3000
) -> np.ndarray:
    """Where L-BFGS ends from `start`, in float64: the optimum of a smooth convex loss.

    Args:
        value_and_gradient: (parameters [P], *rest), compiled; give the same function again for other `rest`.
    """

    def evaluate(parameters):
        value, gradient = value_and_gradient(parameters, *rest)
        return float(value), np.asarray(gradient, np.float64)

    options = {"maxiter": steps, "maxfun": 4 * steps, "ftol": 0.0, "gtol": 1e-12, "maxcor": 30}
    return scipy.optimize.minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options).x
