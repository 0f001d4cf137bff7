"""Objectives on K-wise data: at least two responses to a prompt, compared with each other by their `target` scores.

Notation of the docstrings, all in nats and all sums over response tokens (EOS included):

    s_i  = beta (logp_i - reference_logp_i)     the implicit reward of response i; 0 when policy == reference
    psi_i = target_i                            its score, higher is better
    sp(x) = log(1 + e^x) = -log sigmoid(-x)

Every loss is [B], one number per prompt, over its valid responses; a prompt with fewer than two contributes exactly
nothing. K may differ from prompt to prompt.

>>> r = Responses(
...     logp=jnp.array([[-10.0, -12.0, -11.0]]),
...     reference_logp=jnp.full((1, 3), -11.0),
...     target=jnp.array([[1.0, 0.0, 0.5]]),
... )
>>> [f"{loss(r, beta=0.1)[0]:.4f}" for loss in (pl_dpo, lipo_lambda, infonca, nca, exo_rw)]
['1.6463', '0.6829', '1.0699', '1.3720', '0.2458']
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from prefjax.losses.links import logistic
from prefjax.losses.reducers import groups, log_ratio, of_groups, per_token
from prefjax.losses.registry import LENGTH, LOG2, TARGET, for_rankings
from prefjax.losses.responses import Responses
from prefjax.options import NonNegative, Positive

_NOWHERE = -1e30  # the score of an invalid slot: its probability is exactly 0, and nothing becomes NaN


def _log_count(r: Responses, **_) -> Float[Array, "B"]:
    return jnp.log(jnp.maximum(jnp.sum(r.valid, axis=-1), 1).astype(r.logp.dtype))


def log_rankings(r: Responses, **_) -> Float[Array, "B"]:
    """log K! of the valid responses: all rankings are equally likely."""
    earlier = jnp.cumsum(r.valid, axis=-1)
    return jnp.sum(jnp.where(r.valid, jnp.log(jnp.maximum(earlier, 1).astype(r.dtype)), 0), axis=-1)


def _lipo_start(r: Responses, **_) -> Float[Array, "B"]:
    return LOG2 * jnp.sum(lambda_weights(r, jnp.zeros_like(r.logp)), axis=(1, 2))


def _exo_start(r: Responses, reward_temperature, **_) -> Float[Array, "B"]:
    """The KL from uniform to softmax(psi / beta_r) over the valid responses."""
    x = r.target / reward_temperature
    highest = jnp.max(jnp.where(r.valid, x, -1e30), axis=-1, keepdims=True)
    return jnp.log(r.prompt_mean(jnp.exp(jnp.where(r.valid, x - highest, 0)))) + highest[:, 0] - r.prompt_mean(x)


@for_rankings(TARGET, start=log_rankings, reads="scores")
def pl_dpo(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Plackett-Luce DPO: sum over ranks k of [log sum_{j ranked k or below} e^s_j - s_(k)].

    Source: arXiv 2305.18290, appendix A.3.
    Tokens: summed.
    Start: log(K!), K the valid responses.
    Elsewhere: not in TRL or EasyDeL.

    The negative log-likelihood of the ranking by score; equal scores are ranked in the order of the slots. K = 2 is
    `dpo`.
    """
    r = groups(r, "reference_logp", "target")
    return plackett_luce(r, beta * log_ratio(r))


def plackett_luce(r: Responses, s: Float[Array, "B K"]) -> Float[Array, "B"]:
    """-log P(the ranking by target) when responses are drawn one after the other with odds e^s. `r` is masked."""
    # left[k, j]: response j is still to be ranked when k is, k itself included.
    left = (~_above(r.target).swapaxes(1, 2) & r.valid[:, None, :]) | jnp.eye(s.shape[1], dtype=bool)[None]
    normalizers = jax.nn.logsumexp(jnp.where(left, s[:, None, :], _NOWHERE), axis=-1)
    return of_groups(r, jnp.sum(jnp.where(r.valid, normalizers - s, 0), axis=-1))


def ordered_pairs(r: Responses) -> Bool[Array, "B K K"]:
    """[i, j]: both are valid and i has the higher target. `r` is masked."""
    return (_differences(r.target) > 0) & _both(r)


@for_rankings(TARGET, start=_lipo_start, reads="scores")
def lipo_lambda(r: Responses, *, beta: Positive = 0.05) -> Float[Array, "B"]:
    """LiPO-lambda: sum over psi_i > psi_j of D_ij sp(-(s_i - s_j)), D_ij = |2^psi_i - 2^psi_j|
    |1 / log(1 + tau_i) - 1 / log(1 + tau_j)|, tau the ranks by s.

    Source: arXiv 2402.01878, the lambda-weighted pairwise logistic loss.
    Tokens: summed.
    Start: log 2 sum_{psi_i > psi_j} D_ij, tau in the order of the slots.
    Elsewhere: not in TRL or EasyDeL.

    tau_i is the rank of response i by s, 1 for the highest, recomputed at every step and detached: the loss jumps where
    two responses change places. Equal s are ranked in the order of the slots, equal scores contribute nothing. Scores
    should be of order 1, as the gain is 2^psi. K = 2 is `dpo` times a constant per prompt.
    """
    r = groups(r, "reference_logp", "target")
    s = beta * log_ratio(r)
    weights = lambda_weights(r, stop_gradient(s))
    return of_groups(r, jnp.sum(weights * logistic(s[:, :, None] - s[:, None, :]), axis=(1, 2)))


