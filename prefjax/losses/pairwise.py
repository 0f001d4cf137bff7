"""Objectives on pairs: K = 2, chosen in slot 0, rejected in slot 1.

Notation of the docstrings, all in nats and all sums over response tokens (EOS included):

    a(y) = logp(y) - reference_logp(y)      the log-ratio of a response
    h    = a(chosen) - a(rejected)          the margin; 0 when policy == reference
    sp(x) = log(1 + e^x) = -log sigmoid(-x) softplus

Every loss is [B], one number per prompt, unreduced; a prompt counts only if both of its slots are valid, and any other
contributes exactly zero loss and zero gradient. At a kink (the hinges) the subgradient is 0. The doctests use the pair
below, whose margin is h = 2 nats.

>>> pair = Responses(logp=jnp.array([[-10.0, -12.0]]), reference_logp=jnp.array([[-11.0, -11.0]]))
>>> [f"{loss(pair)[0]:.4f}" for loss in (dpo, cdpo, rdpo, ipo, slic, rso_hinge)]
['0.5981', '0.6181', '0.5731', '9.0000', '1.0000', '0.9000']
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prefjax.losses.types import Responses


def _margin(r: Responses, per_token: bool = False) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """The margin h of every pair, 0 where a slot is invalid, and which pairs count."""
    r.require("reference_logp", *(["length"] if per_token else []), group_size=2)
    r = r.masked(whole_groups=True)
    log_ratio = r.logp - r.reference_logp
    if per_token:
        log_ratio /= jnp.maximum(r.length, 1)  # only the zeroed slots have length 0
    return log_ratio[:, 0] - log_ratio[:, 1], r.valid[:, 0]


def dpo(r: Responses, *, beta: float = 0.1) -> Float[Array, "B"]:
    """Direct preference optimisation: -log sigmoid(beta h).

    arXiv 2305.18290, equation 7. Needs reference_logp. The push on the chosen log-prob is beta sigmoid(-beta h): close
    to beta while the pair is ranked badly wrong, beta / 2 at the reference, fading to 0 as h grows; no finite h
    minimises the loss. Only h matters, so both log-probs may fall together. Start value log 2.

    TRL's `sigmoid` and the authors' code agree on sums; Tulu 3's `dpo_norm` averages over tokens, another objective.
    """
    h, valid = _margin(r)
    return jnp.where(valid, jax.nn.softplus(-beta * h), 0.0)


def cdpo(r: Responses, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Float[Array, "B"]:
    """Conservative DPO: (1 - e) sp(-beta h) + e sp(beta h), the cross-entropy against a label that is wrong with
    probability e = `label_smoothing`.

    E. Mitchell, "A note on DPO with noisy preferences and relationship to IPO" (cdpo.pdf), equation 3. Needs
    reference_logp. Equals DPO + e beta h, so it pulls h back once beta h > log((1 - e) / e), its minimiser. Start value
    log 2.

    HALOs smooths by 0.2 by default. TRL had it as `sigmoid` with label_smoothing; at commit f2cd577 that option no
    longer reaches the `sigmoid` loss.
    """
    h, valid = _margin(r)
    z = beta * h
    return jnp.where(valid, jax.nn.softplus(-z) + label_smoothing * z, 0.0)  # as sp(z) = sp(-z) + z


def rdpo(r: Responses, *, beta: float = 0.1, flip_rate: float = 0.1) -> Float[Array, "B"]:
    """Provably robust DPO: [(1 - e) sp(-beta h) - e sp(beta h)] / (1 - 2e), e = `flip_rate` in [0, 1/2).

    arXiv 2403.00409, section 3.1. Needs reference_logp. Averaged over labels flipped with probability e it is the DPO
    loss of the clean label. Equals DPO - e / (1 - 2e) beta h: the push on the margin never vanishes, the loss has no
    lower bound, and negative values are normal. It moves away from DPO in the direction opposite to cDPO. Start value
    log 2.

    TRL's and Liger's `robust` agree; there the rate is called label_smoothing.

    Raises:
        ValueError: flip_rate is not in [0, 1/2).
    """
    if not 0 <= flip_rate < 0.5:
        raise ValueError(f"rdpo needs 0 <= flip_rate < 0.5 (at one half the labels say nothing), got {flip_rate}")
    h, valid = _margin(r)
    z = beta * h
    return jnp.where(valid, jax.nn.softplus(-z) - flip_rate / (1 - 2 * flip_rate) * z, 0.0)  # sp(z) = sp(-z) + z


def ipo(r: Responses, *, tau: float = 0.1, normalize: Literal["none", "length"] = "none") -> Float[Array, "B"]:
    """Identity preference optimisation: (h - 1 / (2 tau))^2.

    arXiv 2310.12036, equation 17. Needs reference_logp, and length with `normalize="length"`. The minimiser is
    h = 1 / (2 tau) and overshoot costs as much as undershoot; over pairs whose label is right with probability p it is
    (2p - 1) / (2 tau). Start value 1 / (4 tau^2): with tau = 0.1 the first gradient is 200 times that of DPO at
    beta = 0.1, so learning rates do not carry over.

    normalize  "none": sums over tokens, as in equation 17, the original DPO repository and OpenRLHF.
               "length": each log-ratio is divided by its response's token count, h = a_w / |y_w| - a_l / |y_l|, as in
               TRL, HALOs and LLaMA-Factory; the same tau then asks for far more per response. (HALOs counts only the
               tokens with a non-zero log-ratio, hence NaN at policy == reference; here every response token counts.)

    Raises:
        ValueError: normalize is neither.
    """
    if normalize not in ("none", "length"):
        raise ValueError(f"ipo takes normalize='none' or 'length', got {normalize!r}")
    h, valid = _margin(r, per_token=normalize == "length")
    return jnp.where(valid, (h - 1 / (2 * tau)) ** 2, 0.0)


def slic(r: Responses, *, delta: float = 1.0, regularizer_weight: float = 0.1) -> Float[Array, "B"]:
    """SLiC-HF: max(0, delta - logp(chosen) + logp(rejected)) - regularizer_weight * logp(y_ref).

    arXiv 2305.10425, equation 4. No reference model: a hinge on the raw log-probs (sums over tokens) with a margin of
    `delta` nats, plus cross-entropy on a regulariser target y_ref: `auxiliary_logp` when the batch has it (the paper's
    SFT target), otherwise the chosen response (the paper's best-ranked candidate; it reports little difference).
    The paper sets delta = 1 and does not report the regulariser's weight; 0.1 is the choice of HALOs. No start value:
    the loss at policy == reference depends on the model.

    TRL's and Liger's `hinge` and torchtune's RSOLoss are not this objective but RSO's hinge-norm (`rso_hinge`).
    """
    r.require(group_size=2)
    r = r.masked(whole_groups=True)
    target_logp = r.logp[:, 0] if r.auxiliary_logp is None else r.auxiliary_logp
    hinge = jax.nn.relu(delta - r.logp[:, 0] + r.logp[:, 1])  # relu: subgradient 0 at the kink, jnp.maximum's is 1/2
    return jnp.where(r.valid[:, 0], hinge - regularizer_weight * target_logp, 0.0)


def rso_hinge(r: Responses, *, gamma: float = 0.05) -> Float[Array, "B"]:
    """RSO's hinge-norm loss: max(0, 1 - gamma h).

    arXiv 2309.06657, equation 10; gamma is its default. Needs reference_logp. It is gamma times a hinge on h with a
    margin of 1 / gamma nats (20 by default): a constant push until the pair is separated by that much, then none. Start
    value 1. The sampling half of RSO concerns the data, not the loss.

    TRL calls it `hinge`, with gamma named beta and 0.1 by default: a margin of 10 nats.
    """
    h, valid = _margin(r)
    return jnp.where(valid, jax.nn.relu(1 - gamma * h), 0.0)
