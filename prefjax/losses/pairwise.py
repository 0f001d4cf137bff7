"""Objectives on pairs that look at one number, how far the policy's margin is above the reference's: DPO and its kin.

Notation of the docstrings, all in nats and all sums over response tokens (EOS included) unless a line says "per token":

    a_w, a_l  = logp - reference_logp       the log-ratio of the chosen and of the rejected response
    h         = a_w - a_l                   the margin; 0 when policy == reference
    n_w, n_l                                response tokens
    sp(x)     = log(1 + e^x) = -log sigmoid(-x)

Every loss is [B], one number per prompt, unreduced; a pair counts only if both of its slots are valid, and any other
contributes exactly zero loss and zero gradient. At a kink the subgradient is 0. The doctests' pair has h = 2 nats.

>>> pair = Responses(logp=jnp.array([[-10.0, -12.0]]), reference_logp=jnp.array([[-11.0, -11.0]]))
>>> [f"{loss(pair)[0]:.4f}" for loss in (dpo, ipo, rso_hinge, gpo, discopop)]
['0.5981', '9.0000', '0.9000', '0.8187', '0.8738']
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from prefjax.losses.links import LINKS, exp, hinge, logistic
from prefjax.losses.objective import Carried
from prefjax.losses.reducers import (
    batch_mean,
    from_zero,
    gap,
    log_ratio,
    moving_mean,
    of_pairs,
    pairs,
    per_token,
    sides,
)
from prefjax.losses.registry import LENGTH, LOG2, REFERENCE, for_pairs
from prefjax.losses.responses import Responses
from prefjax.options import BelowOne, NonNegative, Positive


@for_pairs(REFERENCE, start=LOG2)
def dpo(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Direct preference optimisation: -log sigmoid(beta h).

    Source: arXiv 2305.18290, equation 7.
    Tokens: summed.
    Start: log 2.
    Elsewhere: TRL and EasyDeL `sigmoid`.

    The push on the chosen log-prob is beta sigmoid(-beta h): close to beta while the pair is ranked badly wrong,
    beta / 2 at the reference, fading to 0 as h grows; no finite h minimises the loss. Only h matters, so both log-probs
    may fall together. Joint preferences (DOVE, arXiv 2404.00530) are this loss on responses to two different prompts.
    """
    r = pairs(r, "reference_logp")
    return of_pairs(r, logistic(beta * gap(log_ratio(r))))


def usual_margin(r: Responses, *, momentum: float, **_: float | str) -> dict[str, Float[Array, ""]]:
    """The moving average of the batches' mean margin h."""
    r = pairs(r, "reference_logp")
    return {"margin": moving_mean(r, "margin", gap(log_ratio(r)), r.valid[:, 0], momentum)}


@for_pairs(REFERENCE, start=LOG2, coupled=True, carries=Carried(from_zero("margin"), usual_margin))
def beta_dpo(
    r: Responses,
    *,
    beta: Positive = 0.1,
    scaling: NonNegative = 0.6,
    momentum: BelowOne = 0.9,
    per: Literal["batch", "pair"] = "batch",
) -> Float[Array, "B"]:
    """DPO with a dynamic beta (beta-DPO): -log sigmoid(b h), b = max(0.001, beta (1 + scaling (M - M0))), M the mean h
    of the batch, M0 its moving average.

    Source: arXiv 2407.08639, as in its authors' code: h in nats, nothing flows through b.
    Tokens: summed.
    Start: log 2.
    Elsewhere: not in TRL or EasyDeL; the authors' code also draws which pairs of a batch count, more of those near M0.

    A batch whose pairs are ranked more clearly than usual gets a larger beta, and stays nearer to the reference. The
    train state carries M0, which is 0 at first and moves before it is read: momentum M0 + (1 - momentum) M. M is a
    statistic of the batch, so the objective is coupled: give it the global one.

    per  "batch": one b for all pairs, as in the authors' code. "pair": one for each, of its own h in place of M.

    Raises:
        ValueError: per is neither.
    """
    if per not in ("batch", "pair"):
        raise ValueError(f"beta_dpo takes per='batch' or 'pair', got {per!r}")
    r = pairs(r, "reference_logp")
    h, usual = gap(log_ratio(r)), usual_margin(r, momentum=momentum)["margin"]
    margin = h if per == "pair" else batch_mean(h, r.valid[:, 0])
    return of_pairs(r, logistic(stop_gradient(jnp.maximum(1e-3, beta * (1 + scaling * (margin - usual)))) * h))


