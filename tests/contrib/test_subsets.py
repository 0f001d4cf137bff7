"""Shares by subset and their weighted means, against hand-computed cases and RewardBench's own formula."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefjax.analysis.statistics import Share, share
from prefjax.contrib.subsets import (
    REWARDBENCH,
    judged_rightly,
    mean_share,
    section_means,
    subset_accuracy,
    subset_shares,
)
from prefjax.contrib.table import Table


def test_shares_are_those_of_each_subset_alone():
    shares = subset_shares(np.array([1.0, 0.0, 1.0, 0.5]), ["b", "a", "b", "a"])
    assert list(shares) == ["b", "a"]
    assert shares == {"b": share(1.0, 2), "a": share(0.25, 2)}
    with pytest.raises(ValueError, match="4 judgements need as many subsets, got 1"):
        subset_shares(np.ones(4), ["a"])
    with pytest.raises(ValueError, match=r"judgement 2 must lie in \[0, 1\], got 2"):
        subset_shares(np.array([1.0, 2.0]), ["a", "a"])


def test_means_and_their_errors_by_hand():
    shares = {"a": share(0.5, 4), "b": share(1.0, 10)}
    assert mean_share(shares).value == 0.75
    assert mean_share(shares).standard_error == pytest.approx(0.5 * math.sqrt(0.25 / 4))
    weighted = mean_share(shares, {"a": 1.0, "b": 3.0})
    assert weighted.value == pytest.approx((0.5 + 3) / 4) and weighted.count == 14
    assert weighted.standard_error == pytest.approx(0.25 * 0.25)
    with pytest.raises(ValueError, match="subset 'b' needs a weight"):
        mean_share(shares, {"a": 1.0})


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 1.0])), min_size=1))
def test_weighted_by_counts_it_is_the_mean_over_all_judgements(rows):
    subsets, correct = [s for s, _ in rows], np.array([c for _, c in rows])
    shares = subset_shares(correct, subsets)
    weights = {name: float(part.count) for name, part in shares.items()}
    assert mean_share(shares, weights).value == pytest.approx(correct.mean())
    assert all(part.low <= part.value <= part.high for part in shares.values())


def test_mathematics_and_code_weigh_the_same_in_reasoning():
    """A perfect coder that knows no mathematics has half the section, though 984 of 1431 prompts are code."""
    shares = {name: share(0.0 if name == "math-prm" else 1.0, 10) for name in REWARDBENCH["Reasoning"]}
    means, unknown = section_means(shares | {"mine": share(1.0, 1)}, REWARDBENCH)
    assert list(means) == ["Reasoning"] and means["Reasoning"].value == 0.5 and unknown == ["mine"]


def test_sections_are_cut_to_the_subsets_that_are_there():
    """mt-bench-hard (37) and llmbar-natural (100), the rest of Chat Hard absent."""
    shares: dict[str, Share] = {"mt-bench-hard": share(1.0, 5), "llmbar-natural": share(0.25, 4)}
    assert section_means(shares, REWARDBENCH)[0]["Chat Hard"].value == pytest.approx((37 + 25) / 137)


def test_a_tie_of_scores_is_one_half():
    assert judged_rightly(np.array([[2.0, 1.0], [1.0, 1.0], [0.0, 1.0]])).tolist() == [1.0, 0.5, 0.0]


def test_the_tool_prints_benchmark_tables():
    subsets = ["alpacaeval-easy", "alpacaeval-easy", "donotanswer", "length bias"]
    rows = Table({"subset": subsets, "score": [[2, 1], [1, 2], [3, 1], [1, 0]], "right": [True, False, True, 1]})
    output = subset_accuracy(rows, sections="rewardbench")
    assert output.values["sections"]["Chat"].value == 0.5 and output.values["sections"]["Safety"].value == 1.0
    assert output.values["mean_of_sections"] == 0.75 and output.values["in_no_section"] == ["length bias"]
    assert output.values["rows"].value == 0.75
    same = subset_accuracy(rows, correct="right")
    assert same.values["subsets"] == output.values["subsets"] and "sections" not in same.values
    with pytest.raises(ValueError, match="none of the subsets is RewardBench's"):
        subset_accuracy(rows.select([3]), sections="rewardbench")
    with pytest.raises(ValueError, match="sections='rewardbank'"):
        subset_accuracy(rows, sections="rewardbank")
