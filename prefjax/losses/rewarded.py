"""Objectives on single responses with a reward or score each: any K >= 1, `target` any number.

Notation as in `unpaired`: a(y) is the log-ratio of a response in nats, summed over tokens. Every loss is the mean over
the valid responses of a prompt.

>>> import jax.numpy as jnp
>>> one = Responses(logp=jnp.array([[-9.0]]), reference_logp=jnp.array([[-11.0]]), target=jnp.array([[1.0]]))  # a = 2
>>> print(dro(one.replace(value=jnp.array([-4.0])))[0])  # 1/2 (1 + 4 - 2)^2
4.5
>>> [f"{loss(one, beta=0.1)[0]:.4f}" for loss in (ulma_continuous, gpo_score)]
['0.6400', '64.0000']
"""

from jax.lax import stop_gradient
from jaxtyping import Array, Float

from prefjax.losses.reducers import batch_mean, log_ratio, singles
from prefjax.losses.registry import TARGET, for_singles
from prefjax.losses.responses import Responses
from prefjax.options import Positive


@for_singles(TARGET | {"value"}, start=lambda r, **_: 0.5 * (r.target - r.value[:, None]) ** 2, reads="rewards")
def dro(r: Responses, *, tau: Positive = 1.0) -> Float[Array, "B"]:
    """Direct reward optimisation with a learned value (DRO-V): 1/2 (reward - V - tau a)^2.

    Source: arXiv 2405.19107, equation 4.
    Tokens: summed.
    Start: (reward - V)^2 / 2.
    Elsewhere: not in TRL or EasyDeL. `dro` in Tinker squares per token and takes advantages from the client; Dr.DPO's
        "DRO" is distributional robustness: other things.

    V(x) is one `value` per prompt, shared by its responses. The update is NOT the gradient of this value. As in the
    paper's section 3.3, the policy step (equation 8) is multiplied by 1 / tau, the value step (equation 7) is not, and
    both are taken at once:

        d/dlogp  = tau a - (reward - V)       from  -[logp (reward - sg V) - tau/2 a^2]
        d/dvalue = V - (reward - tau a)       from  1/2 (V - sg(reward - tau a))^2

    so the function returns the joint loss with the gradient of the sum of these two surrogates (each response's;
    a prompt averages over its valid ones). At tau = 1, the paper's setting, that is the gradient of the joint loss.
    The paper expects rewards with mean 0 and variance 1 over the dataset and a value network of its own. Zero, with
    zero gradients, at V = reward - tau a. The paper's Algorithm 1 prints 1/2 where equation 8 divided by tau gives the
    tau/2 used here.
    """
    r = singles(r, "reference_logp", "target", "value")
    reward, value, a = r.target, r.value[:, None], log_ratio(r)
    policy_step = -(r.logp * (reward - stop_gradient(value)) - tau / 2 * a**2)
    value_step = 0.5 * (value - stop_gradient(reward - tau * a)) ** 2
    surrogate = policy_step + value_step
    joint = 0.5 * (reward - value - tau * a) ** 2
    # The bracket is exactly 0 with the gradient of the surrogate.
    return r.prompt_mean(stop_gradient(joint) + (surrogate - stop_gradient(surrogate)))


@for_singles(TARGET, start=lambda r, **_: half_square_deviation(r, r.target), reads="rewards", coupled=True)
def dro_p(r: Responses, *, tau: Positive = 1.0) -> Float[Array, "B"]:
    """Direct reward optimisation without a value network (DRO-P): half the batch variance of e = reward - tau a.

    Source: arXiv 2405.19107, appendix B, equation 15.
    Tokens: summed.
    Start: (reward - mean reward)^2 / 2.
    Elsewhere: not in TRL or EasyDeL.

    Per prompt: the mean over its valid responses of 1/2 (e - m)^2, where m is the mean of e over all valid responses of
    the batch, so the mean over prompts is half the variance and the objective is coupled: give it the global batch.
    (Where prompts have different numbers of valid responses, each prompt weighs the same in m and in the variance.) It
    equals `dro` with m for V, and with one pair as the batch it is 1/8 (e_1 - e_2)^2, which is IPO up to scale when the
    rewards are 1 and 0; the paper prints a different constant.
    """
    r = singles(r, "reference_logp", "target")
    return r.prompt_mean(half_square_deviation(r, r.target - tau * log_ratio(r)))


def half_square_deviation(r: Responses, x: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """1/2 (x - m)^2, m the mean over the prompts of a masked batch of their means over valid slots."""
    mean = batch_mean(r.prompt_mean(x), r.valid.any(axis=-1))
    return 0.5 * (x - mean) ** 2


@for_singles(TARGET, start=lambda r, **_: r.target**2, reads="rewards")
def ulma_continuous(r: Responses, *, beta: Positive = 0.1) -> Float[Array, "B"]:
    """Pointwise DPO with continuous labels: (reward - beta a)^2.

    Source: arXiv 2312.02554, with its Z(x) taken as 1, as in the authors' code.
    Tokens: summed; the authors' code feeds means per token.
    Start: reward^2.
    Elsewhere: not in TRL or EasyDeL.

    Zero at a = reward / beta, the optimum of the KL-regularised reward up to the dropped log Z(x).
    """
    r = singles(r, "reference_logp", "target")
    return r.prompt_mean((r.target - beta * log_ratio(r)) ** 2)


@for_singles(TARGET, start=lambda r, beta: (r.target / beta) ** 2, reads="scores")
def gpo_score(r: Responses, *, beta: Positive = 1e-3) -> Float[Array, "B"]:
    """General preference optimisation (GPO of GPM): (a - score / beta)^2.

    Source: arXiv 2410.02197, equation 5.3, with its log Z(x) taken as 0; the default of beta is SPPO's.
    Tokens: summed.
    Start: (score / beta)^2.
    Elsewhere: not in TRL or EasyDeL.

    The score is the mean preference score of the response against samples of the previous policy, which is the
    reference. `sppo` with the score in place of P - 1/2, and any number of responses. (Not `gpo`, the family of arXiv
    2402.05749.)
    """
    r = singles(r, "reference_logp", "target")
    return r.prompt_mean((log_ratio(r) - r.target / beta) ** 2)
