"""Random methods in sequence are independent of each other: each step of a sequence has draws of its own."""

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


SEQUENCES = (
    "flip_labels(rate=0.2) | flip_labels(rate=0.2) | subset(share=0.7) | flip_labels(rate=0.1)",
    "bradley_terry_labels() | flip_labels(rate=0.2) | fold(index=1, folds=3) | flip_labels(rate=0.4)",
)


def wrong_after(step: Step, place: int, wrong: np.ndarray) -> np.ndarray:
    """Whose labels are wrong after a step, of pairs with the scores 2 and 1, by the draws that the step makes of its
    seed: what the methods do, without records, and checked against them below."""
    options = step.options_at(place, 0)
    if step.method.name in ("subset", "fold"):
        seed = options["seed"] if step.method.name == "subset" else (*options["seed"], options["repeat"])
        order = generator(seed).permutation(len(wrong))
        if step.method.name == "subset":
            return wrong[np.sort(order[: int(options["share"] * len(wrong) + 1e-9)])]
        return wrong[np.setdiff1d(order, order[options["index"] :: options["folds"]])]
    uniform = generator(options["seed"]).random(len(wrong))
    if step.method.name == "flip_labels":
        return wrong ^ (uniform < options["rate"])
    return wrong ^ (uniform >= np.where(wrong, 1, math.e) / (1 + math.e))


@pytest.mark.parametrize("text", SEQUENCES)
def test_the_draws_are_those_of_the_methods(text):
    records = [Record("p", ("good", "bad"), (1.0, 0.0), "pair", scores=(2.0, 1.0)) for _ in range(300)]
    wrong, steps = np.zeros(300, bool), parse_methods(text)
    for place, step in enumerate(steps, 1):
        wrong = wrong_after(step, place, wrong)
    made = apply_methods(records, steps, Account())
    assert [record.responses[0] == "bad" for record in made] == wrong.tolist()


@pytest.mark.parametrize("text", SEQUENCES)
def test_two_three_and_four_random_methods_in_sequence(text):
    """After every step the share of wrong labels is that of independent steps: p (1 - r) + r (1 - p)."""
    wrong, expected = np.zeros(COUNT, bool), 0.0
    for place, step in enumerate(parse_methods(text), 1):
        wrong = wrong_after(step, place, wrong)
        rate = step.options.get("rate", 1 / (1 + math.e) if step.method.name == "bradley_terry_labels" else 0.0)
        expected = expected * (1 - rate) + rate * (1 - expected)
        error = math.sqrt(expected * (1 - expected) / len(wrong))
        assert abs(wrong.mean() - expected) < 3 * error, (place, wrong.mean(), expected)
