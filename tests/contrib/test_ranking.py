"""Ranking accuracy, its threshold loss and its ideal, against hand-computed cases and the paper's theorem."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefjax.contrib.ranking import dpo_loss, ideally_ranked, ranked_rightly, ranking_accuracy, threshold_loss
from prefjax.contrib.table import Table

# Four pairs: chosen, rejected. Lengths make the second one right per token, and the third one wrong.
POLICY = np.array([[-5.0, -9.0], [-20.0, -10.0], [-8.0, -9.0], [-4.0, -4.0]])
REFERENCE = np.array([[-6.0, -8.0], [-15.0, -10.0], [-12.0, -7.0], [-3.0, -4.0]])
LENGTH = np.array([[4.0, 4.0], [10.0, 4.0], [2.0, 9.0], [4.0, 4.0]])


def test_a_pair_is_ranked_rightly_when_the_chosen_response_is_at_least_as_likely():
    assert ranked_rightly(POLICY).tolist() == [True, False, True, True]
    assert ranked_rightly(POLICY / LENGTH).tolist() == [True, True, False, True]


def test_a_ranking_is_right_only_as_a_whole_and_without_ties():
    rankings = np.array([[-1.0, -2.0, -3.0], [-1.0, -3.0, -2.0], [-1.0, -1.0, -2.0]])
    assert ranked_rightly(rankings).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="at least two"):
        ranked_rightly(np.zeros((3, 1)))


def test_threshold_losses_are_those_of_the_worked_example():
    """beta = 0.1, c = 0, 1, 5, 10, 30, 100 nats."""
    reference = np.array([[0.0, c] for c in (0.0, 1.0, 5.0, 10.0, 30.0, 100.0)])
    expected = [0.693147, 0.644397, 0.474077, 0.313262, 0.0485874, 4.53989e-05]
    np.testing.assert_allclose(threshold_loss(reference, 0.1), expected, rtol=1e-5)


@given(st.integers(0, 10_000), st.floats(0.01, 5.0))
def test_a_pair_is_ranked_rightly_if_and_only_if_its_loss_is_at_most_the_threshold(seed, beta):
    """Theorem 4.1, on any two models."""
    policy, reference = np.random.default_rng(seed).normal(0, 3, (2, 50, 2))
    below = dpo_loss(policy, reference, beta) <= threshold_loss(reference, beta)
    assert (below == ranked_rightly(policy)).all()


def test_dpo_loss_is_log_two_at_the_reference_and_falls_with_the_margin():
    np.testing.assert_allclose(dpo_loss(POLICY, POLICY, 0.1), math.log(2))
    expected = [math.log(1 + math.exp(-0.5 * h)) for h in (2.0, -5.0, 6.0, -1.0)]
    np.testing.assert_allclose(dpo_loss(POLICY, REFERENCE, 0.5), expected)


def test_the_ideal_policy_needs_enough_agreement_to_turn_what_the_reference_prefers():
    """The reference prefers the rejected response by 5 nats: log(0.75 / 0.25) = 1.0986 turns it iff beta < 0.2197."""
    pair, share = np.array([[-15.0, -10.0]]), np.array([0.75])
    turns = math.log(3) / 5
    assert ideally_ranked(pair, share, turns * 0.999).tolist() == [True]
    assert ideally_ranked(pair, share, turns * 1.001).tolist() == [False]
    assert ideally_ranked(np.array([[-3.0, -3.0]]), np.array([0.5]), 1.0).tolist() == [False]  # strictly above


def test_unanimous_raters_count_as_999_of_1000():
    """log(0.999 / 0.001) = 6.9068 against 7 nats, and 6.9."""
    pairs = np.array([[-7.0, 0.0], [-6.9, 0.0]])
    assert ideally_ranked(pairs, np.ones(2), 1.0).tolist() == [False, True]
    assert ideally_ranked(-pairs, np.zeros(2), 1.0).tolist() == [True, False]


@given(st.integers(0, 10_000), st.floats(0.5, 0.999), st.floats(0.05, 5.0))
def test_the_ideal_is_the_policy_of_theorem_3_1(seed, agreement, beta):
    reference = np.random.default_rng(seed).normal(0, 3, (20, 2))
    ideal = reference.copy()
    ideal[:, 0] += math.log(agreement / (1 - agreement)) / beta
    proportion = np.full(20, agreement)
    clear = np.abs(ideal[:, 0] - ideal[:, 1]) > 1e-9
    assert (ideally_ranked(reference, proportion, beta) == (ideal[:, 0] > ideal[:, 1]))[clear].all()


def test_what_no_proportion_can_be_is_refused():
    with pytest.raises(ValueError, match="proportions must lie"):
        ideally_ranked(POLICY, np.array([0.5, 0.5, 1.5, 0.5]), 0.1)
    with pytest.raises(ValueError, match="beta must be above 0"):
        ideally_ranked(POLICY, np.full(4, 0.5), 0.0)


def test_the_tool_reports_accuracies_and_what_training_turned():
    rows = Table(
        {"policy_logp": POLICY.tolist(), "ref": REFERENCE.tolist(), "n": LENGTH.tolist(), "a": [1.0, 0.75, 0.5, 0.9]}
    )
    output = ranking_accuracy(rows, reference="ref", length="n", proportion="a", beta=0.5)
    shares = {name: share.value for name, share in output.values["accuracy"].items()}
    assert shares == {
        "policy, sums": 0.75,
        "policy, per token": 0.75,
        "the shorter response (ties half)": (0.5 + 0 + 1 + 0.5) / 4,
        "reference, sums": 0.5,
        "reference, per token": 0.75,
        "reward accuracy (ties half)": 0.5,
        "of those the reference ranks wrongly, now right": 0.5,
    }
    assert output.values["median_threshold_of_wrong"] == pytest.approx(math.log(1 + math.exp(-2.5)))
    ideal = {row["beta"]: row["sums"].value for row in output.values["idealised"]}
    assert ideal == {0.01: 0.75, 0.1: 0.75, 1.0: 0.5, 5.0: 0.5, 10.0: 0.5}
    # Per token the second pair is at -1.5 against -2.5 and the third at -6 against -0.78.
    ideal = {row["beta"]: row["per token"].value for row in output.values["idealised"]}
    assert ideal == {0.01: 0.75, 0.1: 0.75, 1.0: 0.75, 5.0: 0.75, 10.0: 0.75}
    assert output.figure is not None and "75.0%" in output.headline


def test_rankings_of_several_lengths_are_read_without_a_reference():
    rows = Table({"policy_logp": [[-1.0, -2.0, -3.0], [-2.0, -1.0]], "n": [[1, 1, 4], [4, 1]]})
    output = ranking_accuracy(rows, length="n")
    assert {name: share.value for name, share in output.values["accuracy"].items()} == {
        "policy, sums": 0.5,
        "policy, per token": 0.5,
    }
    with pytest.raises(ValueError, match="read for pairs"):
        ranking_accuracy(rows, reference="n")
    with pytest.raises(ValueError, match="name their column as reference"):
        ranking_accuracy(Table({"policy_logp": POLICY, "a": [0.5] * 4}), proportion="a")
