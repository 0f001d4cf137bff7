"""Label noise at the stated rates, the same for the same seed, one record at a time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefjax.data.account import Notice, Rejection
from prefjax.data.methods.noise import bradley_terry_labels, flip_labels
from prefjax.data.methods.sequences import parse_methods
from prefjax.data.records import Record


def pair(n=0, scores=None, **more):
    return Record(f"p{n}", ("good", "bad"), (1.0, 0.0), "pair", scores=scores, source=f"f:{n}", **more)


def single(n, label):
    return Record(f"p{n}", ("text",), (float(label),), "unpaired", source=f"f:{n}")


def records_of(outcomes):
    return [item for outcome in outcomes for item in outcome if isinstance(item, Record)]


def flipped(outcomes):
    return np.array([any(isinstance(item, Notice) for item in outcome) for outcome in outcomes])


def test_a_flip_exchanges_responses_and_what_belongs_to_them():
    record = pair(3, (5.0, 2.0), weight=2.0, margin=3.0, target_probability=0.9, response_columns={"model": ("a", "b")})
    ((made, notice),) = flip_labels([record], rate=1.0)
    assert (made.responses, made.targets, made.scores, made.weight) == (("bad", "good"), (1.0, 0.0), (2.0, 5.0), 2.0)
    assert (made.margin, made.response_columns) == (-3.0, {"model": ("b", "a")})
    assert made.target_probability == pytest.approx(0.1)
    assert (notice.reason, made.source) == ("flipped", "f:3[1,0]")
    ((made, _),) = flip_labels([single(0, 1)], rate=1.0)
    assert (made.targets, made.kind) == ((0.0,), "unpaired")
    assert list(flip_labels([pair()], rate=0.0)) == [(pair(),)]


def test_flips_are_the_draws_of_the_seed_below_the_rate():
    drawn = np.random.default_rng(7).random(50) < 0.3
    assert (flipped(flip_labels(map(pair, range(50)), rate=0.3, seed=7)) == drawn).all()
    assert (flipped(flip_labels(map(pair, range(20)), rate=0.3, seed=7)) == drawn[:20]).all()
    assert (flipped(flip_labels(map(pair, range(50)), rate=0.3, seed=8)) != drawn).any()


def test_a_record_that_cannot_be_flipped_does_not_change_the_next():
    alone = flipped(flip_labels(map(pair, range(40)), rate=0.5))
    mixed = [pair(n) if n % 2 else Record("p", ("a",), (1.0,), "demonstration") for n in range(40)]
    outcomes = list(flip_labels(mixed, rate=0.5))
    assert (flipped(outcomes)[1::2] == alone[1::2]).all()
    assert all(outcome[0].reason == "wrong_kind" for outcome in outcomes[::2])


@pytest.mark.parametrize("rate, rate_undesirable", [(0.1, None), (0.4, 0.05), (0.0, 1.0)])
def test_rates_by_class(rate, rate_undesirable):
    count = 4000
    labels = [n % 2 for n in range(count)]
    hit = flipped(flip_labels(map(single, range(count), labels), rate=rate, rate_undesirable=rate_undesirable))
    for label, expected in ((1, rate), (0, rate if rate_undesirable is None else rate_undesirable)):
        share = hit[label::2].mean()
        assert abs(share - expected) <= 4 * math.sqrt(expected * (1 - expected) / (count / 2))


def test_bradley_terry_labels_follow_the_reward_difference():
    count, difference, temperature = 4000, 1.0, 2.0
    outcomes = bradley_terry_labels((pair(n, (1.0, 0.0)) for n in range(count)), temperature=temperature)
    expected = 1 / (1 + math.exp(difference / temperature))  # P(the worse one wins), about 0.378
    assert abs(flipped(outcomes).mean() - expected) <= 4 * math.sqrt(expected * (1 - expected) / count)
    clean = records_of(bradley_terry_labels([pair(0, (1.0, 2.0)), pair(1, (2.0, 1.0))], temperature=0.0))
    assert parse_methods("bradley_terry_labels(temperature=0)")[0].options["temperature"] == 0
    assert [record.scores for record in clean] == [(2.0, 1.0), (2.0, 1.0)]


def test_a_reward_column_is_read_by_name():
    record = pair(0, (1.0, 0.0), response_columns={"rm": (0.0, 1.0)})
    ((made, _),) = bradley_terry_labels([record], temperature=0.0, reward="rm")
    assert made.responses == ("bad", "good")
    ((rejection,),) = bradley_terry_labels([pair()], temperature=1.0)
    assert rejection.reason == "missing_field" and "join(" in rejection.detail
    ((rejection,),) = bradley_terry_labels([pair()], temperature=1.0, reward="rm")
    assert (rejection.reason, rejection.field) == ("missing_field", "rm")


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.integers(0, 2**31), st.lists(st.booleans(), min_size=1, max_size=20))
def test_flipping_everything_again_restores_it(rate, seed, labels):
    records = [single(n, label) for n, label in enumerate(labels)]
    once = records_of(flip_labels(records, rate=rate, seed=seed))
    twice = records_of(flip_labels(once, rate=rate, seed=seed))
    assert [record.targets for record in twice] == [record.targets for record in records]


def test_what_is_refused():
    for options in (dict(rate=1.5), dict(rate=0.1, rate_undesirable=-0.1)):
        with pytest.raises(ValueError, match="rate"):
            list(flip_labels([pair()], **options))
    with pytest.raises(ValueError, match="rate_undesirable"):
        list(flip_labels([pair()], rate=0.1, rate_undesirable=0.1))
    with pytest.raises(ValueError, match="temperature"):
        list(bradley_terry_labels([pair()], temperature=-1.0))
    scored = Record("p", ("a", "b"), (7.0, 3.0), "pair", scores=(7.0, 3.0))
    rewarded = Record("p", ("a",), (0.5,), "unpaired")
    for (item,) in flip_labels([scored, rewarded], rate=1.0):
        assert isinstance(item, Rejection) and item.reason == "bad_label"