@for_pairs(REFERENCE | LENGTH, start=LOG2)
def dpo_norm(r: Responses, *, beta: Positive = 5.0) -> Float[Array, "B"]:
    """Length-normalised DPO: -log sigmoid(beta (a_w / n_w - a_l / n_l)).

    Source: arXiv 2411.15124 (Tulu 3), equation 6.
    Tokens: mean.
    Start: log 2.
    Elsewhere: TRL `sigmoid_norm`; open-instruct `dpo_norm`.

    With two responses of n tokens it is `dpo` with beta / n, hence the large beta.
    """
    r = pairs(r, "reference_logp", "length")
    return of_pairs(r, logistic(beta * gap(per_token(r, log_ratio(r)))))


@for_pairs(REFERENCE | LENGTH, start=lambda r, alpha, **_: logistic(alpha * gap(r.length)))
def r_dpo(r: Responses, *, beta: Positive = 0.1, alpha: NonNegative = 0.01) -> Float[Array, "B"]:
    """Length-regularised DPO (R-DPO): -log sigmoid(beta h + alpha (n_w - n_l)).

    Source: arXiv 2403.19159; the sign as derived from its length-penalised reward, and as in SamPO's code.
    Tokens: summed.
    Start: sp(-alpha (n_w - n_l)).
    Elsewhere: not in TRL or EasyDeL.

    A longer chosen response counts as partly explained by its length, so it is pushed less. The paper tunes alpha.
    """
    r = pairs(r, "reference_logp", "length")
    return of_pairs(r, logistic(beta * gap(log_ratio(r)) + alpha * gap(r.length)))


@for_pairs(REFERENCE, start=LOG2)
def dpop(r: Responses, *, beta: Positive = 0.3, penalty: NonNegative = 50.0) -> Float[Array, "B"]:
    """DPO-positive: -log sigmoid(beta (h - penalty max(0, -a_w))).

    Source: arXiv 2402.13228, equation 3.
    Tokens: summed.
    Start: log 2.
    Elsewhere: not in TRL or EasyDeL.

    Equals `dpo` wherever the chosen response is at least as likely as under the reference. Policy == reference lies on
    the kink: with subgradient 0 the first step is that of DPO; with 1 (torch.clamp) it would be 1 + penalty times that.
    """
    r = pairs(r, "reference_logp")
    a = log_ratio(r)
    return of_pairs(r, logistic(beta * (gap(a) - penalty * jax.nn.relu(-a[:, 0]))))