def lambda_weights(r: Responses, s: Float[Array, "B K"]) -> Float[Array, "B K K"]:
    """D_ij of `lipo_lambda` where psi_i > psi_j and both are valid, else 0."""
    rank = 1 + jnp.sum(_above(s) & r.valid[:, :, None], axis=1)
    gain, discount = 2**r.target, 1 / jnp.log1p(rank)
    return jnp.where(ordered_pairs(r), jnp.abs(_differences(gain) * _differences(discount)), 0)


@for_rankings(TARGET, start=_log_count, reads="scores")
def infonca(r: Responses, *, beta: Positive = 0.01, reward_temperature: Positive = 1.0) -> Float[Array, "B"]:
    """InfoNCA: the cross-entropy -sum_i softmax(psi / alpha)_i log softmax(s)_i, alpha = `reward_temperature`.

    Source: arXiv 2402.05369, as in the authors' code; the temperature's default is ours.
    Tokens: summed.
    Start: log K, K the valid responses.
    Elsewhere: not in TRL or EasyDeL; the authors' code calls alpha temperature_alpha.

    Minimal where s = psi / alpha up to a constant per prompt. With all reward on one response of two it is `dpo`.
    """
    r = groups(r, "reference_logp", "target")
    wanted = jnp.exp(_log_softmax(r, r.target / reward_temperature))
    return of_groups(r, -jnp.sum(wanted * _log_softmax(r, beta * log_ratio(r)), axis=-1))


@for_rankings(TARGET, start=_log_count, reads="scores")
def dpo_rw(r: Responses, *, beta: Positive = 0.5, reward_temperature: Positive = 0.5) -> Float[Array, "B"]:
    """DPO from rewards (DPO-rw): the cross-entropy of `infonca` with the coefficients of EXO's experiments.

    Source: arXiv 2402.00856 and its code (beta_pi and beta_r).
    Tokens: summed.
    Start: log K, K the valid responses.
    Elsewhere: not in TRL or EasyDeL.

    KL(softmax(psi / beta_r) || softmax(s)) up to a constant: mode-covering, where `exo_rw` is mode-seeking.
    """
    return infonca(r, beta=beta, reward_temperature=reward_temperature)


@for_rankings(TARGET, start=_exo_start, reads="scores")
def exo_rw(r: Responses, *, beta: Positive = 0.5, reward_temperature: Positive = 0.5) -> Float[Array, "B"]:
    """Exact optimisation (EXO) from rewards: KL(softmax(s) || softmax(psi / beta_r)), beta_r = `reward_temperature`.

    Source: arXiv 2402.00856, as in its code (beta_pi and beta_r).
    Tokens: summed.
    Start: log-mean-exp minus mean of psi / beta_r over the valid responses.
    Elsewhere: not in TRL or EasyDeL.

    Zero where s = psi / beta_r up to a constant per prompt; `exo_pair` is the case of two responses with a smoothed
    label.
    """
    r = groups(r, "reference_logp", "target")
    log_p = _log_softmax(r, beta * log_ratio(r))
    difference = log_p - _log_softmax(r, r.target / reward_temperature)
    return of_groups(r, jnp.sum(jnp.exp(log_p) * jnp.where(r.valid, difference, 0), axis=-1))


@for_rankings(TARGET, start=2 * LOG2, reads="scores")
def nca(r: Responses, *, beta: Positive = 0.01, reward_temperature: Positive = 1.0) -> Float[Array, "B"]:
    """Noise contrastive alignment: sum_i [softmax(psi / alpha)_i sp(-s_i) + sp(s_i) / K], alpha = `reward_temperature`.

    Source: arXiv 2402.05369, as in the authors' code; the temperature's default is ours.
    Tokens: summed.
    Start: 2 log 2.
    Elsewhere: TRL and EasyDeL have the pair, `nca_pair`; the authors' code adds 0.01 to the first score.

    Unlike `infonca` it is no function of differences: each s_i has a resting point of its own.
    """
    r = groups(r, "reference_logp", "target")
    s = beta * log_ratio(r)
    wanted = jnp.exp(_log_softmax(r, r.target / reward_temperature))
    return of_groups(r, jnp.sum(wanted * logistic(s), axis=-1) + r.prompt_mean(logistic(-s)))


