"""Objectives on pairs that judge each response against the reference, not only the margin between the two.

Notation as in `pairwise`: a_w and a_l are the log-ratios in nats, sums over tokens; sp(x) = -log sigmoid(-x).

>>> import jax.numpy as jnp
>>> pair = Responses(logp=jnp.array([[-10.0, -12.0]]), reference_logp=jnp.array([[-11.0, -11.0]]))  # a = 1 and -1
>>> [f"{loss(pair, beta=0.1)[0]:.4f}" for loss in (apo_zero, apo_down, bco_pair, kto_pair, nca_pair, exo_pair, fdpo_js)]
['0.9500', '0.9751', '1.2888', '0.4626', '1.3388', '2.4220', '0.6444']
"""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.losses.links import alpha_shape, bernoulli_kl, logistic
from prefjax.losses.reducers import batch_mean, gap, log_ratio, of_pairs, pairs, sides
from prefjax.losses.registry import LOG2, REFERENCE, TARGET, for_pairs
from prefjax.losses.responses import Responses
from prefjax.options import NonNegative, Positive, Range


@for_pairs(REFERENCE, start=1.0)
def apo_zero(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Anchored preference optimisation, zero: sigmoid(-beta a_w) + sigmoid(beta a_l).

    Source: arXiv 2408.06266, equation 7.
    Tokens: summed.
    Start: 1.
    Elsewhere: TRL and EasyDeL `apo_zero`.

    For chosen responses better than the model's own: the chosen is pushed up and the rejected down, each fading as it
    leaves the reference. Twice the mean of `apo_zero_unpaired` over the pair.
    """
    r = pairs(r, "reference_logp")
    a_w, a_l = sides(log_ratio(r))
    return of_pairs(r, jax.nn.sigmoid(-beta * a_w) + jax.nn.sigmoid(beta * a_l))


@for_pairs(REFERENCE, start=1.0)
def apo_down(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Anchored preference optimisation, down: sigmoid(beta a_w) + sigmoid(-beta h).

    Source: arXiv 2408.06266, equation 8.
    Tokens: summed.
    Start: 1.
    Elsewhere: TRL and EasyDeL `apo_down`.

    For chosen responses worse than the model's own: both are pushed down, the rejected one more. At the start the push
    on the chosen is 0.
    """
    r = pairs(r, "reference_logp")
    a = log_ratio(r)
    return of_pairs(r, jax.nn.sigmoid(beta * a[:, 0]) + jax.nn.sigmoid(-beta * gap(a)))


@for_pairs(REFERENCE, start=2 * LOG2)
def bco_pair(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Binary classification of a pair without a reward shift: sp(-beta a_w) + sp(beta a_l).

    Source: arXiv 2404.04656 with its shift at 0 (`bco` has the shift).
    Tokens: summed.
    Start: 2 log 2.
    Elsewhere: TRL and EasyDeL `bco_pair`; TRL's paper index prints DPO's formula for it.

    An upper bound of `dpo` for every shift. Twice the mean of `ulma_binary` over the pair.
    """
    r = pairs(r, "reference_logp")
    a_w, a_l = sides(log_ratio(r))
    return of_pairs(r, logistic(beta * a_w) + logistic(-beta * a_l))


@for_pairs(REFERENCE, start=0.5, coupled=True)
def kto_pair(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """KTO on pairs as it was before KTO's paper: 1/2 sigmoid(-beta (a_w - z_l)) + 1/2 sigmoid(beta (a_l - z_w)).

    Source: the report that came before arXiv 2402.01306, its equation 7 as TRL up to 0.8 has it.
    Tokens: summed.
    Start: 1/2.
    Elsewhere: TRL's DPO trainer had it as `kto_pair` and has removed it for KTO's own.

    z_w = max(0, mean a_w over the batch), z_l = max(0, mean a_l): how far the policy is from the reference is estimated
    for each half from the other one, so the objective is coupled: give it the global batch. As in that code gradient
    flows through both, but at the kink, where policy == reference, there is none. The paper's estimate, from mismatched
    responses and without gradient, is `kto`.
    """
    r = pairs(r, "reference_logp")
    a_w, a_l = sides(log_ratio(r))
    z_w, z_l = (jax.nn.relu(batch_mean(a, r.valid[:, 0])) for a in (a_w, a_l))
    return of_pairs(r, (jax.nn.sigmoid(-beta * (a_w - z_l)) + jax.nn.sigmoid(beta * (a_l - z_w))) / 2)


@for_pairs(REFERENCE, start=2 * LOG2)
def nca_pair(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Noise contrastive alignment of a pair: sp(-beta a_w) + 1/2 sp(beta a_w) + 1/2 sp(beta a_l).

    Source: arXiv 2402.05369, table 1.
    Tokens: summed.
    Start: 2 log 2.
    Elsewhere: TRL and EasyDeL `nca_pair`; TRL recommends beta = 0.01.

    The chosen response has a resting point, beta a_w = log 2, so its likelihood can neither fall nor run away. `nca`
    on two responses with all reward on the first.
    """
    r = pairs(r, "reference_logp")
    a_w, a_l = sides(log_ratio(r))
    return of_pairs(r, logistic(beta * a_w) + (logistic(-beta * a_w) + logistic(-beta * a_l)) / 2)


@for_pairs(TARGET, start=lambda r, beta: jnp.sum((r.target - 0.5) ** 2, axis=-1) / beta**2, reads="probabilities")
def sppo(r: Responses, *, beta: Positive = 1e-3) -> Float[Array, "B"]:
    """Self-play preference optimisation: (a_w - (P_w - 1/2) / beta)^2 + (a_l - (P_l - 1/2) / beta)^2, P = `target`.

    Source: arXiv 2405.00675, equation 4.7 summed over the two responses; beta is its 1 / eta.
    Tokens: summed.
    Start: [(P_w - 1/2)^2 + (P_l - 1/2)^2] / beta^2.
    Elsewhere: TRL and EasyDeL `sppo_hard`, with P = 1 and 0 (the labels of a pair); the authors' code takes half.

    P is the estimated probability that a response beats one of the policy's, in [0, 1]; ratings are not. With the
    default beta each log-ratio is asked to move by up to 500 nats; the early loss is large and the gradient nearly
    constant.
    """
    r = pairs(r, "reference_logp", "target")
    excess = log_ratio(r) - (r.target - 0.5) / beta
    return of_pairs(r, excess[:, 0] ** 2 + excess[:, 1] ** 2)


@for_pairs(REFERENCE, start=lambda r, beta, weight: LOG2 + weight / (2 * beta**2))
def cal_dpo(r: Responses, *, beta: Positive = 2e-3, weight: NonNegative = 0.5) -> Float[Array, "B"]:
    """Calibrated DPO: -log sigmoid(h) + weight [(a_w - 1 / (2 beta))^2 + (a_l + 1 / (2 beta))^2].

    Source: arXiv 2412.14516, as in the authors' code (its constants too; the paper's are not verified).
    Tokens: summed.
    Start: log 2 + weight / (2 beta^2).
    Elsewhere: not in TRL or EasyDeL.

    There is no beta in the sigmoid. The calibration term, `weight` times `sppo` with P = 1 and 0, gives each log-ratio
    a target of its own, so the chosen likelihood cannot fall with the rejected one.
    """
    r = pairs(r, "reference_logp")
    a_w, a_l = sides(log_ratio(r))
    calibration = (a_w - 1 / (2 * beta)) ** 2 + (a_l + 1 / (2 * beta)) ** 2
    return of_pairs(r, logistic(a_w - a_l) + weight * calibration)


@for_pairs(REFERENCE, start=lambda r, label_smoothing, **_: -math.log(4 * label_smoothing * (1 - label_smoothing)) / 2)
def exo_pair(
    r: Responses, *, beta: Positive = 0.1, label_smoothing: Annotated[float, Range(above=0, below=1)] = 1e-3
) -> Float[Array, "B"]:
    """Exact optimisation (EXO) of a pair: KL((s, 1 - s) || (1 - e, e)), s = sigmoid(beta h), e = `label_smoothing`.

    Source: arXiv 2402.00856, equation 16.
    Tokens: summed.
    Start: -log(4 e (1 - e)) / 2.
    Elsewhere: TRL and EasyDeL `exo_pair`; the authors' code uses log-targets (0, -10).

    The KL in the mode-seeking direction, opposite to the cross-entropy of `cdpo`. Minimal, and 0, at
    beta h = log((1 - e) / e). e must be positive: without smoothing the KL is infinite.

    Raises:
        ValueError: label_smoothing is not in (0, 1).
    """
    if not 0 < label_smoothing < 1:
        raise ValueError(f"exo_pair needs 0 < label_smoothing < 1, got {label_smoothing}")
    r = pairs(r, "reference_logp")
    return of_pairs(r, bernoulli_kl(beta * gap(log_ratio(r)), math.log((1 - label_smoothing) / label_smoothing)))


@for_pairs(REFERENCE, start=LOG2)
def fdpo(r: Responses, *, beta: Positive = 0.1, alpha: NonNegative = 0.5) -> Float[Array, "B"]:
    """DPO under an alpha-divergence (f-DPO): -log sigmoid(beta (f'(e^a_w) - f'(e^a_l))), f'(e^a) =
    (1 - e^(-alpha a)) / alpha.

    Source: arXiv 2309.16240.
    Tokens: summed.
    Start: log 2.
    Elsewhere: TRL `f_divergence_type` alpha_divergence, reverse_kl (the default) or forward_kl; its
        f_alpha_divergence_coef is 1 - alpha.

    alpha = 0 is the reverse KL, that is `dpo` (f' = a); alpha = 1 the forward KL (f' = 1 - e^-a), where a response that
    falls below the reference counts exponentially. The exponential goes on as its tangent beyond e^30.
    """
    r = pairs(r, "reference_logp")
    return of_pairs(r, logistic(beta * gap(alpha_shape(log_ratio(r), alpha))))


@for_pairs(REFERENCE, start=LOG2)
def fdpo_js(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """DPO under the Jensen-Shannon divergence: -log sigmoid(beta (log sigmoid(a_w) - log sigmoid(a_l))).

    Source: arXiv 2309.16240, f'(u) = log(2u / (1 + u)).
    Tokens: summed.
    Start: log 2.
    Elsewhere: TRL `f_divergence_type` js_divergence.

    A chosen response far above the reference counts no more: log sigmoid saturates at 0.
    """
    r = pairs(r, "reference_logp")
    return of_pairs(r, logistic(beta * gap(jax.nn.log_sigmoid(log_ratio(r)))))
