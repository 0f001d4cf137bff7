"""Objectives on pairs that look at single tokens: some count more than others, or their whole distribution counts.

Notation of the docstrings, all in nats:

    a_t       = logp_t - reference_logp_t   the log-ratio of token t; 0 when policy == reference
    a_w, a_l  = sum_t a_t                   of the chosen and of the rejected response, EOS included; h = a_w - a_l
    k_t       = KL(reference || policy)     over the vocabulary, where token t is predicted; 0 when policy == reference
    K_w, K_l  = sum_t k_t                   the sequential KL of a response
    n_w, n_l                                response tokens
    m_t       = `token_weight`              what the data say of token t
    sp(x)     = log(1 + e^x) = -log sigmoid(-x)

Every loss is [B], one number per prompt, unreduced; a pair counts only if both of its slots are valid. The doctests'
pair has a_w = 0.5 + 1.5 and a_l = -1.

>>> pair = Responses(logp=jnp.zeros((1, 2)), reference_logp=jnp.array([[-2.0, 1.0]]), kl=jnp.array([[0.5, 1.0]]))
>>> [f"{loss(pair)[0]:.4f}" for loss in (tdpo1, tdpo2)]
['0.5759', '0.5651']
>>> tokens = dict(token_logp=jnp.array([[[0.5, 1.5], [-1.0, 0.0]]]), token_reference_logp=jnp.zeros((1, 2, 2)))
>>> pair = Responses(logp=jnp.zeros((1, 2)), length=jnp.array([[2.0, 1.0]]), **tokens)
>>> print(f"{ld_dpo(pair)[0]:.4f}")  # 0.5 + 0.5 * 1.5 against -1
0.5870
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from prefjax.losses.links import logistic
from prefjax.losses.reducers import gap, log_ratio, of_pairs, pairs, token_log_ratio, token_numbers, token_pairs
from prefjax.losses.registry import LOG2, REFERENCE, TOKENS, for_pairs
from prefjax.losses.responses import Responses
from prefjax.options import NonNegative, Positive, Share


@for_pairs(REFERENCE | {"kl"}, start=LOG2)
def tdpo1(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Token-level DPO, first form: -log sigmoid(beta (h - (K_l - K_w))).

    Source: arXiv 2404.11999, the loss of TDPO1, as in the authors' code.
    Tokens: summed, the KL over the vocabulary at every response position too.
    Start: log 2.
    Elsewhere: not in TRL or EasyDeL.

    Gradient flows through both KLs: that of the chosen response is pushed up, as a reward would be, and that of the
    rejected one down. Both are at their minimum at policy == reference, so the first step is that of `dpo`. Nothing
    bounds the KL that is pushed up: long training, and a small beta, run away from the reference. `tdpo2` does not.
    """
    r = pairs(r, "reference_logp", "kl")
    return of_pairs(r, logistic(beta * (gap(log_ratio(r)) + gap(r.kl))))


@for_pairs(REFERENCE | {"kl"}, start=LOG2)
def tdpo2(r: Responses, *, beta: Positive = 0.1, alpha: NonNegative = 0.5) -> Float[Array, "B"]:
    """Token-level DPO, second form: -log sigmoid(beta (h - alpha (K_l - stop_gradient(K_w)))).

    Source: arXiv 2404.11999, the loss of TDPO2, as in the authors' code.
    Tokens: summed, the KL over the vocabulary at every response position too.
    Start: log 2.
    Elsewhere: not in TRL or EasyDeL.

    Only the KL of the rejected response is learned from. alpha = 0 is `dpo`; alpha = 1 has the value of `tdpo1`.
    """
    r = pairs(r, "reference_logp", "kl")
    kl_w, kl_l = stop_gradient(r.kl[:, 0]), r.kl[:, 1]
    return of_pairs(r, logistic(beta * (gap(log_ratio(r)) - alpha * (kl_l - kl_w))))


@for_pairs(TOKENS, start=LOG2)
def ld_dpo(r: Responses, *, beta: Positive = 0.1, alpha: Share = 0.5) -> Float[Array, "B"]:
    """Length-desensitised DPO (LD-DPO): -log sigmoid(beta gap), gap the difference of sum_{t <= n} a_t + alpha
    sum_{t > n} a_t of the two responses, n = min(n_w, n_l).

    Source: arXiv 2409.06411; the weight alpha on policy and reference alike, as in TRL.
    Tokens: summed, those of the longer response beyond the length of the shorter one weighted by alpha.
    Start: log 2.
    Elsewhere: TRL `ld_alpha`. LLaMA-Factory weights the policy's log-probs alone, so its loss starts elsewhere.

    alpha = 1, or two responses of one length, is `dpo`; alpha = 0 compares as many tokens of both.
    """
    r = token_pairs(r, "token_logp", "token_reference_logp")
    shared = jnp.min(r.length, axis=-1)[:, None, None]
    weight = jnp.where(token_numbers(r.token_logp) < shared, 1, alpha)
    return of_pairs(r, logistic(beta * gap(jnp.sum(weight * token_log_ratio(r), axis=-1))))


