"""Pairs by reward position, model, tests passed and instruction; prompts that carry a goal."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefjax.data.methods.conditioning import reward_augmented, with_instruction
from prefjax.data.methods.pairing import (
    best_against_few,
    conditioned_pairs,
    delta_pairs,
    pairs,
    pass_fail,
    reward_positions,
)
from prefjax.data.methods.relabelling import bradley_terry_targets
from prefjax.data.methods.selection import margin_window
from prefjax.data.records import Message, Record


def ranking(*scores, texts=None, **columns):
    scores = tuple(map(float, scores))
    texts = texts or tuple(f"r{k}" for k in range(len(scores)))
    return Record("p", texts, scores, "ranked", scores, source="f:1", response_columns=columns)


def pair(scores=None, prompt="p", **columns):
    responses = ("good", "bad") if prompt == "p" else ((Message("assistant", "good"),), (Message("assistant", "bad"),))
    return Record(prompt, responses, (1.0, 0.0), "pair", scores=scores, source="f:1", response_columns=columns)


def responses(outcomes):
    return [item.responses for outcome in outcomes for item in outcome]


def test_reward_positions_by_hand():
    record = ranking(0, 1, 2, 3, 4, 10)  # mean 10 / 3, standard deviation 3.25
    assert responses(reward_positions([record])) == [("r5", "r0")]
    assert responses(reward_positions([record], chosen="max", rejected=0.0)) == [("r5", "r3")]
    assert responses(reward_positions([record], chosen=1.0, rejected=-0.5)) == [("r4", "r2")]
    assert responses(reward_positions([record], chosen=0.5, rejected="min")) == [("r4", "r0")]
    # The divisor is n: sigma of 1.5, 1.9, 4, 6 is 1.815, so mu - 0.8815 sigma is 1.75, nearer to 1.9; n - 1 gives 1.50.
    assert responses(reward_positions([ranking(1.5, 1.9, 4, 6)], rejected=-0.8815)) == [("r3", "r1")]
    ((rejection,),) = reward_positions([record], chosen="min", rejected="max")
    assert rejection.reason == "no_pair"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12, unique=True), st.floats(-2, 2), st.floats(0.5, 5))
def test_positions_do_not_depend_on_the_rewards_scale(scores, k, scale):
    plain = list(reward_positions([ranking(*scores)], rejected=k))
    moved = list(reward_positions([ranking(*(8 * score + 64 for score in scores))], rejected=k))
    assert [item.source for item in plain[0]] == [item.source for item in moved[0]]


def test_best_against_few():
    record = ranking(*range(30))
    rejected = [responses(best_against_few([record], few=5, seed=seed))[0] for seed in range(300)]
    assert {chosen for chosen, _ in rejected} == {"r29"}
    worst = np.array([int(text[1:]) for _, text in rejected])
    # The expected minimum of 5 of 0..29 without replacement is 25 / 6.
    assert abs(worst.mean() - 25 / 6) < 4 * worst.std() / np.sqrt(300)
    assert responses(best_against_few([record], few=30)) == [("r29", "r0")]
    ((rejection,),) = best_against_few([record], few=31)
    assert rejection.reason == "few_responses"


def test_delta_pairs():
    record = ranking(9, 1, 5, 3, 7, model=("weak", "strong", "strong", "weak", "other"))
    assert responses(delta_pairs([record], model="model", strong="strong", weak="weak")) == [
        ("r1", "r0"),
        ("r2", "r3"),
    ]
    ((rejection,),) = delta_pairs([record], model="model", strong="huge", weak="weak")
    assert rejection.reason == "no_pair" and "'other'" in rejection.detail
    ((rejection,),) = delta_pairs([ranking(1, 2)], model="model", strong="a", weak="b")
    assert (rejection.reason, rejection.field) == ("missing_field", "model")


def test_pass_fail():
    record = ranking(1, 0, 1, 0)
    assert responses(pass_fail([record])) == [("r0", "r1"), ("r0", "r3"), ("r2", "r1"), ("r2", "r3")]
    (made,) = pass_fail([record], to="labels")
    assert [(item.responses, item.targets, item.kind) for item in made] == [
        ((f"r{k}",), (float(k % 2 == 0),), "unpaired") for k in range(4)
    ]
    ((rejection,),) = pass_fail([ranking(1, 1)])
    assert (rejection.reason, rejection.detail) == ("no_pair", "2 pass, 0 fail")
    assert len(next(pass_fail([ranking(1, 1)], to="labels"))) == 2
    ((rejection,),) = pass_fail([ranking(0.5, 1)])
    assert rejection.reason == "bad_label"
    assert responses(pass_fail([ranking(5, 7, ok=(0, 1))], passed="ok")) == [("r1", "r0")]


def test_pairs_are_those_of_the_ranking_rules():
    ((*made, notice),) = pairs([ranking(2, 3, 1)], rule="all")
    assert responses([made]) == [("r1", "r0"), ("r1", "r2"), ("r0", "r2")] and notice.reason == "pair_of_ranking"
    assert list(pairs([pair()])) == [(pair(),)]


def test_conditioned_pairs_exchange_roles_with_the_instruction():
    (made,) = conditioned_pairs([pair(style=("be kind", "be rude"))], instruction="style")
    assert [(item.prompt, item.responses) for item in made] == [
        ("be kind\n\np", ("good", "bad")),
        ("be rude\n\np", ("bad", "good")),
    ]
    (made,) = conditioned_pairs([ranking(1, 2, 3, style=("a", "b", "a"))], instruction="style")
    assert [item.source for item in made] == ["f:1[0,1]", "f:1[1,0]", "f:1[1,2]", "f:1[2,1]"]
    ((rejection,),) = conditioned_pairs([pair(style=("a", "a"))], instruction="style")
    assert rejection.reason == "no_pair"
    ((rejection,),) = conditioned_pairs([pair(style=("a", " "))], instruction="style")
    assert rejection.reason == "wrong_type"


def test_reward_augmented_by_hand():
    (made,) = reward_augmented([pair((8.5, 3.0))], template="Aim at {score}.")
    assert [(item.prompt, item.responses, item.targets, item.scores) for item in made] == [
        ("Aim at 8.5.\n\np", ("good", "bad"), (1.0, 0.0), (8.5, 3.0)),
        ("Aim at 3.\n\np", ("bad", "good"), (1.0, 0.0), None),
    ]
    for scores, reason in (((3.0, 3.0), "tie"), ((3.0, 8.0), "contradicting_scores")):
        ((rejection,),) = reward_augmented([pair(scores)])
        assert rejection.reason == reason
    with pytest.raises(ValueError, match="score"):
        list(reward_augmented([], template="Aim high."))


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_the_goal_is_the_score_of_the_chosen_response_with_all_its_digits(first, second):
    for outcome in reward_augmented([pair((first, second))], template="{score}"):
        if len(outcome) == 2:
            assert [float(item.prompt.split("\n")[0]) for item in outcome] == [first, second]
            assert [item.responses[0] for item in outcome] == ["good", "bad"]


@pytest.mark.parametrize("score, text", [(4.123456789, "4.123456789"), (123456789.0, "123456789"), (1e-7, "0.0000001")])
def test_a_goal_is_written_out(score, text):
    (made,) = reward_augmented([pair((score, 0.0))], template="{score}")
    assert made[0].prompt == f"{text}\n\np"


def test_what_contradicts_an_exchanged_pair_goes():
    """A later method or objective that reads scores would otherwise undo the exchange."""
    own = {"rm": (8.0, 3.0), "style": ("x", "y")}
    (made,) = reward_augmented([pair((1.0, 2.0), **own)], template="{score}", reward="rm")
    assert [item.scores for item in made] == [(1.0, 2.0), (2.0, 1.0)]
    assert [dict(item.response_columns) for item in made] == [own, {"style": ("y", "x")}]
    (made,) = conditioned_pairs([pair((8.0, 3.0), style=("a", "b"))], instruction="style")
    assert [item.scores for item in made] == [(8.0, 3.0), None]
    for method in (bradley_terry_targets, functools.partial(margin_window, at_least=0.0)):
        kept, (lost,) = method(list(made))
        assert (kept[0].responses, lost.reason) == (("good", "bad"), "missing_field")


def test_an_instruction_joins_a_system_message():
    user, system = Message("user", "hi"), Message("system", "Be brief.")
    assert with_instruction(pair(prompt=(user,)), "X").prompt == (Message("system", "X"), user)
    assert with_instruction(pair(prompt=(system, user)), "X").prompt == (Message("system", "X\n\nBe brief."), user)


def test_what_is_refused():
    for call in (
        lambda: reward_positions([], chosen="best"),
        lambda: best_against_few([], few=0),
        lambda: delta_pairs([], model="m", strong="a", weak="a"),
    ):
        with pytest.raises(ValueError):
            list(call())
