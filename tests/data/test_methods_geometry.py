"""Volumes, representative responses, and comparisons completed: against brute force and planted truths."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefjax.data.methods.completion import complete_comparisons, low_rank_plus_sparse
from prefjax.data.methods.geometry import aepo, diverse_subset, greedy_volume, representative_and_diverse
from prefjax.data.records import Record


def embedded(n, vector, **columns):
    columns = {"e": list(vector), **columns}
    return Record(f"p{n}", ("a", "b"), (1.0, 0.0), "pair", source=f"f:{n}", columns=columns)


def ranking(count, **columns):
    scores = tuple(map(float, range(count)))
    texts = tuple(f"r{k}" for k in range(count))
    return Record("p", texts, scores, "ranked", scores, source="f:1", response_columns=columns)


def kept(outcomes):
    return [int(item.prompt[1:]) for outcome in outcomes for item in outcome if isinstance(item, Record)]


def kernel(features, bandwidth):
    quality = np.linalg.norm(features, axis=1)
    unit = features / quality[:, None]
    similar = unit @ unit.T
    if bandwidth is not None:
        apart = ((unit[:, None] - unit[None]) ** 2).sum(-1)
        similar = np.exp(-apart / (2 * bandwidth**2))
    return similar * np.outer(quality, quality)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([None, 0.5, 2.0]))
def test_every_pick_is_the_best_by_determinant(seed, count, bandwidth):
    features = np.random.default_rng(seed).normal(size=(9, 5))
    full, chosen = kernel(features, bandwidth), []
    for _ in range(count):
        volume = [-np.inf if k in chosen else np.linalg.det(full[np.ix_([*chosen, k], [*chosen, k])]) for k in range(9)]
        chosen.append(int(np.argmax(volume)))
    assert greedy_volume(features, count, bandwidth) == chosen


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4))
def test_greedy_is_the_best_subset_where_directions_come_in_clusters(seed, groups):
    """Near-copies of orthogonal directions: the largest determinant takes the longest of each, and so does greedy."""
    rng = np.random.default_rng(seed)
    features = np.repeat(np.eye(4)[:groups], 2, axis=0) * rng.uniform(0.5, 2, (2 * groups, 1))
    features = features @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
    features += 1e-3 * rng.normal(size=features.shape)
    full = kernel(features, None)
    subsets = itertools.combinations(range(2 * groups), groups)
    best = max(subsets, key=lambda s: np.linalg.det(full[np.ix_(s, s)]))
    assert sorted(greedy_volume(features, groups)) == list(best)


def test_diverse_subset_by_hand():
    vectors = [(1, 0), (0.99, 0.1), (0, 3), (1, 1), (0, 0)]
    records = [embedded(n, vector) for n, vector in enumerate(vectors)] + [
        Record("p9", ("a",), (1.0,), "demonstration")
    ]
    outcomes = list(diverse_subset(records, size=2, embedding="e"))
    assert kept(outcomes) == [0, 2]
    left = [item.reason for outcome in outcomes for item in outcome if not isinstance(item, Record)]
    assert left == ["not_selected", "not_selected", "outside_window", "missing_field"]
    assert kept(diverse_subset(records, size=3, embedding="e", bandwidth=0.5)) == [0, 2, 3]
    weighted = [
        embedded(n, vector, q=quality) for n, (vector, quality) in enumerate(zip(vectors, (1, 9, 1, 9), strict=False))
    ]
    assert kept(diverse_subset(weighted, size=1, embedding="e", quality="q")) == [1]
    with pytest.raises(ValueError, match="at most 2"):
        list(diverse_subset(records[:4], size=3, embedding="e"))


@given(st.integers(0, 10**6), st.floats(0.1, 50))
def test_a_common_factor_of_the_quality_changes_nothing(seed, factor):
    features = np.random.default_rng(seed).normal(size=(8, 4))
    assert greedy_volume(features, 3) == greedy_volume(features * factor, 3)


def aepo_objective(similarity, chosen, diversity):
    others = similarity - np.diag(np.diag(similarity))
    n, k = len(others), len(chosen)
    x = np.isin(np.arange(n), chosen).astype(float)
    return others.sum(0) @ x / ((n - 1) * k) - diversity * x @ others @ x / (k * (k - 1))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.floats(0, 3))
def test_aepo_is_greedy_on_the_objective(seed, count, diversity):
    vectors = np.random.default_rng(seed).normal(size=(7, 4))
    similarity = vectors @ vectors.T
    others, chosen = similarity - np.diag(np.diag(similarity)), []
    scale = 1 / (6 * count), diversity / (count * (count - 1))
    for _ in range(count):
        value = []
        for k in range(7):
            x = np.isin(np.arange(7), [*chosen, k]).astype(float)
            value.append(-np.inf if k in chosen else others.sum(0) @ x * scale[0] - x @ others @ x * scale[1])
        chosen.append(int(np.argmax(value)))
    assert representative_and_diverse(similarity, count, diversity) == chosen


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4), st.floats(0, 3))
def test_aepo_then_exchanges_one_pick_at_a_time(seed, count, diversity):
    """The authors' second step in scalars: without a random pick, try everything in its place, keep the best."""
    vectors = np.random.default_rng(seed).normal(size=(9, 3))
    similarity = vectors @ vectors.T
    chosen, rng = representative_and_diverse(similarity, count, diversity), np.random.default_rng(seed)
    before = aepo_objective(similarity, chosen, diversity)
    for _ in range(20):
        place = int(rng.integers(count))
        rest = [k for k in chosen if k != chosen[place]]
        tried = {k: aepo_objective(similarity, [*rest, k], diversity) for k in range(9) if k not in rest}
        chosen = [max(tried, key=tried.get) if at == place else k for at, k in enumerate(chosen)]
    made = representative_and_diverse(similarity, count, diversity, 20, np.random.default_rng(seed))
    assert aepo_objective(similarity, made, diversity) == pytest.approx(
        aepo_objective(similarity, chosen, diversity), abs=1e-9
    )
    assert len(set(made)) == count and aepo_objective(similarity, made, diversity) >= before - 1e-9


