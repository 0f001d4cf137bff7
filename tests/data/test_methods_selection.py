"""Subsets, folds, the easiest share, and windows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefjax.data.formats import Columns
from prefjax.data.methods.selection import (
    column_window,
    easiest,
    fold,
    margin_window,
    order_by,
    score_window,
    subset,
    variance_window,
)
from prefjax.data.readers import read_records
from prefjax.data.records import Record


def record(n, scores=(2.0, 1.0), **columns):
    return Record(f"p{n}", ("good", "bad"), (1.0, 0.0), "pair", scores=scores, source=f"f:{n}", columns=columns)


def kept(outcomes):
    return [int(item.prompt[1:]) for outcome in outcomes for item in outcome if isinstance(item, Record)]


def reasons(outcomes):
    return [item.reason for outcome in outcomes for item in outcome if not isinstance(item, Record)]


RECORDS = [record(n) for n in range(40)]


def test_subset_is_the_head_of_a_permutation_in_order():
    order = np.random.default_rng(3).permutation(40)
    assert kept(subset(RECORDS, size=7, seed=3)) == sorted(order[:7])
    assert kept(subset(RECORDS, share=0.25, seed=3)) == sorted(order[:10])
    assert len(kept(subset(RECORDS, share=0.001))) == 1
    assert reasons(subset(RECORDS, size=39)) == ["not_selected"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 40))
def test_subsets_are_nested(seed, a, b):
    small, large = (set(kept(subset(RECORDS, size=size, seed=seed))) for size in sorted((a, b)))
    assert small <= large


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(0, 5), st.integers(0, 9))
def test_folds_partition_and_training_is_the_complement(folds, repeat, seed):
    options = dict(folds=folds, repeat=repeat, seed=seed)
    inside = [kept(fold(RECORDS, index=k, held_out=True, **options)) for k in range(folds)]
    assert sorted(sum(inside, [])) == list(range(40))
    assert max(map(len, inside)) - min(map(len, inside)) <= 1
    for k, own in enumerate(inside):
        assert kept(fold(RECORDS, index=k, **options)) == sorted(set(range(40)) - set(own))


def test_repeats_split_anew():
    splits = {tuple(kept(fold(RECORDS, repeat=repeat))) for repeat in range(3)}
    assert len(splits) == 3


def test_order_by_a_column():
    records = [record(n, at=at) for n, at in enumerate((3, -1.5, 2, 2, None, 1))]
    assert kept(order_by(records, by="at")) == [1, 5, 2, 3, 0]
    assert kept(order_by(records, by="at", falling=True)) == [0, 2, 3, 5, 1]
    assert reasons(order_by(records, by="at")) == ["missing_field"]


def test_columns_of_a_table_are_text_and_numbers_all_the_same(tmp_path):
    table = 'prompt,chosen,rejected,at,rm\np0,good,bad,3,"[2, 1]"\np1,good,bad,-1.5,"[1, 2]"\np2,good,bad,x,\n'
    (tmp_path / "f.csv").write_text(table)
    records, account = read_records(tmp_path / "f.csv", more=Columns(("at",), ("rm",)), progress=False)
    assert account["read"].found == {"json_as_text": 2}
    assert kept(order_by(records, by="at")) == [1, 0] and reasons(order_by(records, by="at")) == ["wrong_type"]
    assert kept(margin_window(records, at_least=0.0, reward="rm")) == [0]


def test_easiest_half_from_easy_to_hard():
    losses = [0.9, 0.1, 0.5, 0.7, 0.3, 0.5]
    records = [record(n, loss=loss) for n, loss in enumerate(losses)] + [record(6)]
    outcomes = list(easiest(records, by="loss"))
    assert kept(outcomes) == [1, 4, 2]
    assert reasons(outcomes) == ["not_selected"] * 3 + ["missing_field"]
    assert kept(easiest(records, by="loss", share=1.0)) == [1, 4, 2, 5, 3, 0]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.floats(0.05, 1))
def test_nothing_left_out_is_easier_than_what_is_kept(losses, share):
    chosen = kept(easiest([record(n, loss=loss) for n, loss in enumerate(losses)], by="loss", share=share))
    left = set(range(len(losses))) - set(chosen)
    assert len(chosen) == max(1, int(share * len(losses) + 1e-9))
    assert [losses[n] for n in chosen] == sorted(losses[n] for n in chosen)
    assert not left or max(losses[n] for n in chosen) <= min(losses[n] for n in left)


def test_windows_by_hand():
    scores = [(5.0, 4.0), (5.0, 3.0), (9.0, 8.0), (2.0, 5.0), (8.0, 1.0)]
    records = [record(n, pair, gap=abs(pair[0] - pair[1])) for n, pair in enumerate(scores)]
    assert kept(margin_window(records, at_least=1.0, at_most=2.0)) == [0, 1, 2]
    assert kept(score_window(records, at_least=4.0)) == [0, 2]
    assert kept(score_window(records, at_least=8.0, response="chosen")) == [2, 4]
    assert kept(score_window(records, at_most=3.0, response="rejected")) == [1, 4]
    assert kept(variance_window(records, at_most=1.0)) == [0, 1, 2]  # variance of two is (difference / 2)^2
    assert kept(column_window(records, column="gap", at_least=3.0)) == [3, 4]
    outcomes = list(margin_window(records, at_least=0.0))
    assert reasons(outcomes) == ["outside_window"] and outcomes[3][0].detail == "-3 is not in [0, inf]"
    unscored = [record(0, None)]
    assert reasons(margin_window(unscored, at_least=0.0)) == ["missing_field"]
    assert reasons(column_window(unscored, column="gap", at_least=0.0)) == ["missing_field"]


@pytest.mark.parametrize("value, reason", [("a", "wrong_type"), (True, "wrong_type"), (float("nan"), "not_finite")])
def test_a_column_must_be_a_number(value, reason):
    assert reasons(column_window([record(0, gap=value)], column="gap", at_least=0.0)) == [reason]


def test_what_is_refused():
    for call in (
        lambda: subset(RECORDS),
        lambda: subset(RECORDS, size=1, share=0.5),
        lambda: subset(RECORDS, size=41),
        lambda: subset(RECORDS, share=0.0),
        lambda: fold(RECORDS, index=2),
        lambda: fold(RECORDS, folds=1),
        lambda: easiest(RECORDS, by="loss", share=0.0),
        lambda: margin_window(RECORDS),
        lambda: margin_window(RECORDS, at_least=2.0, at_most=1.0),
    ):
        with pytest.raises(ValueError):
            list(call())
