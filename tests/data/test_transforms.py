"""Records become what an objective needs, and what cannot is counted with the reason."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefjax.data import transforms
from prefjax.data.account import Finding, Rejection
from prefjax.data.config import DataConfig
from prefjax.data.prepare import prepare
from prefjax.data.readers import read_records
from prefjax.data.records import Record
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.data.transforms import (
    Normalization,
    keep_best,
    normalize_targets,
    rankings_to_pairs,
    targets_from_scores,
)
from prefjax.requirements import Requirements

PAIR = Record("p", ("good", "bad"), (1.0, 0.0), "pair", scores=(9.0, 7.0), weight=2.0, source="f:1")
PLAIN_PAIR = Record("p", ("good", "bad"), (1.0, 0.0), "pair", source="f:2")
UP = Record("p", ("good",), (1.0,), "unpaired", source="f:3")
DOWN = Record("p", ("bad",), (0.0,), "unpaired", source="f:4")
REWARD = Record("p", ("fair",), (0.7,), "unpaired", scores=(0.7,), source="f:5")
SHOWN = Record("p", ("good",), (1.0,), "demonstration", source="f:6")


def adapt(records, *, rankings=None, pair_targets="labels", inputs=(), **facts):
    """Under requirements with these facts."""
    requires = Requirements(inputs=frozenset(inputs), **facts)
    return transforms.adapt(records, requires, rankings=rankings, pair_targets=pair_targets)


def ranking(*scores: float, texts=None) -> Record:
    texts = texts or tuple(f"r{k}" for k in range(len(scores)))
    return Record("p", texts, tuple(map(float, scores)), "ranked", tuple(map(float, scores)), source="f:9")


def split(results) -> tuple[list[Record], list[Finding]]:
    results = list(results)
    records = [result for result in results if isinstance(result, Record)]
    return records, [result for result in results if isinstance(result, Finding)]


@pytest.mark.parametrize(
    "rule, expected",
    [
        ("best_worst", [("r1", "r3")]),
        ("adjacent", [("r1", "r0"), ("r0", "r2"), ("r2", "r3")]),
        ("all", [("r1", "r0"), ("r1", "r2"), ("r1", "r3"), ("r0", "r2"), ("r0", "r3"), ("r2", "r3")]),
    ],
)
def test_rankings_to_pairs(rule, expected):
    records, findings = split(rankings_to_pairs(ranking(2, 3, 1, 0), rule))
    assert [record.responses for record in records] == expected
    (notice,) = findings
    assert notice.reason == "pair_of_ranking" and notice.detail.endswith(f" of 4 by rule {rule!r}")
    assert notice.detail.startswith("[1] over [3]" if rule == "best_worst" else "[1] over [0], ")
    assert {(record.kind, record.targets, record.prompt) for record in records} == {("pair", (1.0, 0.0), "p")}
    assert records[0].scores == (3.0, {"r3": 0.0, "r0": 2.0}[expected[0][1]])
    assert records[0].source == f"f:9[1,{expected[0][1][1]}]"


@pytest.mark.parametrize("rule, made, tied", [("best_worst", 1, 0), ("adjacent", 2, 1), ("all", 5, 1)])
def test_ties_in_a_ranking_make_no_pair(rule, made, tied):
    records, findings = split(rankings_to_pairs(ranking(3, 2, 2, 1), rule))
    assert (len(records), [finding.reason for finding in findings]) == (
        made,
        ["tied_pair"] * tied + ["pair_of_ranking"],
    )
    assert all(record.scores[0] > record.scores[1] for record in records)


def test_equal_texts_in_a_ranking_make_no_pair():
    records, findings = split(rankings_to_pairs(ranking(3, 2, 1, texts=("a", "b", "a")), "all"))
    assert [record.responses for record in records] == [("a", "b"), ("b", "a")]
    assert [finding.reason for finding in findings] == ["same_text_pair", "pair_of_ranking"]
    records, findings = split(rankings_to_pairs(ranking(3, 2, 1, texts=("a", "b", "a"))))
    assert not records and isinstance(findings[-1], Rejection) and findings[-1].reason == "identical_responses"


def test_rankings_that_make_no_pair_are_rejected():
    for rule in ("best_worst", "adjacent", "all"):
        records, findings = split(rankings_to_pairs(ranking(1, 1, 1), rule))
        assert not records and (findings[-1].reason, type(findings[-1])) == ("tie", Rejection)
    assert split(rankings_to_pairs(ranking(1)))[1][0].reason == "wrong_kind"
    assert list(rankings_to_pairs(PAIR)) == [PAIR]
    with pytest.raises(ValueError, match="rule"):
        list(rankings_to_pairs(PAIR, "random"))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
def test_every_pair_of_a_ranking_is_made_or_counted(scores):
    records, findings = split(rankings_to_pairs(ranking(*scores), "all"))
    tied = [finding for finding in findings if finding.reason == "tied_pair"]
    assert len(records) + len(tied) == math.comb(len(scores), 2)
    assert all(record.scores[0] > record.scores[1] for record in records)


@pytest.mark.parametrize(
    "record, best, notices",
    [
        (PAIR, "good", []),
        (ranking(1, 3, 2), "r1", []),
        (ranking(1, 3, 3), "r1", ["tied_best"]),
        (ranking(0.5), "r0", []),
        (UP, "good", []),
        (SHOWN, "good", []),
    ],
)
def test_keep_best(record, best, notices):
    (kept,), findings = split(keep_best(record))
    assert (kept.responses, kept.targets, kept.weight) == ((best,), (1.0,), record.weight)
    assert [finding.reason for finding in findings] == notices


def test_keep_best_refuses_what_it_cannot_judge():
    assert [finding.reason for finding in split(keep_best(DOWN))[1]] == ["undesirable"]
    assert [finding.reason for finding in split(keep_best(REWARD))[1]] == ["bad_label"]


def test_targets_from_scores():
    assert next(targets_from_scores(PAIR)).targets == (9.0, 7.0)
    (rejection,) = targets_from_scores(PLAIN_PAIR)
    assert (rejection.reason, rejection.field) == ("missing_field", "score_chosen")


# Adaptation


def test_a_pairwise_objective_takes_pairs_and_rankings():
    records, account = adapt([PAIR, PLAIN_PAIR, ranking(1, 3, 2), ranking(1, 1)], group_size=2)
    assert [record.responses for record in records] == [("good", "bad"), ("good", "bad"), ("r1", "r0")]
    assert all(record.targets == (1.0, 0.0) for record in records)
    assert account["adapt"].dropped == {"tie": 1} and account["adapt"].kept == 3
    records, account = adapt([ranking(1, 3, 2)], group_size=2, rankings="all")
    assert (len(records), account["adapt"].kept, account["adapt"].outputs) == (3, 1, 3)


def test_single_responses_under_a_pairwise_objective_are_told_what_it_needs():
    records, account = adapt([UP, DOWN, REWARD, SHOWN], group_size=2)
    assert not records and account["adapt"].dropped == {"wrong_kind": 4}
    assert "needs a chosen and a rejected response" in str(account) and "f:3:completion" in str(account)


def test_pair_targets_from_scores():
    records, account = adapt([PAIR, PLAIN_PAIR, UP], group_size=None, reads="rewards", pair_targets="scores")
    assert [record.targets for record in records] == [(9.0, 7.0), (1.0,)]
    assert account["adapt"].dropped == {"missing_field": 1}
    records, _ = adapt([ranking(1, 3, 2)], group_size=2, pair_targets="scores")
    assert records[0].targets == (3.0, 1.0)


def test_any_number_of_responses():
    everything = [PAIR, UP, REWARD, ranking(1, 3, 2), SHOWN]
    assert adapt(everything, group_size=None)[0] == everything
    records, account = adapt(everything, group_size=None, reads="rewards")
    assert records == everything[:-1] and account["adapt"].dropped == {"wrong_kind": 1}
    records, _ = adapt([ranking(1, 3, 2), UP], group_size=None, rankings="best_worst")
    assert [record.targets for record in records] == [(1.0, 0.0), (1.0,)]


def test_rankings_keep_all_responses_where_they_are_compared():
    ranked = ranking(1, 3, 2, 0)
    records, account = adapt([ranked, PAIR, UP, SHOWN], group_size=None, min_responses=2, reads="scores")
    assert records == [ranked, PAIR] and account["adapt"].dropped == {"wrong_kind": 2}
    assert "compares at least 2 responses to a prompt, this record has 1" in str(account)
    records, _ = adapt([ranked, PAIR, UP], group_size=None, reads="scores", pair_targets="scores")
    assert [record.targets for record in records] == [(1.0, 3.0, 2.0, 0.0), (9.0, 7.0), (1.0,)]
    with pytest.raises(ValueError, match="would change scores"):
        prepare(
            DataConfig(normalize_targets=True), Requirements(reads="scores"), ByteTokenizer(), Path(), split="train"
        )


def test_a_pair_without_the_number_that_is_read_is_counted():
    graded = dataclasses.replace(PAIR, margin=1.5)
    records, account = adapt([graded, PLAIN_PAIR, ranking(3, 1)], group_size=2, inputs=("margin",))
    assert records == [graded] and account["adapt"].dropped == {"missing_field": 2}
    assert "f:2:margin: this objective reads a margin of every pair" in str(account)
    assert "format.margin_field" in str(account)
    assert adapt([graded, PLAIN_PAIR], group_size=2)[0] == [graded, PLAIN_PAIR]


def test_labels_must_be_labels():
    records, account = adapt(
        [PAIR, UP, DOWN, ranking(1, 0, 0), ranking(0, -1, -2), REWARD], group_size=None, reads="labels"
    )
    assert len(records) == 4 and account["adapt"].dropped == {"bad_label": 2}
    assert "got 0, -1, -2: make pairs of rankings (rankings='best_worst')" in str(account)


def test_ratings_are_no_probabilities():
    rated = dataclasses.replace(PAIR, scores=(8.5, 0.5))
    records, account = adapt([rated, PAIR], group_size=2, reads="probabilities", pair_targets="labels")
    assert [record.targets for record in records] == [(1.0, 0.0)] * 2
    records, account = adapt([rated], group_size=2, reads="probabilities", pair_targets="scores")
    assert not records and account["adapt"].dropped == {"bad_label": 1}
    assert "probabilities of winning, in [0, 1]; got 8.5, 0.5" in str(account)


def test_an_objective_that_imitates_keeps_the_best():
    records, account = adapt([PAIR, UP, DOWN, ranking(1, 3)], group_size=None, imitates=True)
    assert [record.responses for record in records] == [("good",), ("good",), ("r1",)]
    assert account["adapt"].dropped == {"undesirable": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"group_size": 3},
        {"group_size": 2, "reads": "labels", "pair_targets": "scores"},
        {"group_size": 2, "reads": "scores"},
        {"group_size": 2, "rankings": "worst"},
        {"group_size": None, "rankings": "worst"},
        {"group_size": None, "reads": "targets"},
        {"group_size": None, "pair_targets": "score"},
        {"group_size": 2, "imitates": True},
        {"group_size": None, "imitates": True, "rankings": "all"},
        {"group_size": None, "imitates": True, "pair_targets": "scores"},
    ],
)
def test_contradicting_options_are_errors(options):
    with pytest.raises(ValueError):
        adapt([], **options)


def test_normalize_targets():
    records, constants = normalize_targets([REWARD, ranking(-1, 3, 2), PAIR])
    targets = np.concatenate([record.targets for record in records])
    assert constants.mean == pytest.approx(np.mean([0.7, -1, 3, 2, 1, 0]))
    assert targets.mean() == pytest.approx(0, abs=1e-12) and targets.var() == pytest.approx(1)
    assert records[1].scores == (-1.0, 3.0, 2.0)
    held_out, same = normalize_targets([REWARD], constants)
    assert same is constants and held_out[0].targets == records[0].targets
    with pytest.raises(ValueError, match="all targets are 1"):
        normalize_targets([UP, UP])
    with pytest.raises(ValueError, match="no targets"):
        normalize_targets([])
    with pytest.raises(ValueError):
        normalize_targets([UP], Normalization(0.0, 0.0))


# Real sets


@pytest.mark.slow
def test_real_rankings_as_pairs(real_data):
    graded, _ = read_records(real_data / "gsm8k_solutions_k4.jsonl.gz", progress=False)
    pairs, account = adapt(graded, group_size=2)
    assert len(pairs) == 731 and account["adapt"].dropped == {"tie": 588}
    assert all(pair.scores == (1.0, 0.0) for pair in pairs)
    assert len(adapt(graded, group_size=None, reads="labels")[0]) == 1319

    ranked, _ = read_records(real_data / "oasst_en100_ranked.jsonl.gz", progress=False)
    assert len(adapt(ranked, group_size=2)[0]) == 212
    sizes = [len(record.responses) for record in ranked]
    assert len(adapt(ranked, group_size=2, rankings="all")[0]) == sum(k * (k - 1) // 2 for k in sizes)
    assert len(adapt(ranked, group_size=2, rankings="adjacent")[0]) == sum(k - 1 for k in sizes)
    records, account = adapt(ranked, group_size=None, reads="labels")
    # Scores are minus ranks: (0, -1) is not a pair of labels, and no ranking has labels by accident.
    assert not records and account["adapt"].dropped == {"bad_label": 212}
