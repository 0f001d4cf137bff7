"""Every check finds its own oddity, and only that; a healthy run has none, and what was not measured is said."""

import dataclasses

import pytest

from prefjax.analysis import CHECKS, Run, take_notes
from prefjax.analysis.notes import notes_text
from tests.analysis.synthetic_runs import KL, START, metrics

NAN = float("nan")


def healthy(**changed):
    start, kl = changed.pop("start", START), changed.pop("kl", KL)
    data = {"train": {"trees": 40}, "eval": {"trees": 8} | changed.pop("eval", {})}
    return Run(
        "a", metrics(**changed), {"objective": "kto"}, {"start_check": start, "context": 512, "data": data}, {"kl": kl}
    )


ODD = {
    "start loss": dict(start=START | {"loss": 0.72}),
    "context": dict(eval={"beyond_context": 3, "longest": 1022}),
    "held-out prompts": dict(eval={"prompts_in_training": 1}),
    "finite numbers": dict(value=lambda x: NAN if x == 0.5 else 1.0),
    "learning rate": dict(learning_rate=lambda x: 1e-3 if x < 0.8 else 0.0),
    "training loss": dict(loss=lambda x: 0.69 + 0.01 * x),
    "gradient norm": dict(grad_norm=lambda x: 30.0 if x == 0.5 else 2.0),
    "accuracy against chance": dict(eval_reward_accuracy=lambda x: 0.45, reward_accuracy=lambda x: 0.45),
    "ties": dict(eval_reward_ties=lambda x: 0.1),
    "saturation": dict(
        reward_accuracy=lambda x: min(1.0, 0.6 + x), eval_reward_accuracy=lambda x: 0.95, margin=lambda x: 9 * x
    ),
    "train and held-out accuracy": dict(reward_accuracy=lambda x: 0.6 + 0.3 * x, eval_reward_accuracy=lambda x: 0.7),
    "held-out loss": dict(eval_loss=lambda x: {0.25: 0.6, 0.5: 0.5, 0.75: 0.51, 1.0: 0.53}[x]),
    "likelihood displacement": dict(eval_chosen_logp_change=lambda x: -2.0 * x),
    "distance from the reference": dict(kl=KL | {"value": 21.0}),
    "fill": dict(fill=lambda x: 0.7),
    "speed": dict(tokens_per_second=lambda x: 1000 if x < 0.7 else 600),
    "KTO's reference point": dict(mismatched_log_ratio=lambda x: 0.1 - x),
}


def test_a_healthy_run_has_nothing_odd_and_everything_was_checked():
    notes = take_notes(healthy())
    assert not notes.odd and not notes.unmeasured and notes.fine == CHECKS
    assert notes_text(healthy(), notes) == "`a`: nothing odd. 17 of 17 checks could be made."


def test_the_table_of_oddities_is_complete():
    assert set(ODD) == {check.name for check in CHECKS} and len(ODD) == len(CHECKS)


@pytest.mark.parametrize("name", ODD)
def test_a_check_finds_its_oddity_and_no_other_does(name):
    notes = take_notes(healthy(**ODD[name]))
    assert [check.name for check, _ in notes.odd] == [name]
    text = notes_text(healthy(), notes)
    assert f"\n- {name}: {notes.odd[0][1]}." in text


@pytest.mark.parametrize("name", sorted(set(ODD) - {"finite numbers"}))
def test_the_threshold_of_the_table_is_the_one_that_decides(name):
    """A threshold that no run can pass, given to the same function, takes the note away."""
    [check] = [check for check in CHECKS if check.name == name]
    lowest = {"accuracy against chance", "fill", "speed", "training loss", "KTO's reference point"}  # odd below
    lax = dataclasses.replace(check, threshold=-1e9 if name in lowest else 1e9)
    run = healthy(**ODD[name])
    assert check.find(run, check.threshold) and lax.find(run, lax.threshold) == ""


@pytest.mark.parametrize(
    "changed",
    [
        dict(start=START | {"loss": 0.70}),  # 1 %
        dict(learning_rate=lambda x: 1e-3 * (1 - x)),  # 0 at the last step only
        dict(grad_norm=lambda x: 30.0 if x == 0.05 else 2.0),  # before warm-up
        dict(grad_norm=lambda x: 10.0 * 0.0001**x),  # a fit that gets perfect
        dict(eval_chosen_logp_change=lambda x: -0.9 * x, eval_rejected_logp_change=lambda x: -1.0 * x),  # below a nat
        dict(eval_chosen_logp_change=lambda x: -1.7 * x),  # a fall, but less than half of that of rejected ones
        dict(margin=lambda x: 3.0, reward_accuracy=lambda x: 1.0, eval_reward_accuracy=lambda x: 0.95),  # at rest
        dict(eval_reward_accuracy=lambda x: 0.72),  # a gap of 6 points
        dict(eval_loss=lambda x: {0.25: 0.6, 0.5: 0.5, 0.75: 0.49, 1.0: 0.51}[x]),  # gave back 18 %
        dict(mismatched_log_ratio=lambda x: -0.1 if x < 0.9 else 0.2),
    ],
)
def test_what_is_within_its_range_is_not_odd(changed):
    assert not take_notes(healthy(**changed)).odd


def test_chosen_that_falls_while_rejected_rises_is_displacement():
    run = healthy(eval_chosen_logp_change=lambda x: -2 * x, eval_rejected_logp_change=lambda x: 1.0)
    assert [check.name for check, _ in take_notes(run).odd] == ["likelihood displacement"]


def test_without_a_reference_the_first_logged_step_is_what_log_probs_are_compared_with():
    lines = [
        {"step": step, "split": "train", "chosen_logp": -20.0 - step, "rejected_logp": -20.0 - step} for step in (1, 9)
    ]
    [(check, text)] = take_notes(Run("a", lines)).odd
    assert check.name == "likelihood displacement" and "−8.0 nats" in text


def test_kl_of_samples_comes_before_that_of_the_data():
    odd = lambda **changed: [check.name for check, _ in take_notes(healthy(**changed)).odd]
    assert odd(kl=None, eval_kl_estimate=lambda x: 30.0) == ["distance from the reference"]
    assert odd(eval_kl_estimate=lambda x: 30.0) == []


def test_a_run_that_measured_little_is_no_healthy_run():
    """Two lines, no held-out set: most checks cannot be made, and none says that all is fine."""
    run = Run("a", [{"step": s, "split": "train", "loss": 0.5, "pairs": 8.0, "reward_accuracy": 0.5} for s in (1, 2)])
    notes = take_notes(run)
    assert [check.name for check in notes.fine] == ["finite numbers", "accuracy against chance"] and not notes.odd
    assert "2 of 17 checks could be made; not measured, or not often enough: start loss" in notes_text(run, notes)
    assert len(take_notes(Run("b", [])).unmeasured) == len(CHECKS)
