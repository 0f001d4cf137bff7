"""Best-of-n's estimator against all subsets, its KL against the enumerated one, and mini-N's early exit."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefjax.contrib.best_of_n import MiniN, best_of_n, best_of_n_kl, best_of_n_reward, mini_best_of_n, mini_n
from prefjax.contrib.table import Table


def test_the_best_of_two_of_three_by_hand():
    """{1, 2, 4}: the maxima of the three pairs are 2, 4, 4; the mean of one is 7/3, the best of three 4."""
    found = best_of_n_reward(np.array([4.0, 1.0, 2.0]), np.array([1, 2, 3]))
    np.testing.assert_allclose(found, [7 / 3, 10 / 3, 4])
    gold = best_of_n_reward(np.array([4.0, 1.0, 2.0]), np.array([1, 2, 3]), np.array([0.0, 3.0, 9.0]))
    np.testing.assert_allclose(gold, [4, 3, 0])  # (9 + 0 + 0) / 3: what the proxy prefers is worth nothing


@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.data())
def test_it_is_the_mean_over_all_subsets_whatever_the_ties(rewards, data):
    n = data.draw(st.integers(1, len(rewards)))
    gold = np.arange(len(rewards), dtype=float) ** 2
    expected = []
    for subset in itertools.combinations(range(len(rewards)), n):
        best = max(rewards[i] for i in subset)
        expected.append(np.mean([gold[i] for i in subset if rewards[i] == best]))
    # Among ties of a subset each is as likely; over all subsets this is the tie group's mean.
    found = best_of_n_reward(np.array(rewards, float), np.array([n]), gold)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-9)


def test_large_pools_neither_overflow_nor_lose_precision():
    found = best_of_n_reward(np.arange(5000.0), np.array([1, 2500, 5000]))
    # E[max of n without replacement from 0 .. N-1] = n (N + 1) / (n + 1) - 1
    np.testing.assert_allclose(found, [n * 5001 / (n + 1) - 1 for n in (1, 2500, 5000)], rtol=1e-8)
    with pytest.raises(ValueError, match=r"1 \.\. 3"):
        best_of_n_reward(np.zeros(3), np.array([4]))


def test_the_kl_is_the_enumerated_one_for_many_equally_likely_samples_and_else_a_bound():
    np.testing.assert_allclose(best_of_n_kl(np.array([1, 2])), [0, math.log(2) - 0.5])
    for size, slack in ((3, np.inf), (20_000, 1e-3)):
        cumulative = np.arange(size + 1) / size
        best = np.diff(cumulative**4)  # the k-th best of four is drawn with this probability
        exact = float((best * np.log(best * size)).sum())
        assert exact <= best_of_n_kl(np.array([4]))[0] <= exact + slack


def test_mini_n_stops_at_the_first_loop_with_a_sample_above_the_threshold():
    reward = np.array([-1.0, -2.0, 0.5, 3.0, 9.0, 0.0])
    assert mini_n(reward, size=2, loops=3) == MiniN(chosen=3, drawn=4, accepted=True)
    assert mini_n(reward, size=2, loops=3, threshold=3.0) == MiniN(chosen=4, drawn=6, accepted=True)
    assert mini_n(reward, size=2, loops=2, threshold=3.0) == MiniN(chosen=3, drawn=4, accepted=False)
    with pytest.raises(ValueError, match="4 loops of 2 samples"):
        mini_n(reward, size=2, loops=4)


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.floats(-5, 5))
def test_mini_n_accepts_the_prompts_that_best_of_n_would_and_never_draws_more(rewards, threshold):
    reward = np.array(rewards)
    end = mini_n(reward, size=2, loops=3, threshold=threshold)
    assert end.accepted == (reward.max() > threshold) and end.drawn <= 6
    assert end.accepted or reward[end.chosen] == reward.max()


def test_the_curve_draws_runs_beside_it(tmp_path):
    mean = lambda value: {"value": value, "standard_error": 0.1, "count": 9}
    result = {"objective": "dpo", "kl": mean(1.5), "gold_start": mean(0.0), "gold_trained": mean(2.0)}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "metrics.jsonl").write_text("")
    rows = Table({"reward": [[1, 2, 4], [0, 0, 0, 1]], "gold": [[0, 0, 6], [1, 1, 1, 1]]})
    output = best_of_n(rows, gold="gold", runs=(str(tmp_path),))
    assert output.values["n"].tolist() == [1, 2]
    assert [mean.value for mean in output.values["reward"]] == pytest.approx([(7 / 3 + 0.25) / 2, (10 / 3 + 0.5) / 2])
    assert [mean.value for mean in output.values["gold"]] == pytest.approx([1.5, (4 + 1) / 2])
    assert output.values["runs"][0]["gold"].value == 2.0
    with pytest.raises(ValueError, match="the smallest pool has 3"):
        best_of_n(rows, sizes=(4,))
    with pytest.raises(ValueError, match="row 1: 3 values of 'reward' and 2 of 'gold'"):
        best_of_n(Table({"reward": [[1, 2, 4]], "gold": [[1, 2]]}), gold="gold")


def test_the_guardrail_counts_what_it_lets_through():
    rows = Table({"reward": [[-1, 2], [-1, -2], [1, 3]], "ok": [[0, 1], [1, 0], [0, 0]]})
    output = mini_best_of_n(rows, size=1, loops=2, acceptable="ok")
    assert output.values["accepted"].value == pytest.approx(2 / 3)
    assert output.values["drawn"].value == pytest.approx((2 + 2 + 1) / 3)
    assert output.values["reward"].value == pytest.approx((2 - 1 + 1) / 3)
    assert output.values["best_of_n_reward"].value == pytest.approx((2 - 1 + 3) / 3)
    # Let through: prompt 1 (fine) and prompt 3 (not); best-of-N answers prompt 2 as well, with a fine response.
    assert output.values["not_acceptable"]["mini_n"].value == 0.5
    assert output.values["not_acceptable"]["best_of_n"].value == pytest.approx(1 / 3)
