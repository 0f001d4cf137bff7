"""Principal directions of preference differences: known axes are found again, in order, orthonormal, with a sign."""

import numpy as np
import pytest

from prefjax.contrib import decompose
from prefjax.contrib.decomposition import head_accuracies
from tests.commands import load


def planted(n=4000, width=12, seed=0):
    """Differences that vary along three known axes with scales 5, 3 and 1 about a mean along the first."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(width, 3)))[0].T
    weights = rng.normal(size=(n, 3)) * [5, 3, 1] + [2, 0, 0]
    return axes, weights @ axes + 0.01 * rng.normal(size=(n, width))


def test_planted_axes_are_found_in_order_of_their_variance():
    axes, differences = planted()
    found = decompose(differences, 3)
    np.testing.assert_allclose(np.abs(found.directions @ axes.T), np.eye(3), atol=0.05)
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(found.variances, [25, 9, 1], rtol=0.1)
    assert (found.directions @ differences.mean(0) >= 0).all()


def test_variances_are_those_of_the_covariance():
    _, differences = planted(n=50)
    found = decompose(differences, 12)
    values = np.linalg.eigvalsh(np.cov(differences.T))[::-1]
    np.testing.assert_allclose(found.variances, values, rtol=1e-9, atol=1e-12)


def test_the_first_direction_agrees_with_those_who_chose_and_ties_count_half():
    axes, differences = planted()
    accuracies = head_accuracies(decompose(differences, 3).directions, differences)
    assert accuracies[0] == pytest.approx(0.655, abs=0.03)  # a normal of mean 2 and deviation 5 is above 0
    np.testing.assert_allclose(head_accuracies(axes[:1], np.zeros((4, 12))), 0.5)


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="3 differences of 12 dimensions have no 4 principal components"):
        decompose(planted(n=3)[1], 4)


def test_shares_are_refused_where_all_pairs_are_decomposed():
    with pytest.raises(ValueError, match="leave out the shares"):
        load("decompose").differences(None, "0.5 a.jsonl + 0.5 b.jsonl")
