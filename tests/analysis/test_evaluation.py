"""Statistics of held-out log-probs against cases worked out by hand, and intervals against their textbook widths."""

import dataclasses

import numpy as np
import pytest

from prefjax.analysis import evaluation, judgements
from prefjax.analysis.evaluation import Scored


def scored(policy, reference, length, target=None, valid=None):
    policy, reference = np.array(policy, np.float32), np.array(reference, np.float32)
    target = np.array([[1.0, 0.0]] * len(policy) if target is None else target, np.float32)
    valid = np.ones(policy.shape, bool) if valid is None else np.array(valid)
    return Scored(policy, reference, np.array(length, np.int64), target, valid)


# Four pairs, chosen first. Rewards (chosen, rejected): (1, -1), (-2, 1), (0, 0), (2, 1).
FOUR = scored(
    policy=[[-9, -11], [-12, -4], [-6, -6], [-3, -20]],
    reference=[[-10, -10], [-10, -5], [-6, -6], [-5, -21]],
    length=[[3, 2], [6, 1], [2, 4], [3, 10]],
)


def test_accuracies_by_hand():
    values = {name: estimate.value for name, estimate in evaluation.accuracies(FOUR).items()}
    # Per token: policy (-3, -5.5), (-2, -4), (-3, -1.5), (-1, -2); the reference orders them alike.
    assert values == {
        "reward_accuracy": (1 + 0 + 0.5 + 1) / 4,
        "policy_ranking_accuracy": (1 + 0 + 1 + 1) / 4,  # a tie is right, as the paper has it
        "policy_ranking_accuracy_per_token": (1 + 1 + 0 + 1) / 4,
        "reference_ranking_accuracy": (1 + 0 + 1 + 1) / 4,
        "reference_ranking_accuracy_per_token": (1 + 1 + 0 + 1) / 4,
    }
    better = evaluation.accuracies(FOUR)["reward_accuracy"]
    assert better.low == pytest.approx(0.2194, abs=1e-3) and better.high == pytest.approx(0.9082, abs=1e-3)  # Wilson


def test_margins_and_divergences_by_hand():
    mean, quantiles = evaluation.margins(FOUR)
    assert mean.value == (2 - 3 + 0 + 1) / 4 and mean.low < 0 < mean.high and mean.count == 4
    assert quantiles["50 %"] == 0.5 and quantiles["5 %"] == pytest.approx(-3 + 0.15 * 3)
    away = evaluation.divergences(FOUR)
    assert away["per_response"].value == -(1 - 1 - 2 + 1 + 0 + 0 + 2 + 1) / 8
    assert away["per_token"].value == pytest.approx(-2 / 31)


def test_lengths_by_hand():
    values = evaluation.lengths(FOUR)
    get = lambda name: values[name].value
    assert (get("better"), get("worse"), get("ratio")) == (14 / 4, 17 / 4, pytest.approx(14 / 17))
    assert get("better_is_longer") == 2 / 4
    # Reward gaps 2, -3, 0, 1 against length gaps 1, 5, -2, -7: agree, differ, tie, differ.
    assert get("preferred_is_longer") == (1 + 0 + 0.5 + 0) / 4
    assert get("gap_correlation") == pytest.approx(np.corrcoef([2, -3, 0, 1], [1, 5, -2, -7])[0, 1])
    rewards, lengths = [1, -1, -2, 1, 0, 0, 2, 1], [3, 2, 6, 1, 2, 4, 3, 10]
    assert get("correlation") == pytest.approx(np.corrcoef(rewards, lengths)[0, 1])
    same = dataclasses.replace(FOUR, length=np.full((4, 2), 5))
    assert evaluation.lengths(same)["correlation"] is None and evaluation.lengths(same)["ratio"].value == 1


