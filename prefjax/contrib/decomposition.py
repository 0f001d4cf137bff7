"""Decomposed reward models: the directions in which chosen and rejected responses differ, each one a reward."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Decomposition(NamedTuple):
    """Orthonormal directions [c, D] in the order of the variance [c] of the differences along them.

    A direction d is a reward head: r(x, y) = d . phi(x, y). So is -d: a principal component has no sign. The one given
    is the one in which the mean difference is not negative, which agrees with the people who chose.
    """

    directions: Float[np.ndarray, "c D"]
    variances: Float[np.ndarray, "c"]


def decompose(differences: Float[np.ndarray, "n D"], count: int) -> Decomposition:
    """The first `count` principal components of phi(x, chosen) - phi(x, rejected) over n pairs.

    Source: arXiv 2502.13131 (DRM), as its code generate_head.py: PCA with the mean subtracted; phi is what the reward
    head reads, the last hidden state at the last token.

    Raises:
      ValueError: fewer than two pairs, or not that many directions in them.
    """
    n, width = differences.shape
    if n < 2 or not 1 <= count <= min(n, width):
        raise ValueError(f"{n} differences of {width} dimensions have no {count} principal components")
    mean = differences.mean(0, dtype=np.float64)
    _, singular, components = np.linalg.svd(differences - mean, full_matrices=False)
    directions = components[:count] * np.where(components[:count] @ mean < 0, -1.0, 1.0)[:, None]
    return Decomposition(directions, singular[:count] ** 2 / (n - 1))


def head_accuracies(
    directions: Float[np.ndarray, "c D"], differences: Float[np.ndarray, "n D"]
) -> Float[np.ndarray, "c"]:
    """Share of pairs whose chosen response has the higher reward under each direction; a tie counts one half."""
    gaps = differences @ directions.T
    return ((gaps > 0) + 0.5 * (gaps == 0)).mean(0)
