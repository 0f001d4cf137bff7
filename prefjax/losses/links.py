"""Links: what a loss makes of one number, how well a response or a pair does, whatever that number is made of.

`z` is a margin (or reward): positive is right. All are elementwise and finite for |z| up to 1e4 in float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# exp(30) = 1e13 is past all use, and gradients of that size can still be squared and summed in float32.
_EXPONENT_LIMIT = 30.0


def logistic(z: Float[Array, "*n"], target: float | Float[Array, "*n"] = 1.0) -> Float[Array, "*n"]:
    """-target log sigmoid(z) - (1 - target) log sigmoid(-z): the cross-entropy against P(right) = target."""
    return jax.nn.softplus(-z) + (1 - target) * z  # as softplus(z) = softplus(-z) + z


def hinge(z: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """max(0, 1 - z); the subgradient at the kink is 0 (relu's; that of jnp.maximum is 1/2)."""
    return jax.nn.relu(1 - z)


def squared(z: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """(1 - z)^2."""
    return (1 - z) ** 2


def truncated_quadratic(z: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """max(0, 1 - z)^2."""
    return jax.nn.relu(1 - z) ** 2


def exponential(z: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """exp(-z), see `exp`."""
    return exp(-z)


def exp(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """e^x, which goes on as its tangent beyond x = 30, where float32 would soon overflow."""
    excess = jax.nn.relu(x - _EXPONENT_LIMIT)
    return jnp.exp(x - excess) * (1 + excess)


def expm1(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """e^x - 1, exact near 0, continued like `exp`."""
    return jnp.where(x < 1, jnp.expm1(jnp.minimum(x, 1)), exp(x) - 1)


def alpha_shape(x: Float[Array, "*n"], alpha: float) -> Float[Array, "*n"]:
    """(1 - e^(-alpha x)) / alpha, which is x at alpha = 0: a log-probability bent so that low ones count more."""
    return x if alpha == 0 else -expm1(-alpha * x) / alpha


def log_odds(log_p: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """log(p / (1 - p)) from log p <= 0; p is kept below 1 - 1e-6, where the odds would be infinite."""
    log_p = jnp.minimum(log_p, -1e-6)
    # Each form is exact on its side of p = 1/2, and both are finite everywhere, so no gradient of the other leaks NaN.
    log_not_p = jnp.where(log_p > -0.6931472, jnp.log(-jnp.expm1(log_p)), jnp.log1p(-jnp.exp(log_p)))
    return log_p - log_not_p


def bernoulli_kl(z: Float[Array, "*n"], other: float | Float[Array, "*n"]) -> Float[Array, "*n"]:
    """KL(p || q) in nats of two yes-or-no distributions given by their logits, p = sigmoid(z), q = sigmoid(other)."""
    yes = jax.nn.log_sigmoid(z) - jax.nn.log_sigmoid(other)
    no = jax.nn.log_sigmoid(-z) - jax.nn.log_sigmoid(-other)
    return jax.nn.sigmoid(z) * yes + jax.nn.sigmoid(-z) * no


LINKS = {
    "logistic": logistic,
    "hinge": hinge,
    "squared": squared,
    "truncated_quadratic": truncated_quadratic,
    "exponential": exponential,
}