def test_rankings_make_all_pairs_and_padding_none():
    ranked = scored(
        policy=[[-1, -2, -3], [-5, -4, 99]],
        reference=[[-2, -2, -2], [-4, -4, 0]],
        length=[[1, 1, 1], [1, 1, 1]],
        target=[[3, 2, 2], [1, 0, 7]],
        valid=[[True] * 3, [True, True, False]],
    )
    pairs = evaluation.pairs_of(ranked)
    assert [tuple(map(int, pair)) for pair in zip(*pairs, strict=True)] == [(0, 0, 1), (0, 0, 2), (1, 0, 1)]
    accuracy = evaluation.accuracies(ranked)["reward_accuracy"]
    assert accuracy.value == 2 / 3 and accuracy.count == 3
    assert evaluation.divergences(ranked)["per_response"].count == 5
    single = scored([[-1.0]], [[-2.0]], [[4]], target=[[1.0]])
    assert set(evaluation.accuracies(single).values()) == {None} and evaluation.lengths(single)["ratio"] is None
    assert evaluation.margins(single) == (None, {})


def test_intervals_have_textbook_widths():
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    estimate = evaluation.clustered_mean(values, np.arange(400))
    width = 2 * 1.96 * values.std() / 20
    assert estimate.high - estimate.low == pytest.approx(width, rel=0.1)
    # Every value four times under one prompt is no more evidence than once; by itself it would halve the interval.
    again = evaluation.clustered_mean(np.repeat(values, 4), np.repeat(np.arange(400), 4))
    assert again.high - again.low == pytest.approx(width, rel=0.1)


def test_subsets_and_their_mean():
    many = FOUR.take(np.array([0, 0, 0, 1, 3]))
    tables, means = evaluation.by_subset(many, ["a", "a", "a", "b", "b"])
    assert list(tables) == ["a", "b"] and tables["a"]["reward_accuracy"].value == 1
    assert tables["b"]["reward_accuracy"].value == 0.5 and tables["b"]["margin"].value == -1
    assert means["reward_accuracy"].value == 0.75, "over subsets; 0.8 over prompts"
    assert means["reward_accuracy"].low == 0.5 and means["reward_accuracy"].high == 1
    empty = scored([[-1.0, 0.0]], [[-2.0, 0.0]], [[4, 1]], target=[[1.0, 1.0]])
    assert evaluation.by_subset(empty, ["c"]) == ({}, {})


def test_win_rates_by_hand():
    one_order, other_order = np.array([1.0, 0.6, 0.5, 0.0, 0.9]), np.array([1.0, 0.2, 0.5, 0.2, 0.1])
    rate = judgements.win_rates(one_order, other_order)
    # Averages 1, 0.4, 0.5, 0.1, 0.5: the last prefers a position and is a tie.
    assert (rate.wins, rate.ties, rate.losses) == (1, 2, 2)
    assert rate.win_rate.value == 2 / 5 and rate.preference.value == pytest.approx(2.5 / 5)
    assert rate.consistent.value == 3 / 5
    alone = judgements.win_rates(one_order)
    assert alone.win_rate.value == 3.5 / 5 and alone.consistent is None
    large = judgements.win_rates((np.arange(1000) % 4 > 0).astype(np.float64))
    assert large.win_rate.high - large.win_rate.low == pytest.approx(2 * 1.96 * np.sqrt(0.1875 / 1000), rel=0.1)
    for bad in (np.zeros(0), np.array([1.5])):
        with pytest.raises(ValueError):
            judgements.win_rates(bad)


def test_judgements_of_one_prompt_count_once():
    rows = [
        {"id": 1, "winner": "policy"},
        {"id": 1, "winner": "other"},
        {"prompt": "q", "winner": "tie"},
        {"prompt": [{"role": "user", "content": "x"}], "preference": 0.9},
        {"id": "1", "winner": "other"},
    ]
    numbered = [(f"f:{i + 1}", row) for i, row in enumerate(rows)]
    np.testing.assert_allclose(judgements.read_judgements(numbered), [0.5, 0.5, 0.9, 0])
    for bad, message in (
        ({"winner": "policy"}, "needs id or prompt"),
        ({"id": 1}, "one of winner"),
        ({"id": 1, "winner": "policy", "preference": 1}, "one of winner"),
        ({"id": 1, "winner": "me"}, "got 'me'"),
        ({"id": 1, "preference": 2}, "got 2"),
    ):
        with pytest.raises(ValueError, match=f"f:9: .*{message}"):
            judgements.read_judgements([("f:9", bad)])
