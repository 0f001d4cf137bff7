"""Objectives on single responses: any K >= 1, each response with its own label or reward in `target`.

Notation of the docstrings, all in nats and all sums over response tokens (EOS included):

    a(y) = logp(y) - reference_logp(y)      the log-ratio of a response; 0 when policy == reference

Every loss is [B], one number per prompt: the mean over the prompt's valid responses, unreduced over prompts. An invalid
slot contributes exactly zero loss and zero gradient, and so does a prompt with no valid slot.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from prefjax.losses.types import Responses


def _batch_mean(r: Responses, x: Float[Array, "B"]) -> Float[Array, ""]:
    """Mean of `x` over the prompts of a masked batch that have a valid response."""
    valid = jnp.any(r.valid_slots(), axis=-1)
    return jnp.sum(jnp.where(valid, x, 0)) / jnp.maximum(jnp.sum(valid), 1)


def kto(
    r: Responses, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Float[Array, "B"]:
    """Kahneman-Tversky optimisation: desirable_weight * sigmoid(-beta (a - z0)) for a desirable response (target 1),
    undesirable_weight * sigmoid(beta (a - z0)) for an undesirable one (target 0).

    arXiv 2402.01306, equation 8. Needs reference_logp, target and the two baselines. z0 estimates KL(policy ||
    reference) from mismatched responses, one per prompt (a response to another prompt, under this prompt):

        z0 = stop_gradient(max(0, mean over the batch of (baseline_logp - baseline_reference_logp)))

    The mean runs over every prompt given that has a valid response, so the objective is coupled: give it the global
    batch. No gradient flows through z0. The push on a response is largest at a = z0 (beta / 4) and vanishes both ways.
    The paper advises desirable_weight n_desirable / (undesirable_weight n_undesirable) in [1, 3/2] (equation 9). Start
    value: half the weight of the label.

    TRL and HALOs shift responses within the micro-batch to make the mismatched pairs, and HALOs averages z0 over its
    non-zero terms only; their old `kto_pair` let gradient through z0. The reduction over examples is the trainer's
    plain mean, as in the paper, not a mean of the two class means.

    >>> one = dict(logp=jnp.array([[-9.0]]), reference_logp=jnp.array([[-11.0]]), target=jnp.array([[1.0]]))  # a = 2
    >>> z0 = dict(baseline_logp=jnp.array([-30.0]), baseline_reference_logp=jnp.array([-31.0]))  # z0 = 1
    >>> print(f"{kto(Responses(**one, **z0))[0]:.4f}")  # sigmoid(-0.1)
    0.4750
    """
    r.require("reference_logp", "target", "baseline_logp", "baseline_reference_logp")
    r = r.masked()
    z0 = stop_gradient(jnp.maximum(0, _batch_mean(r, r.baseline_logp - r.baseline_reference_logp)))
    z = beta * (r.logp - r.reference_logp - z0)
    desirable = desirable_weight * jax.nn.sigmoid(-z)
    undesirable = undesirable_weight * jax.nn.sigmoid(z)
    return r.prompt_mean(jnp.where(r.target > 0.5, desirable, undesirable))


def kto_at_init(
    r: Responses, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Float[Array, "B"]:
    """`kto` at policy == reference, where a = z0 = 0: half the weight of each label, whatever beta."""
    return r.masked().prompt_mean(jnp.where(r.target > 0.5, desirable_weight / 2, undesirable_weight / 2))


def dro(r: Responses, *, tau: float = 1.0) -> Float[Array, "B"]:
    """Direct reward optimisation with a learned value (DRO-V): 1/2 (reward - V - tau a)^2.

    arXiv 2405.19107, equation 4. Needs reference_logp, target (the reward) and value, one V(x) per prompt shared by its
    K responses.

    The update is NOT the gradient of this value. As in the paper's section 3.3, the policy step (equation 8) is
    multiplied by 1 / tau, the value step (equation 7) is not, and both are taken at once:

        d/dlogp  = tau a - (reward - V)       from  -[logp (reward - sg V) - tau/2 a^2]
        d/dvalue = V - (reward - tau a)       from  1/2 (V - sg(reward - tau a))^2

    so the function returns the joint loss with the gradient of the sum of these two surrogates (each response's;
    a prompt averages over its valid ones). At tau = 1, the paper's setting, that is the gradient of the joint loss.
    The paper expects rewards with mean 0 and variance 1 over the dataset and a value network of its own. Zero, with
    zero gradients, at V = reward - tau a. Start value 1/2 (reward - V)^2.

    The paper's Algorithm 1 prints 1/2 where equation 8 divided by tau gives the tau/2 used here. `dro` in Tinker
    squares per token and takes advantages from the client; Dr.DPO's "DRO" is distributional robustness: other things.

    >>> one = dict(logp=jnp.array([[-9.0]]), reference_logp=jnp.array([[-11.0]]))  # a = 2
    >>> print(dro(Responses(**one, target=jnp.array([[1.0]]), value=jnp.array([-4.0])))[0])  # 1/2 (1 + 4 - 2)^2
    4.5
    """
    r.require("reference_logp", "target", "value")
    r = r.masked()
    reward, value = r.target, r.value[:, None]
    log_ratio = r.logp - r.reference_logp
    policy_step = -(r.logp * (reward - stop_gradient(value)) - tau / 2 * log_ratio**2)
    value_step = 0.5 * (value - stop_gradient(reward - tau * log_ratio)) ** 2
    surrogate = policy_step + value_step
    joint = 0.5 * (reward - value - tau * log_ratio) ** 2
    # The bracket is exactly 0 with the gradient of the surrogate.
    return r.prompt_mean(stop_gradient(joint) + (surrogate - stop_gradient(surrogate)))


def dro_at_init(r: Responses, *, tau: float = 1.0) -> Float[Array, "B"]:
    """`dro` at policy == reference: 1/2 (reward - V)^2, whatever tau."""
    r = r.masked()
    return r.prompt_mean(0.5 * (r.target - r.value[:, None]) ** 2)


def dro_p(r: Responses, *, tau: float = 1.0) -> Float[Array, "B"]:
    """Direct reward optimisation without a value network (DRO-P): half the batch variance of e = reward - tau a.

    arXiv 2405.19107, appendix B, equation 15. Needs reference_logp and target (the reward). Per prompt: the mean over
    its valid responses of 1/2 (e - m)^2, where m is the mean of e over all valid responses of the batch, so the mean
    over prompts is half the variance and the objective is coupled: give it the global batch. (Where prompts have
    different numbers of valid responses, each prompt weighs the same in m and in the variance.) It equals `dro` with m
    for V, and with one pair as the batch it is 1/8 (e_1 - e_2)^2, which is IPO up to scale when the rewards are 1 and
    0; the paper prints a different constant. Start value 1/2 (reward - mean reward)^2.
    """
    r.require("reference_logp", "target")
    r = r.masked()
    return _half_variance(r, r.target - tau * (r.logp - r.reference_logp))


def dro_p_at_init(r: Responses, *, tau: float = 1.0) -> Float[Array, "B"]:
    """`dro_p` at policy == reference: half the batch variance of the rewards, whatever tau."""
    r = r.masked()
    return _half_variance(r, r.target)


def _half_variance(r: Responses, x: Float[Array, "B K"]) -> Float[Array, "B"]:
    """Per prompt, the mean of 1/2 (x - batch mean)^2 over the valid slots of a masked batch."""
    return r.prompt_mean(0.5 * (x - _batch_mean(r, r.prompt_mean(x))) ** 2)
