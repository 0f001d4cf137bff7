"""Objectives on pairs without a reference model.

Notation: logp_w and logp_l are the log-probs of the chosen and the rejected response in nats, sums over tokens;
m_w = logp_w / n_w and m_l = logp_l / n_l are their means per token. No start value: the loss at policy == reference
depends on the model.

>>> import jax.numpy as jnp
>>> pair = Responses(logp=jnp.array([[-10.0, -12.0]]), length=jnp.array([[5.0, 4.0]]))
>>> [f"{loss(pair)[0]:.4f}" for loss in (slic, rso_hinge_raw, simpo, alphapo, cpo, orpo)]
['1.0000', '0.9000', '0.2014', '0.0102', '10.5981', '2.0289']
"""

import jax
from jaxtyping import Array, Float

from prefjax.losses.links import alpha_shape, exp, hinge, log_odds, logistic
from prefjax.losses.reducers import gap, of_pairs, pairs, per_token
from prefjax.losses.registry import LENGTH, for_pairs
from prefjax.losses.responses import Responses
from prefjax.options import Finite, NonNegative, Positive


@for_pairs(optional={"auxiliary_logp"})
def slic(r: Responses, *, delta: NonNegative = 1.0, regularizer_weight: NonNegative = 0.1) -> Float[Array, "B"]:
    """SLiC-HF: max(0, delta - logp_w + logp_l) - regularizer_weight log pi(y_ref).

    Source: arXiv 2305.10425, equation 4.
    Tokens: summed.
    Start: depends on the model.
    Elsewhere: not in TRL or EasyDeL; their `hinge` (Liger's too, and torchtune's RSOLoss) is `rso_hinge`.

    A hinge on the raw log-probs with a margin of `delta` nats, plus cross-entropy on a regulariser target y_ref:
    `auxiliary_logp` when the batch has it (the paper's SFT target), otherwise the chosen response (the paper's
    best-ranked candidate; it reports little difference). The paper sets delta = 1 and does not report the regulariser's
    weight; 0.1 is the choice of HALOs.
    """
    r = pairs(r)
    target_logp = r.logp[:, 0] if r.auxiliary_logp is None else r.auxiliary_logp
    return of_pairs(r, jax.nn.relu(delta - gap(r.logp)) - regularizer_weight * target_logp)


@for_pairs()
def rso_hinge_raw(r: Responses, *, gamma: Positive = 0.05) -> Float[Array, "B"]:
    """RSO's hinge loss without a reference: max(0, 1 - gamma (logp_w - logp_l)).

    Source: arXiv 2309.06657, equation 9.
    Tokens: summed.
    Start: depends on the model.
    Elsewhere: TRL's and EasyDeL's CPO with `hinge` (which adds its own likelihood term).

    gamma times SLiC's hinge with delta = 1 / gamma.
    """
    r = pairs(r)
    return of_pairs(r, hinge(gamma * gap(r.logp)))


@for_pairs(LENGTH)
def simpo(r: Responses, *, beta: Positive = 2.0, gamma: NonNegative = 0.5) -> Float[Array, "B"]:
    """Simple preference optimisation: -log sigmoid(beta (m_w - m_l) - gamma).

    Source: arXiv 2405.14734, equation 6.
    Tokens: mean.
    Start: depends on the model.
    Elsewhere: TRL's and EasyDeL's CPO with `simpo`, cpo_alpha = 0 and simpo_gamma = gamma.

    The paper uses beta 2 to 2.5 and gamma 0.3 to 1.6; the authors' code sets gamma through gamma_beta_ratio = gamma /
    beta.
    """
    r = pairs(r, "length")
    return of_pairs(r, logistic(beta * gap(per_token(r, r.logp)) - gamma))


@for_pairs(LENGTH)
def alphapo(r: Responses, *, beta: Positive = 2.5, gamma: NonNegative = 0.1, alpha: Finite = 0.25) -> Float[Array, "B"]:
    """AlphaPO: -log sigmoid(beta (r_w - r_l) - gamma), r = (1 - p^-alpha) / alpha with p = e^m per token.

    Source: arXiv 2501.03884; the defaults from its table 3 (Mistral-Instruct).
    Tokens: mean.
    Start: depends on the model.
    Elsewhere: TRL's CPO with `alphapo`; EasyDeL's CPO with alpha.

    alpha = 0 is `simpo` (r = m). Positive alpha pushes unlikely responses up more strongly.
    """
    r = pairs(r, "length")
    return of_pairs(r, logistic(beta * gap(alpha_shape(per_token(r, r.logp), alpha)) - gamma))


@for_pairs()
def cpo(r: Responses, *, beta: Positive = 0.1, alpha: NonNegative = 1.0) -> Float[Array, "B"]:
    """Contrastive preference optimisation: -log sigmoid(beta (logp_w - logp_l)) - alpha logp_w.

    Source: arXiv 2401.08417.
    Tokens: summed.
    Start: depends on the model.
    Elsewhere: TRL's and EasyDeL's CPO with `sigmoid`, whose likelihood is a mean over all tokens of the batch.

    The first term is `dpo` with a uniform reference.
    """
    r = pairs(r)
    return of_pairs(r, logistic(beta * gap(r.logp)) - alpha * r.logp[:, 0])


@for_pairs(LENGTH)
def orpo(r: Responses, *, weight: NonNegative = 0.1) -> Float[Array, "B"]:
    """Odds ratio preference optimisation: -m_w - weight log sigmoid(log odds(e^m_w) - log odds(e^m_l)).

    Source: arXiv 2403.07691, equations 3 to 7; weight is its lambda.
    Tokens: mean.
    Start: depends on the model.
    Elsewhere: TRL and EasyDeL have it as a trainer, weight named beta; TRL's likelihood covers the prompt too, as a
        mean over all tokens of the batch.

    odds(p) = p / (1 - p) of the mean token log-prob; with sums p would vanish and the odds ratio say nothing. A mean
    token probability above 1 - 1e-6 counts as that.
    """
    r = pairs(r, "length")
    mean = per_token(r, r.logp)
    return of_pairs(r, -mean[:, 0] + weight * logistic(gap(log_odds(mean))))


@for_pairs(LENGTH)
def simper(r: Responses) -> Float[Array, "B"]:
    """Inverse perplexity (SimPER): e^m_l - e^m_w, m the mean log-prob per token.

    Source: arXiv 2502.00883, as in the authors' code.
    Tokens: mean.
    Start: depends on the model.
    Elsewhere: not in TRL or EasyDeL.

    No reference and no option. Between -1 and 1; the gradient of a response is weighted by its own inverse perplexity,
    so that an unlikely rejected one is left alone.
    """
    r = pairs(r, "length")
    return of_pairs(r, -gap(exp(per_token(r, r.logp))))
