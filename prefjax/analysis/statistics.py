"""Numbers with their uncertainty, from plain NumPy arrays: means, shares with ties as half, win rate, KL estimate."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

Z95 = 1.959964  # two-sided 95 % quantile of the standard normal
Z90 = 1.644854  # one-sided 95 %
FEW = 20  # below so many values Student's t and the normal quantile are too far apart to call it an interval


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over `count` independent values; standard_error is None when count < 2."""

    value: float
    standard_error: float | None
    count: int


@dataclasses.dataclass(frozen=True)
class Share:
    """A share in [0, 1] of `count` comparisons, a tie counting one half, with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    count: int


def mean(values: Float[np.ndarray, "N"]) -> Mean:
    """Mean and its standard error s / sqrt(N), s with N - 1 degrees of freedom.

    Raises:
      ValueError: no values.
    """
    count = len(values)
    if count == 0:
        raise ValueError("a mean needs at least one value")
    values = values.astype(np.float64)
    standard_error = float(values.std(ddof=1) / math.sqrt(count)) if count > 1 else None
    return Mean(float(values.mean()), standard_error, count)


def share(value: float, count: int) -> Share:
    """`value` of `count` comparisons with the Wilson score interval, which keeps its meaning near 0 and 1.

    Where ties count one half the interval is conservative: an outcome in {0, 1/2, 1} varies less than one in {0, 1}
    of the same mean.

    Raises:
      ValueError: no comparisons, or a value outside [0, 1].
    """
    if count < 1:
        raise ValueError("a share needs at least one comparison")
    if not 0 <= value <= 1:
        raise ValueError(f"a share must lie in [0, 1], got {value}")
    shrink = 1 + Z95**2 / count
    centre = (value + Z95**2 / (2 * count)) / shrink
    half = Z95 / shrink * math.sqrt(value * (1 - value) / count + Z95**2 / (4 * count**2))
    # At 0 and 1 the bound equals the value exactly; rounding must not push it past.
    return Share(value, min(max(centre - half, 0.0), value), max(min(centre + half, 1.0), value), count)


def win_rate(ours: Float[np.ndarray, "N"], theirs: Float[np.ndarray, "N"]) -> Share:
    """Share of prompts where our sample's reward is higher than theirs under the same prompt; a tie counts one half."""
    return share(float(np.mean((ours > theirs) + 0.5 * (ours == theirs))), len(ours))


def kl_estimate(policy_logp: Float[np.ndarray, "N"], reference_logp: Float[np.ndarray, "N"]) -> Mean:
    """KL(policy || reference) of whole responses, nats, averaged over prompts.

    The mean of log pi(y|x) - log ref(y|x) over responses y drawn from the policy at temperature 1: unbiased, and it can
    come out below 0 when the true value is small.
    """
    return mean(policy_logp.astype(np.float64) - reference_logp.astype(np.float64))
