"""Two arms: the smallest world in which a preference loss has an optimum, as an exact number.

One prompt, two responses, and a share p of raters who prefer the first. The policy is one number, the margin
h = log pi(1)/pi(2) - log ref(1)/ref(2) in nats, so the population loss is a function of h and its minimum the one place
where its gradient changes sign, kink or not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import scipy.optimize
from jaxtyping import Array, Float

from prefjax.losses import Objective, Responses

FARTHEST = 200.0  # nats; a margin that ends here has no optimum


def pair(margin: Float[Array, ""], reference: float = 0.0) -> Responses:
    """The two arms as a pair, the first chosen, when the policy has this margin over a reference of these log-odds."""
    logp = jax.nn.log_softmax(jnp.stack([margin + reference, jnp.zeros_like(margin)]))
    reference_logp = jax.nn.log_softmax(jnp.array([reference, 0.0]))
    return Responses(logp=logp[None], reference_logp=reference_logp[None])


def exchanged(r: Responses) -> Responses:
    """The same pair with the second arm chosen."""
    return r.replace(logp=r.logp[:, ::-1], reference_logp=r.reference_logp[:, ::-1])


def population_loss(objective: Objective, prefer: float, reference: float = 0.0) -> Callable[[Array], Array]:
    """margin -> the loss of pairs in which the first arm is chosen with probability `prefer`."""

    def loss(margin):
        r = pair(margin, reference)
        return prefer * objective.loss(r)[0] + (1 - prefer) * objective.loss(exchanged(r))[0]

    return loss


def minimiser(loss: Callable[[Array], Array]) -> float:
    """The margin at which a convex loss is least, nats: where its gradient changes sign."""
    gradient = jax.jit(jax.grad(loss))
    return crossing(lambda margin: float(gradient(jnp.asarray(margin))))


def crossing(slope: Callable[[float], float], farthest: float = FARTHEST) -> float:
    """Where a slope that only rises goes through 0, by bisection; +-farthest where it does not within that range."""
    if slope(-farthest) >= 0:
        return -farthest
    if slope(farthest) <= 0:
        return farthest
    return float(scipy.optimize.brentq(slope, -farthest, farthest, xtol=1e-12, rtol=1e-14))