@for_rankings({"target"}, optional={"auxiliary_logp"}, reads="scores")
def slic_list(r: Responses, *, delta: NonNegative = 1.0, regularizer_weight: NonNegative = 0.1) -> Float[Array, "B"]:
    """SLiC's list rank: sum over i ranked above j of max(0, delta (rank_j - rank_i) - logp_i + logp_j), minus the
    regulariser regularizer_weight log pi(y_ref).

    Source: arXiv 2210.00045, equation 1, list-rank calibration; its beta is delta, whose default is SLiC-HF's.
    Tokens: summed.
    Start: depends on the model.
    Elsewhere: not in TRL or EasyDeL.

    Ranks are by score, equal scores in the order of the slots. No reference model. y_ref is `auxiliary_logp` when the
    batch has it, otherwise the best-ranked response. K = 2 is `slic`.
    """
    r = groups(r, "target")
    above = _above(r.target) & _both(r)
    rank = jnp.sum(above, axis=1)
    steps = (rank[:, None, :] - rank[:, :, None]).astype(r.logp.dtype)
    hinges = jax.nn.relu(delta * steps - _differences(r.logp))
    best = jnp.sum(jnp.where((rank == 0) & r.valid, r.logp, 0), axis=-1)
    target_logp = best if r.auxiliary_logp is None else r.auxiliary_logp
    return of_groups(r, jnp.sum(jnp.where(above, hinges, 0), axis=(1, 2)) - regularizer_weight * target_logp)


def _above(x: Float[Array, "B K"]) -> Bool[Array, "B K K"]:
    """[i, j]: i is ranked above j by x, descending, equal values in the order of the slots."""
    first = jnp.triu(jnp.ones((1, x.shape[1], x.shape[1]), bool), 1)
    difference = _differences(x)
    return (difference > 0) | ((difference == 0) & first)


def _differences(x: Float[Array, "B K"]) -> Float[Array, "B K K"]:
    return x[:, :, None] - x[:, None, :]


def _both(r: Responses) -> Bool[Array, "B K K"]:
    return r.valid[:, :, None] & r.valid[:, None, :]


def _log_softmax(r: Responses, x: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """log softmax over the valid responses of each prompt; at the others so low that their probability is 0."""
    return jnp.where(r.valid, jax.nn.log_softmax(jnp.where(r.valid, x, _NOWHERE), axis=-1), _NOWHERE)


@for_rankings(LENGTH | {"target"}, reads="scores", min_responses=3)
def tpo(r: Responses, *, beta: Positive = 0.01, alpha: NonNegative = 1.0) -> Float[Array, "B"]:
    """Triple preference optimisation (TPO): -log sigmoid(beta (logp_w - logp_l)) - alpha m_g, g the best response by
    score, w the second and l the worst, m_g = logp_g / n_g.

    Source: arXiv 2405.16681, the loss and the three responses as in the authors' code.
    Tokens: summed in the margin, mean in the likelihood.
    Start: depends on the model.
    Elsewhere: TRL's experimental TPO with `sigmoid`, whose likelihood is a mean over all tokens of the batch, as the
        authors' is; not in EasyDeL.

    No reference. A gold, a chosen and a rejected response are a ranking with three scores; of more responses those
    between count for nothing, and a prompt with fewer than three does not count.
    """
    r = groups(r, "length", "target", least=3)
    _, chosen, rejected = _triple(r, r.logp)
    return of_groups(r, logistic(beta * (chosen - rejected)) - alpha * _triple(r, per_token(r, r.logp))[0])


@for_rankings(LENGTH | {"target"}, reads="scores", min_responses=3)
def tpo_l(
    r: Responses, *, beta: Positive = 2.0, gamma: NonNegative = 1.6, alpha: NonNegative = 0.05
) -> Float[Array, "B"]:
    """Length-controlled TPO (TPO-L): -log sigmoid(beta (m_w - m_l) - gamma) - alpha m_g, g, w and l as of `tpo`,
    m = logp / n.

    Source: arXiv 2405.16681, as in the authors' code; the defaults are theirs for Mistral.
    Tokens: mean.
    Start: depends on the model.
    Elsewhere: TRL's experimental TPO with `tpo-l` and tpo_l_gamma = gamma; not in EasyDeL.

    `simpo` on the second and the worst response, with the likelihood of the best.
    """
    r = groups(r, "length", "target", least=3)
    gold, chosen, rejected = _triple(r, per_token(r, r.logp))
    return of_groups(r, logistic(beta * (chosen - rejected) - gamma) - alpha * gold)


def _triple(r: Responses, x: Float[Array, "B K"]) -> tuple[Float[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """x of the best, the second and the worst response by target, equal ones in the order of the slots."""
    order = jnp.argsort(jnp.where(r.valid, -r.target, jnp.inf), axis=-1, stable=True)
    last = jnp.maximum(jnp.sum(r.valid, axis=-1) - 1, 0)
    ordered = jnp.take_along_axis(x, order, axis=-1)
    return ordered[:, 0], ordered[:, 1], jnp.take_along_axis(ordered, last[:, None], axis=-1)[:, 0]
