"""Statistical rejection sampling against the paper's listing, its limits, its law, and the two pairings."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefjax.data.account import Notice, Rejection
from prefjax.data.methods.sampling import rejection_sample, rso
from prefjax.data.records import Record


def ranking(scores, texts=None, **more):
    scores = tuple(map(float, scores))
    texts = texts or tuple(f"r{k}" for k in range(len(scores)))
    return Record("p", texts, scores, "ranked", scores, source="f:1", **more)


def uniforms(draws):
    """A generator that gives these numbers in blocks."""
    stream = iter(draws)

    class Given(np.random.Generator):
        def random(self, size):
            return np.array(list(itertools.islice(stream, size)))

    return Given(np.random.PCG64())


def one_by_one(reward, count, beta, draws):
    """Algorithm 1 of arXiv 2309.06657 in scalars; each pass draws for every candidate left, used or not."""
    stream, left, accepted = iter(draws), dict(enumerate(reward)), []
    while len(accepted) < count:
        best, gone = max(left.values()), []
        for (k, r), u in zip(list(left.items()), list(itertools.islice(stream, len(left))), strict=True):
            if u < np.exp((r - best) / beta) and len(accepted) < count:
                accepted.append(k)
                gone.append(k)
        for k in gone:
            del left[k]
    return accepted


def test_by_hand():
    # exp((r - 2) / 1): 0.135, 1, 0.368. First pass u = .2, .9, .3 takes 1 and 2; the second is left with 0 as the best.
    assert rejection_sample(np.array([0.0, 2.0, 1.0]), 3, 1.0, uniforms([0.2, 0.9, 0.3, 0.99])) == [1, 2, 0]
    # u = .2, .9, .4: only 1; then the best left is 1: exp(-1) = .368 against .36, and 2 is certain.
    assert rejection_sample(np.array([0.0, 2.0, 1.0]), 2, 1.0, uniforms([0.2, 0.9, 0.4, 0.36, 0.5])) == [1, 0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=12), st.floats(0.01, 10), st.integers(0, 10**6), st.data())
def test_equals_the_algorithm_in_scalars(reward, beta, seed, data):
    count = data.draw(st.integers(1, len(reward)))
    draws = np.random.default_rng(seed).random(len(reward) * (count + 1))
    got = rejection_sample(np.array(reward), count, beta, uniforms(draws))
    assert got == one_by_one(reward, count, beta, draws)
    assert len(set(got)) == count


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12), st.integers(0, 10**6))
def test_limits_of_beta(reward, count, seed):
    reward = np.array(reward, float)
    best = rejection_sample(reward, count, 1e-6, np.random.default_rng(seed))
    assert best == np.argsort(-reward)[:count].tolist()
    assert rejection_sample(reward, count, 1e12, np.random.default_rng(seed)) == list(range(count))


@pytest.mark.slow
def test_the_first_accepted_follows_the_tilted_law():
    """One accepted of exchangeable candidates: P(i) is proportional to the candidates' weights exp(r / beta)."""
    rng, draws = np.random.default_rng(0), 20_000
    values, weights = np.array([0.0, 0.5, 1.0]), np.exp(np.array([0.0, 0.5, 1.0]) / 0.5)
    counts = np.zeros(3)
    for _ in range(draws):
        kinds = rng.integers(0, 3, 60)  # many candidates, so that the best of the three kinds is always among them
        counts[kinds[rejection_sample(values[kinds], 1, 0.5, rng)[0]]] += 1
    expected = draws * weights / weights.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, p = 0.001


