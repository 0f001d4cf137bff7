"""Objectives of reward models: they read `features` [B, K, m], what a reward head says of every response.

m = 1 is a scalar reward r(x, y), in nats of log-odds: P(y beats y') = sigmoid(r - r'). m even is an embedding v of
m / 2 blocks of two, compared by `skew_score`. No log-prob is read, so no vocabulary head runs, and there is no
reference. sp(x) = log(1 + e^x) = -log sigmoid(-x).

>>> pair = Responses(features=jnp.array([[[1.0], [0.0]]]))
>>> [f"{loss[0]:.4f}" for loss in (bt(pair), bt(pair, centering=0.01), bt_margin(pair.replace(margin=jnp.ones(1))))]
['0.3133', '0.3233', '0.6931']
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.losses.links import logistic
from prefjax.losses.listwise import log_rankings, ordered_pairs, plackett_luce
from prefjax.losses.reducers import gap, groups, of_groups, of_pairs, pairs
from prefjax.losses.registry import FEATURES, LOG2, for_pairs, for_rankings
from prefjax.losses.responses import Responses
from prefjax.options import NonNegative, Positive


def _bt_ranking_start(r: Responses, **_) -> Float[Array, "B"]:
    return LOG2 * jnp.any(ordered_pairs(r), axis=(1, 2))


@for_pairs(FEATURES, start=LOG2)
def bt(r: Responses, *, centering: NonNegative = 0.0) -> Float[Array, "B"]:
    """Bradley-Terry reward model: -log sigmoid(r_w - r_l) + centering (r_w + r_l)^2.

    Source: arXiv 2203.02155, equation 1 with K = 2; the centring arXiv 2312.09244, as in TRL.
    Tokens: none, the reward is read at the last one.
    Start: log 2.
    Elsewhere: TRL's RewardTrainer, centering named center_rewards_coefficient (off by default, 0.01 recommended).

    Only the difference matters to the first term; centring keeps the sum of a pair's rewards near 0, so that rewards of
    different prompts can be compared.
    """
    r = pairs(r, "features")
    rewards = scalar_rewards(r)
    return of_pairs(r, logistic(gap(rewards)) + centering * jnp.sum(rewards, axis=-1) ** 2)


@for_pairs(FEATURES | {"margin"}, start=lambda r, **_: logistic(-r.margin))
def bt_margin(r: Responses, *, centering: NonNegative = 0.0) -> Float[Array, "B"]:
    """Bradley-Terry reward model with a margin: -log sigmoid(r_w - r_l - m) + centering (r_w + r_l)^2, m = `margin` of
    the pair.

    Source: arXiv 2307.09288 (Llama 2), equation 2, which takes m from how clearly annotators preferred; the centring
    arXiv 2312.09244.
    Tokens: none, the reward is read at the last one.
    Start: sp(m).
    Elsewhere: TRL's RewardTrainer, where the data has a margin column.
    """
    r = pairs(r, "features", "margin")
    rewards = scalar_rewards(r)
    return of_pairs(r, logistic(gap(rewards) - r.margin) + centering * jnp.sum(rewards, axis=-1) ** 2)


@for_rankings(FEATURES | {"target"}, start=_bt_ranking_start, reads="scores")
def bt_ranking(r: Responses) -> Float[Array, "B"]:
    """Bradley-Terry reward model on rankings: mean of -log sigmoid(r_i - r_j) over all pairs with i ranked above j.

    Source: arXiv 2203.02155 (InstructGPT), equation 1: all K (K - 1) / 2 comparisons of a prompt are one example.
    Tokens: none, the reward is read at the last one.
    Start: log 2 (0 where all scores are equal).
    Elsewhere: not in TRL or EasyDeL, whose reward trainers take pairs.

    Equal scores make no pair, and the mean is over those there are. K = 2 is `bt`.
    """
    r = groups(r, "features", "target")
    rewards, better = scalar_rewards(r), ordered_pairs(r)
    losses = logistic(rewards[:, :, None] - rewards[:, None, :])
    total = jnp.sum(jnp.where(better, losses, 0), axis=(1, 2))
    return of_groups(r, total / jnp.maximum(jnp.sum(better, axis=(1, 2)), 1))


@for_rankings(FEATURES | {"target"}, start=log_rankings, reads="scores")
def pl_ranking(r: Responses) -> Float[Array, "B"]:
    """Plackett-Luce reward model: sum over ranks k of [log sum_{j ranked k or below} e^r_j - r_(k)].

    Source: the Plackett-Luce model of arXiv 2305.18290, appendix A.3, with r in place of the implicit reward.
    Tokens: none, the reward is read at the last one.
    Start: log(K!), K the valid responses.
    Elsewhere: not in TRL or EasyDeL, whose reward trainers take pairs.

    The negative log-likelihood of the ranking by score; equal scores are ranked in the order of the slots. K = 2 is
    `bt`.
    """
    r = groups(r, "features", "target")
    return plackett_luce(r, scalar_rewards(r))


@for_pairs(FEATURES)
def gpm(r: Responses, *, tau: Positive = 0.1) -> Float[Array, "B"]:
    """General preference model (GPM): -log sigmoid(s(y_w > y_l) / tau), s(y > y') = <R v, v'>, R of blocks
    [[0, -1], [1, 0]].

    Source: arXiv 2410.02197, equation 4.1, with the paper's tau.
    Tokens: none, the embedding v is read at the last one.
    Start: depends on the model.
    Elsewhere: not in TRL or EasyDeL; in the authors' code HighDimGeneralPreferenceLoss.

    s is skew-symmetric, so P(y > y') + P(y' > y) = 1, and unlike a scalar reward it can say that preferences go round
    in a circle. What the authors make of v, unit length and eigenvalues that depend on the prompt, is the reward
    head's (`normalize` and `gate`). With v = (r, c), c the same for all, it is `bt` of r c / tau.
    """
    r = pairs(r, "features")
    width = r.features.shape[-1]
    if width % 2:
        raise ValueError(f"gpm compares embeddings of blocks of two, but features has m = {width}: make it even")
    return of_pairs(r, logistic(skew_score(r.features[:, 0], r.features[:, 1]) / tau))


def scalar_rewards(r: Responses) -> Float[Array, "B K"]:
    """The rewards of a head with m = 1. Raises ValueError for any other."""
    width = r.features.shape[-1]
    if width != 1:
        raise ValueError(f"this objective reads a scalar reward, but features has m = {width}: set reward_head.width=1")
    return r.features[..., 0]


def skew_score(v: Float[Array, "... m"], other: Float[Array, "... m"]) -> Float[Array, "..."]:
    """<R v, v'>: above 0 where v is preferred to v'; exchanged they have the opposite sign. m is even."""
    return jnp.sum(v[..., 0::2] * other[..., 1::2] - v[..., 1::2] * other[..., 0::2], axis=-1)


def preference_scores(features: Float[Array, "B K m"]) -> Float[Array, "B K K"]:
    """[i, j]: by how much response i is preferred to j: the difference of scalar rewards (m = 1), or `skew_score`."""
    if features.shape[-1] == 1:
        return features - features[..., 0][:, None, :]
    return skew_score(features[:, :, None, :], features[:, None, :, :])