def test_aepo_exchanges_by_hand():
    # Greedy takes the middle first, and keeps it; without it the two ends are as far apart as can be.
    angles = np.deg2rad([0, 60, -60])
    vectors = tuple(zip(np.cos(angles).tolist(), np.sin(angles).tolist(), strict=True))
    options = dict(embedding="e", diversity=2.0)
    ((greedy,),) = aepo([ranking(3, e=vectors)], **options, exchanges=0)
    ((made,),) = aepo([ranking(3, e=vectors)], **options)
    assert "r0" in greedy.responses and set(made.responses) == {"r1", "r2"}


def test_aepo_by_hand():
    # Three alike and one apart: the first pick represents, the second differs when diversity counts enough.
    vectors = ((1, 0), (1, 0.1), (1, -0.1), (0, 1))
    ((made,),) = aepo([ranking(4, e=vectors)], embedding="e", diversity=2.0)
    assert "r3" in made.responses
    assert (made.kind, len(made.targets)) == ("ranked", 2)
    ((made,),) = aepo([ranking(4, e=vectors)], embedding="e", diversity=0.0)
    assert set(made.responses) == {"r0", "r1"}  # the two most similar to all
    best = max(itertools.combinations(range(4), 2), key=lambda s: aepo_objective(_cosine(vectors), s, 2.0))
    assert 3 in best
    ((rejection,),) = aepo([ranking(4, e=vectors)], embedding="e", count=5)
    assert rejection.reason == "few_responses"


def _cosine(vectors):
    unit = np.array(vectors, float) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("seed", range(3))
def test_a_low_rank_matrix_is_recovered_from_missing_and_corrupted_entries(seed):
    """The setting of Theorem 1.2 of arXiv 0912.3599: incoherent, random entries known, a few of them wrong at will."""
    rng, n = np.random.default_rng(seed), 60
    truth = rng.normal(size=(n, 2)) @ rng.normal(size=(2, n))
    known = rng.random((n, n)) < 0.8
    wrong = (rng.random((n, n)) < 0.05) & known
    observed = truth + wrong * rng.choice([-1, 1], (n, n)) * rng.uniform(2, 100, (n, n))
    low, sparse = low_rank_plus_sparse(observed, known)
    np.testing.assert_allclose(low, truth, atol=1e-3)
    assert ((np.abs(sparse) > 0.1) == wrong).all()
    # The complete matrix without errors is returned as it is.
    low, sparse = low_rank_plus_sparse(truth, np.ones((n, n), bool))
    np.testing.assert_allclose(low, truth, atol=1e-3)


