"""Conflicts of aspects, falls in training, and distinguishability, by hand and by their symmetries."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from prefjax.contrib.conflict import aspect_conflict, discordant, fall_moment, performance_falls
from prefjax.contrib.distinguishability import (
    distinguishability,
    mean_difference,
    preference_distinguishability,
    priority,
)
from prefjax.contrib.table import Table

ratings = st.lists(st.integers(1, 5), min_size=4, max_size=4)


def test_pairs_tied_in_either_rating_are_no_conflict():
    """Orders of the three pairs: (<, <, <) and (>, =, <): one against, one with, one tied."""
    share, tau = discordant([np.array([1.0, 2.0, 3.0])], [np.array([2.0, 1.0, 2.0])])
    assert share.value == 0.5 and share.count == 2
    assert tau == 0.0
    assert discordant([np.array([1.0, 1.0])], [np.array([1.0, 2.0])]) == (None, None)


@given(ratings, ratings)
def test_it_is_symmetric_turns_with_the_sign_and_agrees_with_scipy(a, b):
    a, b = np.array(a, float), np.array(b, float)
    share, tau = discordant([a], [b])
    assert discordant([b], [a]) == (share, tau)
    turned, _ = discordant([a], [-b])
    assert share is None or turned.value == pytest.approx(1 - share.value)
    expected = kendalltau(a, b).statistic
    assert tau is None if np.isnan(expected) else tau == pytest.approx(expected)


def test_the_tool_names_the_aspects_that_conflict_most():
    rows = Table({"help": [[1, 2, 3], [5, 1]], "harm": [[3, 2, 1], [5, 1]], "truth": [[1, 2, 3], [4, 2]]})
    output = aspect_conflict(rows, aspects=("help", "truth", "harm"))
    shares = {tuple(pair["aspects"]): pair["conflict"].value for pair in output.values["pairs"]}
    assert shares == {("help", "truth"): 0.0, ("help", "harm"): 0.75, ("truth", "harm"): 0.75}
    assert output.headline.startswith("help and harm conflict most: 75.0%")
    with pytest.raises(ValueError, match="at least two different columns"):
        aspect_conflict(rows, aspects=("help", "help"))
    with pytest.raises(ValueError, match="row 2: 2 and 3 ratings"):
        aspect_conflict(Table({"a": [[1, 2], [1, 2]], "b": [[1, 2], [1, 2, 3]]}), aspects=("a", "b"))


def test_only_falls_count_and_by_their_square():
    assert fall_moment(np.array([0.5, 0.5, 0.5]), np.array([0.9, 0.3, 0.4])) == pytest.approx((0.04 + 0.01) / 3)
    assert fall_moment(np.zeros(2), np.ones(2)) == 0.0


def test_the_tool_compares_trainings():
    rows = Table(
        {
            "trained": ["helpful", "helpful", "safe", "safe"],
            "dimension": ["chat", "safety", "chat", "safety"],
            "before": [0.5, 0.5, 0.5, 0.5],
            "after": [0.7, 0.3, 0.5, 0.9],
        }
    )
    output = performance_falls(rows, trained="trained")
    assert output.values["trainings"]["helpful"]["moment"] == pytest.approx(0.02)
    assert output.values["trainings"]["safe"]["moment"] == 0.0
    with pytest.raises(ValueError, match="names a dimension twice"):
        performance_falls(rows)


# Two pairs in the plane: chosen (1, 0), (3, 0); rejected (0, 0), (0, 2).
PLANE = np.array([[[1.0, 0.0], [0.0, 0.0]], [[3.0, 0.0], [0.0, 2.0]]])


def test_distance_and_covariances_by_hand():
    """Means (2, 0) and (0, 1); both covariances have one eigenvalue 2, divisor N - 1 = 1."""
    assert mean_difference(PLANE).tolist() == [2.0, -1.0]
    assert distinguishability(PLANE) == pytest.approx((5**0.5, 2.0, 2.0))
    with pytest.raises(ValueError, match="at least two pairs"):
        distinguishability(PLANE[:1])


@given(st.integers(0, 1000))
def test_it_is_what_numpy_says_and_does_not_turn_with_the_axes(seed):
    rng = np.random.default_rng(seed)
    embeddings = rng.normal(size=(7, 2, 3)) * np.array([1.0, 3.0, 0.2])[None, None]
    covariances = [np.cov(embeddings[:, side], rowvar=False) for side in (0, 1)]
    expected = (
        np.linalg.norm(embeddings[:, 0].mean(0) - embeddings[:, 1].mean(0)),
        max(np.linalg.norm(covariance, 2) for covariance in covariances),
        max(np.trace(covariance) for covariance in covariances),
    )
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert distinguishability(embeddings) == pytest.approx(expected)
    assert distinguishability(embeddings @ turn) == pytest.approx(expected)


def test_priority_by_hand():
    """d_1 = (4, 0), d_2 = (0, 2): b = (2, 1), b.(d_1 - d_2) = 6, |b| = sqrt 5, the larger length 4."""
    first, second = np.array([4.0, 0.0]), np.array([0.0, 2.0])
    assert priority(first, second) == pytest.approx(6 / (5**0.5 * 4))
    assert priority(second, first) == pytest.approx(-priority(first, second))
    assert priority(first, first) == 0.0 and priority(first, -first) == 0.0


def test_the_tool_orders_behaviours():
    far = PLANE + np.array([[[10.0, 0.0], [0.0, 0.0]]])
    rows = Table({"embedding": np.concatenate([PLANE, far]), "behaviour": ["near", "near", "far", "far"]})
    output = preference_distinguishability(rows, behaviour="behaviour")
    assert list(output.values["behaviours"]) == ["far", "near"]
    assert output.values["priorities"][0]["first"] == "far" and output.values["priorities"][0]["priority"] > 0
    alone = preference_distinguishability(rows.select([0, 1]))
    assert alone.values["behaviours"]["all"]["distance"] == pytest.approx(5**0.5) and alone.figure is not None