def test_first_round_and_tournament():
    record = ranking([5, 1, 4, 2, 3])
    everything = dict(count=5, beta=1e-6)  # accepted from the best on: r0 5, r2 4, r4 3, r3 2, r1 1
    ((a, b),) = rso([record], **everything, pairing="first_round")
    assert [a.responses, b.responses] == [("r0", "r2"), ("r4", "r3")]
    (made,) = rso([record], **everything, pairing="tournament")
    assert [item.responses for item in made] == [("r0", "r2"), ("r4", "r3"), ("r0", "r4"), ("r0", "r1")]
    assert {(item.kind, item.targets) for item in made} == {("pair", (1.0, 0.0))}
    assert made[2].scores == (5.0, 3.0) and made[2].source == "f:1[0,4]"
    ((kept,),) = rso([record], count=2, beta=1e-6, pairing="none")
    assert (kept.kind, kept.responses, kept.targets, kept.scores) == ("ranked", ("r0", "r2"), (5.0, 4.0), (5.0, 4.0))


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(9)), st.integers(2, 9), st.floats(0.05, 20), st.integers(0, 99))
def test_counts_of_pairs_and_their_order(reward, count, beta, seed):
    for pairing, expected in (("first_round", count // 2), ("tournament", count - 1)):
        (made,) = rso([ranking(reward)], count=count, beta=beta, pairing=pairing, seed=seed)
        assert len(made) == expected and all(item.scores[0] > item.scores[1] for item in made)


def test_ties_and_equal_texts():
    (made,) = rso([ranking([1, 1, 2, 0])], count=4, beta=1e-6, pairing="tournament")  # r2, then r0 and r1, then r3
    assert [type(item) for item in made] == [Record, Record, Record]
    (made,) = rso([ranking([2, 2, 0])], count=3, beta=1e-6, pairing="tournament")
    assert [type(item) for item in made] == [Notice, Record] and made[1].responses[1] == "r2"
    ((rejection,),) = rso([ranking([1, 1])], count=2)
    assert (type(rejection), rejection.reason) == (Rejection, "tie")
    ((rejection,),) = rso([ranking([1, 2, 3], ("a", "a", "b"))], count=3)
    assert rejection.reason == "few_responses" and "2 distinct" in rejection.detail


def test_the_order_of_a_file_does_not_matter():
    """A file sorted by reward gives pairs like a shuffled one: the candidates are shuffled by the seed."""
    rewards = np.random.default_rng(0).normal(size=24)
    mean = {}
    for name, scores in (("best first", -np.sort(-rewards)), ("worst first", np.sort(rewards))):
        outcomes = rso([ranking(scores)] * 400, count=4, beta=2.0)
        mean[name] = np.mean([item.scores for outcome in outcomes for item in outcome], axis=0)
    # Unshuffled the two differ by 0.5 and more; the standard error of either mean is below 0.03.
    np.testing.assert_allclose(mean["best first"], mean["worst first"], atol=0.15)


def test_a_reward_that_is_no_number_is_refused_and_does_not_hang():
    for value in (np.inf, -np.inf, np.nan):
        with pytest.raises(ValueError, match="finite"):
            rejection_sample(np.array([value, 0.0]), 2, 0.5, np.random.default_rng(0))
        with pytest.raises(ValueError, match="finite numbers of float32"):
            ranking([value, 1.0])
        ((rejection,),) = rso([ranking([2, 1], response_columns={"rm": (value, 1.0)})], count=2, reward="rm")
        assert rejection.reason == "not_finite"


def test_a_reward_column_replaces_the_scores():
    record = ranking([3, 2, 1], response_columns={"rm": (0.1, 0.2, 0.9)})
    ((made,),) = rso([record], count=2, beta=1e-6, reward="rm")
    assert made.responses == ("r2", "r1") and made.scores == (0.9, 0.2) and made.response_columns == {"rm": (0.9, 0.2)}


def test_what_is_refused():
    for options, hint in (
        (dict(beta=0.0), r"rso\(beta=...\): 0.0 is out of range: set it to above 0"),
        (dict(count=1), "at least two responses for a pair"),
        (dict(count=0, pairing="none"), r"rso\(count=...\): 0 is out of range: set it to at least 1"),
        (dict(pairing="all"), "must be 'first_round' or 'tournament' or 'none'"),
    ):
        with pytest.raises(ValueError, match=hint):
            list(rso([ranking([1, 2])], **options))
    ((one,),) = rso([ranking([1, 2])], count=1, beta=1e-6, pairing="none")
    assert one.kind == "ranked" and one.responses == ("r1",)
    for count, beta in ((3, 1.0), (0, 1.0), (1, 0.0)):
        with pytest.raises(ValueError):
            rejection_sample(np.zeros(2), count, beta, np.random.default_rng(0))
    ((rejection,),) = rso([Record("p", ("a", "b"), (1.0, 0.0), "pair")], count=2)
    assert rejection.reason == "wrong_kind"