def comparisons(scores, wrong=(), missing=()):
    win = 1 / (1 + np.exp(-(scores[:, None] - scores[None])))
    win = win.tolist()
    for i, j in wrong:
        win[i][j], win[j][i] = win[j][i], win[i][j]
    for i, j in missing:
        win[i][j] = win[j][i] = None
    return tuple(win)


@pytest.mark.parametrize("seed", range(3))
def test_comparisons_give_the_scores_in_spite_of_errors(seed):
    rng, count = np.random.default_rng(seed), 30
    scores = rng.normal(size=count)
    places = [(i, j) for i in range(count) for j in range(i)]
    rng.shuffle(places)
    wins = comparisons(scores, wrong=places[:20], missing=places[20:80])  # 5 % exchanged, 14 % never asked
    ((made,),) = complete_comparisons([ranking(count, wins=wins)], wins="wins", clip=0.001)
    np.testing.assert_allclose(made.scores, scores - scores.mean(), atol=1e-2)
    assert made.targets == made.scores and made.kind == "ranked"


def test_one_side_of_every_comparison_is_enough():
    scores = np.arange(12) / 4
    wins = np.array(comparisons(scores)).tolist()
    for i, j in itertools.combinations(range(12), 2):
        wins[max(i, j) if (i + j) % 2 else min(i, j)][min(i, j) if (i + j) % 2 else max(i, j)] = None
    ((made,),) = complete_comparisons([ranking(12, wins=tuple(wins))], wins="wins", clip=0.001)
    np.testing.assert_allclose(made.scores, scores - scores.mean(), atol=1e-3)


def test_comparisons_that_fall_into_groups_are_named():
    """Between two groups nothing says how far apart they are, so no scores of both do."""
    scores = np.arange(12) / 4
    apart = [(i, j) for i in range(12) for j in range(i) if i % 2 != j % 2]
    ((rejection,),) = complete_comparisons([ranking(12, wins=comparisons(scores, missing=apart))], wins="wins")
    assert rejection.reason == "unconnected" and rejection.detail.startswith("2 groups; responses 0 and 1 were never")
    ((made,),) = complete_comparisons([ranking(12, wins=comparisons(scores, missing=apart[1:]))], wins="wins")
    assert made.kind == "ranked", "one comparison joins them"


@pytest.mark.parametrize(
    "count, row, reason",
    [
        (11, [0.5] * 11, "few_responses"),
        (12, None, "missing_field"),
        (12, [None] * 12, "missing_field"),
        (12, [0.5] * 11, "length_mismatch"),
        (12, [0.5] * 11 + [1.5], "bad_probability"),
    ],
)
def test_broken_comparisons_are_rejected(count, row, reason):
    ((rejection,),) = complete_comparisons([ranking(count, wins=(row,) * count)], wins="wins")
    assert rejection.reason == reason


def test_what_is_refused():
    for call in (
        lambda: diverse_subset([], size=0, embedding="e"),
        lambda: diverse_subset([embedded(0, (1,))], size=2, embedding="e"),
        lambda: diverse_subset([embedded(0, (1,)), embedded(1, (1, 2))], size=1, embedding="e"),
        lambda: diverse_subset([], size=1, embedding="e", bandwidth=0.0),
        lambda: aepo([], embedding="e", count=1),
        lambda: complete_comparisons([], wins="w", clip=0.5),
        lambda: low_rank_plus_sparse(np.eye(2), np.zeros((2, 2), bool)),
        lambda: low_rank_plus_sparse(np.full((2, 2), np.nan), np.ones((2, 2), bool)),
        lambda: greedy_volume(np.array([[np.inf, 1.0]]), 1),
        lambda: representative_and_diverse(np.full((3, 3), np.nan), 2, 1.0),
    ):
        with pytest.raises(ValueError):
            list(call())
