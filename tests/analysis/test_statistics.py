"""Means, shares and intervals against closed forms and simulation."""

import math

import numpy as np
import pytest

from prefjax.analysis import kl_estimate, mean, share, win_rate


def test_mean_and_standard_error():
    result = mean(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (result.value, result.count) == (2.5, 4)
    assert result.standard_error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert mean(np.array([2.0])).standard_error is None
    with pytest.raises(ValueError, match="at least one value"):
        mean(np.array([]))


def test_mean_of_float32_is_taken_in_float64():
    values = np.full(100_000, 1e4 + 0.1, np.float32)
    assert mean(values).value == pytest.approx(float(values[0]), rel=1e-12)


def test_wilson_interval_matches_known_values():
    """Newcombe (1998), Statistics in Medicine 17, Table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    for wins, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        result = share(wins / count, count)
        assert (result.low, result.high) == pytest.approx((low, high), abs=6e-5)
    assert share(1 / 29, 29).high == pytest.approx(0.1718, abs=6e-5)
    assert share(1.0, 50).high == 1.0 and share(1.0, 50).low < 1.0
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        share(1.2, 10)
    with pytest.raises(ValueError, match="at least one"):
        share(0.5, 0)


def test_win_rate_counts_ties_half():
    ours, theirs = np.array([1.0, 2.0, 3.0, 0.0]), np.array([0.0, 2.0, 4.0, 0.0])
    assert win_rate(ours, theirs).value == 0.5
    assert win_rate(np.array([1.0, 1.0]), np.array([0.0, 1.0])).value == 0.75
    same = np.arange(5.0)
    assert win_rate(same, same).value == 0.5


def test_win_rate_interval_covers():
    """With ties as half the 95 % interval covers the truth at least about that often."""
    rng, truth, trials = np.random.default_rng(0), 0.7 + 0.5 * 0.1, 400
    covered = 0
    for _ in range(trials):
        outcome = rng.choice([1.0, 0.0, -1.0], size=60, p=[0.7, 0.1, 0.2])
        result = win_rate(outcome, np.zeros(60))
        covered += result.low <= truth <= result.high
    assert covered / trials > 0.93


def test_kl_estimate_is_unbiased():
    rng, n = np.random.default_rng(0), 20_000
    policy, reference = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
    draws = rng.choice(3, size=n, p=policy)
    result = kl_estimate(np.log(policy)[draws], np.log(reference)[draws])
    assert result.value == pytest.approx((policy * np.log(policy / reference)).sum(), abs=4 * result.standard_error)
    assert result.standard_error < 0.01