@for_pairs(TOKENS | {"token_draw"}, start=LOG2)
def sampo(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """DPO on as many tokens of both responses (SamPO): -log sigmoid(beta gap), gap the difference of the sums of a_t
    over min(n_w, n_l) tokens of each response, drawn without replacement.

    Source: arXiv 2406.10957, its down-sampled reward difference; without replacement as in the authors' code.
    Tokens: summed over the drawn ones.
    Start: log 2.
    Elsewhere: not in TRL or EasyDeL. The authors' code draws for policy and reference apart, so a_t is not that of one
        token there, and its loss does not start at log 2.

    The shorter response keeps all of its tokens. The draw is a function of the seed and the example (`token_draw`), the
    same at every step, where the authors draw anew: a run is reproducible in every layout, and resumes exactly. Two
    responses of one length give `dpo`.
    """
    r = token_pairs(r, "token_logp", "token_reference_logp", "token_draw")
    present = token_numbers(r.token_draw) < r.length[..., None]
    ranks = jnp.argsort(jnp.argsort(jnp.where(present, r.token_draw, 2), axis=-1), axis=-1)  # no draw is above 1
    kept = ranks < jnp.min(r.length, axis=-1)[:, None, None]
    return of_pairs(r, logistic(beta * gap(jnp.sum(jnp.where(kept, token_log_ratio(r), 0), axis=-1))))


@for_pairs(TOKENS | {"token_weight"}, start=LOG2)
def target_dpo(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Focal DPO (Target-DPO, IterPref): -log sigmoid(beta (a_w - sum_t m_t a_t)), the sum over the rejected response.

    Source: arXiv 2503.02783, equations 4 to 6; m_t is 1 in the regions to be unlearned and 0 elsewhere.
    Tokens: summed, those of the rejected response weighted.
    Start: log 2.
    Elsewhere: not in TRL or EasyDeL.

    What is right in a rejected response is not pushed down, and the chosen one is learned whole. The paper's regions
    are the lines of the rejected program that the corrected one lacks; it trains with `rpo_nll`'s likelihood on top.
    """
    r = token_pairs(r, "token_logp", "token_reference_logp", "token_weight")
    a = token_log_ratio(r)
    margin = jnp.sum(a[:, 0], axis=-1) - jnp.sum(r.token_weight[:, 1] * a[:, 1], axis=-1)
    return of_pairs(r, logistic(beta * margin))


@for_pairs(TOKENS | {"token_kl", "token_weight"}, start=LOG2)
def sparsepo(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """SparsePO with given masks: -log sigmoid(beta (h - (K_l - K_w))) with sums weighted by m_t: h of m_t a_t and K of
    m_t k_t.

    Source: arXiv 2410.05102, the loss with one mask in common, as in the authors' code for masks without gradient.
    Tokens: summed, weighted by the mask, the KL over the vocabulary at every response position too.
    Start: log 2.
    Elsewhere: not in TRL or EasyDeL.

    The mask comes with the data; the paper makes it of the reference's activations (MaPO), or learns it. All ones is
    `tdpo1`, and what is said there of the chosen response's KL holds here.
    """
    r = token_pairs(r, "token_logp", "token_reference_logp", "token_kl", "token_weight")
    return of_pairs(r, logistic(beta * gap(jnp.sum(r.token_weight * (token_log_ratio(r) + r.token_kl), axis=-1))))


@for_pairs(TOKENS | {"token_weight", "token_segment"}, start=lambda r, **_: LOG2 * segment_pairs(r))
def two_d_dpo(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Two-dimensional DPO (2D-DPO): sum_{k <= N} -log sigmoid(beta (m_k^w a_k^w - m_k^l a_k^l)), N the smaller number
    of segments, a_k^w of the k-th best chosen segment and a_k^l of the k-th worst rejected one.

    Source: arXiv 2410.19720, equation 6.
    Tokens: summed over each segment.
    Start: N log 2.
    Elsewhere: not in TRL or EasyDeL.

    Segments are the data's spans, and their weight is the score over all aspects, which is what ranks them. A sum of
    log-sigmoids, not the log-sigmoid of a sum. One segment of weight 1 per response is `dpo`.
    """
    r = token_pairs(r, "token_logp", "token_reference_logp", "token_weight", "token_segment")
    counts = segment_sums(r, jnp.ones_like(r.token_segment))
    scores = segment_sums(r, r.token_weight) / jnp.maximum(counts, 1)
    rewards = scores * segment_sums(r, token_log_ratio(r))
    # Chosen segments from the best down, rejected ones from the worst up; those that are not there come last.
    order = jnp.argsort(jnp.where(counts > 0, scores * jnp.array([-1, 1])[None, :, None], jnp.inf), axis=-1)
    rewards = jnp.take_along_axis(rewards, order, axis=-1)
    paired = jnp.arange(order.shape[-1])[None] < segment_pairs(r)[:, None]
    return of_pairs(r, jnp.sum(jnp.where(paired, logistic(beta * (rewards[:, 0] - rewards[:, 1])), 0), axis=-1))


def segment_sums(r: Responses, x: Float[Array, "B K L"]) -> Float[Array, "B K M"]:
    """A token array summed over every segment; M = L is enough, as a segment holds a token."""
    size = x.shape[-1]
    # Tokens outside all segments have number 0, which the slice drops.
    one = lambda x, number: jax.ops.segment_sum(x, number, num_segments=size + 1)[1:]
    return jax.vmap(jax.vmap(one))(x, r.token_segment.astype(jnp.int32))


def segment_pairs(r: Responses) -> Float[Array, "B"]:
    """N: the smaller number of segments of the two responses."""
    r = token_pairs(r, "token_segment")
    there = segment_sums(r, jnp.ones_like(r.token_segment)) > 0
    return jnp.min(jnp.sum(there, axis=-1), axis=-1).astype(r.token_segment.dtype)