@for_pairs(REFERENCE, start=lambda r, beta, **_: logistic(beta * jnp.minimum(0, gap(r.reference_logp))))
def hypo(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Hybrid DPO (HyPO): -log sigmoid(beta (logp_w - logp_l - max(0, reference_logp_w - reference_logp_l))).

    Source: arXiv 2602.11902, the loss as stated in the abstract.
    Tokens: summed.
    Start: sp(-beta min(0, reference_logp_w - reference_logp_l)).
    Elsewhere: not in TRL or EasyDeL.

    DPO where the reference ranks the pair rightly; where it prefers the rejected response its head start is ignored, so
    that the policy is not satisfied before it ranks the pair rightly itself. (Another HyPO, arXiv 2406.01462, is DPO
    plus an online KL.)
    """
    r = pairs(r, "reference_logp")
    return of_pairs(r, logistic(beta * (gap(r.logp) - jax.nn.relu(gap(r.reference_logp)))))


@for_pairs(REFERENCE, start=lambda r, tau, **_: 1 / (4 * tau**2))
def ipo(r: Responses, *, tau: Positive = 0.1, normalize: Literal["none", "length"] = "none") -> Float[Array, "B"]:
    """Identity preference optimisation: (h - 1 / (2 tau))^2.

    Source: arXiv 2310.12036, equation 17.
    Tokens: summed (normalize="none") or mean ("length").
    Start: 1 / (4 tau^2).
    Elsewhere: TRL `ipo` (mean, its beta is tau), EasyDeL `ipo` (the loss takes what the trainer reduced).

    The minimiser is h = 1 / (2 tau) and overshoot costs as much as undershoot; over pairs whose label is right with
    probability p it is (2p - 1) / (2 tau). With tau = 0.1 the first gradient is 200 times that of DPO at beta = 0.1, so
    learning rates do not carry over.

    normalize  "none": sums over tokens, as in equation 17, the original DPO repository and OpenRLHF.
               "length": each log-ratio is divided by its response's token count, h = a_w / n_w - a_l / n_l, as in TRL,
               HALOs and LLaMA-Factory; the same tau then asks for far more per response. (HALOs counts only the tokens
               with a non-zero log-ratio, hence NaN at policy == reference; here every response token counts.)

    Raises:
        ValueError: normalize is neither.
    """
    if normalize not in ("none", "length"):
        raise ValueError(f"ipo takes normalize='none' or 'length', got {normalize!r}")
    r = pairs(r, "reference_logp", *(["length"] if normalize == "length" else []))
    a = log_ratio(r)
    return of_pairs(r, (gap(per_token(r, a) if normalize == "length" else a) - 1 / (2 * tau)) ** 2)


@for_pairs(REFERENCE, start=LOG2)
def rso_sigmoid(r: Responses, *, gamma: Positive = 0.05) -> Float[Array, "B"]:
    """RSO's sigmoid-norm loss: -log sigmoid(gamma h), which is `dpo` with RSO's coefficient.

    Source: arXiv 2309.06657, equation 8.
    Tokens: summed.
    Start: log 2.
    Elsewhere: TRL and EasyDeL `sigmoid`, gamma named beta.

    The sampling half of RSO concerns the data, not the loss.
    """
    return dpo(r, beta=gamma)


@for_pairs(REFERENCE, start=1.0)
def rso_hinge(r: Responses, *, gamma: Positive = 0.05) -> Float[Array, "B"]:
    """RSO's hinge-norm loss: max(0, 1 - gamma h).

    Source: arXiv 2309.06657, equation 10.
    Tokens: summed.
    Start: 1.
    Elsewhere: TRL and EasyDeL `hinge`, gamma named beta and 0.1 by default (a margin of 10 nats); it is not SLiC-HF.

    gamma times a hinge on h with a margin of 1 / gamma nats (20 by default): a constant push until the pair is
    separated by that much, then none.
    """
    r = pairs(r, "reference_logp")
    return of_pairs(r, hinge(gamma * gap(log_ratio(r))))


@for_pairs(REFERENCE, start=lambda r, link, **_: LINKS[link](jnp.zeros(())))
def gpo(
    r: Responses,
    *,
    beta: Positive = 0.1,
    link: Literal["logistic", "hinge", "squared", "truncated_quadratic", "exponential"] = "exponential",
) -> Float[Array, "B"]:
    """Generalised preference optimisation: f(beta h) for a convex f with f'(0) < 0.

    Source: arXiv 2402.05749 (the family; DPO, IPO and SLiC's hinge are members).
    Tokens: summed.
    Start: f(0), 1 for every link but the logistic, whose is log 2.
    Elsewhere: TRL and EasyDeL have the members `sigmoid`, `hinge` and `ipo`.

    link  f(z): "logistic" log(1 + e^-z), "hinge" max(0, 1 - z), "squared" (1 - z)^2, "truncated_quadratic"
          max(0, 1 - z)^2, "exponential" e^-z (continued as its tangent beyond e^30). The squared link is 4 tau^2 `ipo`
          at beta = 2 tau.

    Raises:
        ValueError: an unknown link.
    """
    if link not in LINKS:
        raise ValueError(f"gpo takes link {', '.join(map(repr, LINKS))}; got {link!r}")
    r = pairs(r, "reference_logp")
    return of_pairs(r, LINKS[link](beta * gap(log_ratio(r))))


@for_pairs(REFERENCE, start=(LOG2 + 1) / 2)
def discopop(r: Responses, *, beta: Positive = 0.05, tau: Positive = 0.05) -> Float[Array, "B"]:
    """Discovered preference optimisation: (1 - s) sp(-z) + s e^-z, z = beta h and s = sigmoid(z / tau).

    Source: arXiv 2406.08414, equation 5 (log-ratio modulated loss).
    Tokens: summed.
    Start: (log 2 + 1) / 2.
    Elsewhere: TRL `discopop`; EasyDeL's takes tau = 1 by default.

    Not convex: with the default tau the loss rises with z between -0.119 and 0.072, so the very first step lowers the
    margin. e^-z is computed as exp(log s - z), without which badly ranked pairs would give 0 times infinity.
    """
    r = pairs(r, "reference_logp")
    z = beta * gap(log_ratio(r))
    log_s = jax.nn.log_sigmoid(z / tau)
    return of_pairs(r, jax.nn.sigmoid(-z / tau) * logistic(z) + exp(log_s - z))


@for_pairs(REFERENCE | LENGTH | {"log_sum_p2"}, start=lambda r, **_: LOG2 * pair_alignment(r))
def wpo(r: Responses, *, beta: Positive = 0.01) -> Float[Array, "B"]:
    """Weighted preference optimisation: -min(1, w_w w_l) log sigmoid(beta h), log w = mean over tokens t of
    log(pi_t / sum_v pi_v^2).

    Source: arXiv 2406.11827, equation 2 with the sampled alignment of the weights.
    Tokens: summed in h, mean in w.
    Start: min(1, w_w w_l) log 2.
    Elsewhere: TRL `use_weighting=True`, without the cap at 1 that the authors' code has.

    A pair that the policy would hardly sample counts less. No gradient flows through the weights.
    """
    r = pairs(r, "reference_logp", "length", "log_sum_p2")
    return of_pairs(r, pair_alignment(r) * logistic(beta * gap(log_ratio(r))))


def pair_alignment(r: Responses) -> Float[Array, "B"]:
    """WPO's weight of a pair, min(1, w_w w_l), detached."""
    log_w = per_token(r, r.logp - r.log_sum_p2)
    return stop_gradient(jnp.exp(jnp.minimum(0, log_w[:, 0] + log_w[:, 1])))


@for_pairs(REFERENCE | LENGTH, start=lambda r, alpha, **_: LOG2 - alpha * per_token(r, r.reference_logp)[:, 0])
def rpo_nll(r: Responses, *, beta: Positive = 0.1, alpha: NonNegative = 1.0) -> Float[Array, "B"]:
    """DPO with likelihood: -log sigmoid(beta h) - alpha logp_w / n_w.

    Source: arXiv 2404.19733 (iterative RPO), equation 1; as a regulariser arXiv 2405.16436 (alpha = 0.005).
    Tokens: summed in h, mean in the likelihood.
    Start: log 2 - alpha logp_w / n_w.
    Elsewhere: TRL `loss_type=["sigmoid", "sft"]`, whose likelihood is a mean over all tokens of the batch.

    Llama 3 (arXiv 2407.21783) uses alpha = 0.2 and masks formatting tokens in both terms.
    """
    r = pairs(r, "reference_logp", "length")
    return of_pairs(r, logistic(beta * gap(log_ratio(r))) - alpha * sides(per_token(r, r.logp))[0])


@for_pairs(REFERENCE | {"auxiliary_logp"}, start=lambda r, gamma, **_: LOG2 - gamma * r.auxiliary_logp)
def rationale_dpo(r: Responses, *, beta: Positive = 0.1, gamma: NonNegative = 1.0) -> Float[Array, "B"]:
    """DPO with rationales (RDPO): -log sigmoid(beta h) - gamma log pi(rationale | prompt, chosen better than rejected).

    Source: arXiv 2407.14477.
    Tokens: summed.
    Start: log 2 - gamma auxiliary_logp.
    Elsewhere: not in TRL or EasyDeL; the released code has -log sigmoid(gamma log pi(rationale)) instead.

    `auxiliary_logp` scores the rationale alone, after a context that shows the pair. The paper tunes gamma.
    """
    r = pairs(r, "reference_logp", "auxiliary_logp")
    return of_pairs(r, logistic(beta * gap(log_ratio(r))) - gamma * r.auxiliary_logp)
