"""Pairwise-search ranking: merge sort when greedy, the likeliest order when the beam is wide."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefjax.contrib.search import pairwise_rank, pairwise_ranking, transitive_share
from prefjax.contrib.table import Table


@given(st.permutations(range(9)), st.sampled_from([1, 5]))
def test_a_sure_and_consistent_judge_is_followed_with_few_questions(order, beam):
    asked = []

    def prefer(i, j):
        asked.append(frozenset((i, j)))
        return 1.0 if order.index(i) < order.index(j) else 0.0

    assert pairwise_rank(9, prefer, beam=beam) == list(order)
    assert len(asked) == len(set(asked)) <= 25  # merge sort's worst case for nine items; all pairs are 36


def test_the_greedy_merge_by_hand():
    """Left 0, right 1, then [0, 1] with [2, 3]; equal chances keep what stood first."""
    judge = {(0, 1): 0.5, (2, 3): 0.2, (0, 3): 0.4, (0, 2): 0.9, (1, 2): 0.1, (1, 3): 0.0}
    assert pairwise_rank(4, lambda i, j: judge[i, j]) == [3, 0, 2, 1]


def test_a_wide_beam_finds_the_merge_that_is_likeliest_on_average():
    """Unsure at first: 0 before 2 is a little likelier, but then 1 against 2 is a coin; 2 first makes all else sure."""
    judge = {(0, 1): 0.99, (2, 3): 0.99, (0, 2): 0.52, (1, 2): 0.5, (0, 3): 0.99, (1, 3): 0.5}
    prefer = lambda i, j: judge[i, j]
    assert pairwise_rank(4, prefer, beam=1) == [0, 1, 2, 3]
    assert pairwise_rank(4, prefer, beam=100, gap=0.1) == [2, 0, 1, 3]
    # Without tolerance of uncertainty only the judge's own choices are followed, however wide the beam.
    assert pairwise_rank(4, prefer, beam=100, gap=0.0)[0] == 0


@given(st.integers(0, 300))
def test_without_pruning_a_wide_beam_is_the_best_of_all_merges(seed):
    left, right = [0, 1, 2], [3, 4, 5]
    chance = np.random.default_rng(seed).uniform(0.05, 0.95, (6, 6))
    for half in (left, right):  # sure inside the halves, so that only the last merge is a search
        for i, j in itertools.combinations(half, 2):
            chance[i, j] = 1.0

    def score(order):
        i = j = 0
        logs = []
        for item in order:
            if i < 3 and j < 3:
                p = chance[left[i], right[j]]
                logs.append(math.log(p if item in left else 1 - p))
            i, j = i + (item in left), j + (item in right)
        return np.mean(logs)

    merges = []
    for places in itertools.combinations(range(6), 3):
        halves = [iter(left), iter(right)]
        merges.append([next(halves[place not in places]) for place in range(6)])
    found = pairwise_rank(6, lambda i, j: float(chance[i, j]), beam=1000, gap=0.5)
    assert score(found) == pytest.approx(max(map(score, merges)))


def test_options_and_judgements_out_of_range_are_refused():
    with pytest.raises(ValueError, match="beam=0"):
        pairwise_rank(2, lambda i, j: 0.5, beam=0)
    with pytest.raises(ValueError, match=r"P\(0 better than 1\) must lie in \[0, 1\], got 1.5"):
        pairwise_rank(2, lambda i, j: 1.5)
    assert pairwise_rank(0, lambda i, j: 0.5) == [] and pairwise_rank(1, lambda i, j: 0.5) == [0]


def test_transitive_triples_are_those_without_a_cycle():
    """Four items: 0 > 1 > 2 > 0 is a cycle; with 3 below all, the other three triples are orders."""
    p = np.full((4, 4), np.nan)
    for winner, loser in ((0, 1), (1, 2), (2, 0), (0, 3), (1, 3), (2, 3)):
        p[winner, loser], p[loser, winner] = 0.9, 0.1
    assert transitive_share(p).value == 0.75 and transitive_share(p).count == 4
    assert transitive_share(1 - p).value == 0.75  # the cycle the other way round
    p[0, 1] = p[1, 0] = 0.5
    assert transitive_share(p).value == 1.0
    p[0, 1] = p[1, 0] = np.nan
    assert transitive_share(p).count == 2
    assert transitive_share(np.full((2, 2), np.nan)) is None


def test_the_tool_averages_both_orders_and_ranks_each_set():
    """In either order the first place is favoured by 0.2: a beats b by 0.6 all the same."""
    rows = Table(
        {
            "prompt": ["x", "x", "y", "y", "y"],
            "first": ["b", "a", 1, 2, 3],
            "second": ["a", "b", 2, 3, 1],
            "probability": [0.6, 0.8, 0.9, 0.9, 0.2],
        }
    )
    output = pairwise_ranking(rows, group="prompt")
    assert output.values["rankings"] == {"x": ["a", "b"], "y": ["1", "2", "3"]}
    assert output.values["transitive"].value == 1.0 and output.values["pairs"] == 4
    with pytest.raises(ValueError, match="nobody judged .2. against"):
        pairwise_ranking(rows.select([2, 4]))
    with pytest.raises(ValueError, match="judgement 1: P"):
        pairwise_ranking(Table({"first": ["a"], "second": ["a"], "probability": [0.5]}))
