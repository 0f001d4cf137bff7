"""Random methods in sequence are independent of each other: each step of a sequence has draws of its own."""

import functools
import itertools
import math

import numpy as np
import pytest

from prefjax.data.account import Account
from prefjax.data.methods import METHODS
from prefjax.data.methods.sequences import Step, apply_methods, parse_methods
from prefjax.data.methods.stream import generator
from prefjax.data.records import Record

COUNT = 100_000
RANDOM = [name for name, method in METHODS.items() if "seed" in method.options]


@functools.cache
def pairs() -> tuple[Record, ...]:
    return tuple(Record("p", ("good", "bad"), (1.0, 0.0), "pair", scores=(2.0, 1.0)) for _ in range(COUNT))


def test_the_random_methods_are_known():
    assert set(RANDOM) == set("aepo best_against_few bradley_terry_labels flip_labels fold rso subset".split())


def test_every_random_step_draws_numbers_of_its_own():
    """All random methods at all of four places of two sources: no two steps' draws go together.

    Draws are compared as what methods make of them, a choice with probability 0.2. Of the 1,540 correlations the
    largest is expected at 3.5 standard errors; a shared seed gives 300.
    """
    steps = [
        Step(METHODS[name], {"seed": 0}).options_at(place, stream)["seed"]
        for name, place, stream in itertools.product(RANDOM, (1, 2, 3, 4), (0, 1))
    ]
    chosen = np.stack([generator(seed).random(COUNT) < 0.2 for seed in steps])
    correlation = np.corrcoef(chosen.astype(np.float32)) - np.eye(len(chosen))
    assert np.abs(correlation).max() * math.sqrt(COUNT) < 5


@pytest.mark.parametrize(
    "text",
    [
        "flip_labels(rate=0.2) | flip_labels(rate=0.2) | subset(share=0.7) | flip_labels(rate=0.1)",
        "bradley_terry_labels() | flip_labels(rate=0.2) | fold(index=1, folds=3) | flip_labels(rate=0.4)",
    ],
)
def test_two_three_and_four_random_methods_in_sequence(text):
    """After every step the share of wrong labels is that of independent steps: p (1 - r) + r (1 - p)."""
    records, expected = pairs(), 0.0
    for place, step in enumerate(parse_methods(text), 1):
        records = list(apply_methods(records, [step], Account(), first=place))
        rate = {"flip_labels": step.options.get("rate"), "bradley_terry_labels": 1 / (1 + math.e)}.get(
            step.method.name, 0.0
        )
        expected = expected * (1 - rate) + rate * (1 - expected)
        wrong = np.mean([record.responses[0] == "bad" for record in records])
        assert abs(wrong - expected) < 3 * math.sqrt(expected * (1 - expected) / len(records)), (place, wrong, expected)
