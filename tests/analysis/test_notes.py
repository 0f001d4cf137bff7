"""Every check finds its own oddity, and only that; a healthy run has none, and what was not measured is said."""

import dataclasses

import pytest

from docs import write_checks
from prefjax.analysis import CHECKS, Run, read_run, take_notes
from prefjax.analysis.notes import notes_text
from tests.analysis.synthetic_runs import KL, SAMPLED, START, metrics, write

NAN = float("nan")


def healthy(**changed):
    start, result = changed.pop("start", START), SAMPLED | changed.pop("result", {})
    data = {"train": {"trees": 40}, "eval": {"trees": 8} | changed.pop("eval", {})}
    return Run(
        "a", metrics(**changed), {"objective": "kto"}, {"start_check": start, "context": 512, "data": data}, result
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
    "distance from the reference": dict(result={"kl": KL | {"value": 21.0}}),
    "fill": dict(fill=lambda x: 0.7),
    "speed": dict(tokens_per_second=lambda x: 1000 if x < 0.7 else 600),
    "KTO's reference point": dict(mismatched_log_ratio=lambda x: 0.1 - x),
    "vanished loss": dict(
        loss=lambda x: 0.69 * 0.001**x, reward_accuracy=lambda x: x > 0.9, eval_reward_accuracy=lambda x: 0.9
    ),
    "margin": dict(eval_chosen_logp_change=lambda x: 40 * x, eval_rejected_logp_change=lambda x: -70 * x),
    "malformed samples": dict(result={"garbled_trained": 0.15}),
    "samples that are text": dict(result={"garbled_start": 1.0, "garbled_trained": 1.0}),
    "unfinished samples": dict(result={"unfinished": 11}),
    "number of samples": dict(result={"kl": KL | {"count": 19}, "unfinished": 1}),
    "number of held-out pairs": dict(eval_pairs=lambda x: 19.0),
}


def test_a_healthy_run_has_nothing_odd_and_everything_was_checked():
    notes = take_notes(healthy())
    assert not notes.odd and not notes.unmeasured and notes.fine == CHECKS
    assert notes_text(healthy(), notes) == "`a`: nothing odd. 24 of 24 checks could be made."


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
    lowest |= {"vanished loss", "number of samples", "number of held-out pairs"}
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
        dict(result={"garbled_trained": 0.09}),  # 4 more of 100: so many by chance once in 8 times
        dict(result={"kl": KL | {"count": 2000}, "gold_trained": KL | {"count": 2000}, "garbled_trained": 0.065}),
        dict(result={"kl": KL | {"count": 20}, "unfinished": 2}, eval_pairs=lambda x: 20.0),
        dict(loss=lambda x: 0.69 * 0.001**x, reward_accuracy=lambda x: 0.85),  # a loss that may vanish by itself
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
    assert odd(result={"kl": None}, eval_kl_estimate=lambda x: 30.0) == ["distance from the reference"]
    assert odd(eval_kl_estimate=lambda x: 30.0) == []


def test_a_run_that_measured_little_is_no_healthy_run():
    """Two lines, no held-out set: most checks cannot be made, and none says that all is fine."""
    run = Run("a", [{"step": s, "split": "train", "loss": 0.5, "pairs": 8.0, "reward_accuracy": 0.5} for s in (1, 2)])
    notes = take_notes(run)
    assert [check.name for check in notes.fine] == ["finite numbers", "accuracy against chance", "vanished loss"]
    assert not notes.odd
    text = notes_text(run, notes)
    assert text.startswith("`a`: nothing odd in what was measured. 3 of 24 checks could be made; not measured: ")
    assert "training loss, gradient norm, saturation, speed (for want of 8 logged lines of training" in text
    assert all(check.name in text for check in notes.unmeasured)
    assert len(take_notes(Run("b", [])).unmeasured) == len(CHECKS)


def test_the_page_of_checks_is_up_to_date():
    assert write_checks.PAGE.read_text() == write_checks.render(), "run python -m docs.write_checks"


def few_lines(*lines):
    return [{"step": step, "split": split, "pairs": 8.0, **values} for step, split, values in lines]


PATHOLOGICAL = {
    "solved in six steps": (
        few_lines((6, "train", {"loss": 0.0, "reward_accuracy": 1.0})),
        {"start_check": START, "data": {"train": {"trees": 40}}},
        {},
        {"vanished loss": "training accuracy is 100.0% and the loss fell from 0.6931 to 0.0000 by step 6"},
    ),
    "margins of hundreds of nats": (
        metrics(eval_chosen_logp_change=lambda x: -30 * x, eval_rejected_logp_change=lambda x: -340 * x),
        {},
        {},
        {"margin": "chosen and rejected responses are 310 nats apart"},
    ),
    "samples that fall apart": (
        metrics(),
        {},
        SAMPLED | {"garbled_start": 5 / 170, "garbled_trained": 13 / 170, "gold_trained": KL | {"count": 170}},
        {"malformed samples": "malformed samples rose from 2.9% to 7.6% of 170"},
    ),
    "noise before and after": (
        metrics(),
        {},
        SAMPLED | {"garbled_start": 1.0, "garbled_trained": 1.0},
        {"samples that are text": "100% of samples are malformed before training, 100% after"},
    ),
    "two truncated samples": (
        metrics(),
        {},
        {"kl": {"value": 5.66, "standard_error": 0.03, "count": 2}, "unfinished": 2},
        {"unfinished samples": "2 of 2 samples did not end", "number of samples": "are of 2 (sampling.prompts)"},
    ),
    "evaluated on the training file": (
        metrics(),
        {"data": {"train": {"trees": 60}, "eval": {"trees": 60, "prompts_in_training": 60, "records_in_training": 60}}},
        {},
        {"held-out prompts": "60 of 60 held-out records, 60 of them with the same responses"},
    ),
    "a held-out set of two": (
        metrics(eval_pairs=lambda x: 2.0),
        {},
        {},
        {"number of held-out pairs": "held-out accuracy is of 2 pairs (data.holdout, or a file for data.eval)"},
    ),
    "labels the wrong way round": (
        metrics(reward_accuracy=lambda x: 0.2, eval_reward_accuracy=lambda x: 0.2),
        {},
        {},
        {"accuracy against chance": "reward accuracy is 20.0%, surely below one half: are labels swapped?"},
    ),
    "a learning rate that is too high": (
        metrics(
            loss=lambda x: 0.7 + 5 * x, eval_loss=lambda x: 0.7 + 5 * x, grad_norm=lambda x: 80.0 if x == 0.5 else 2.0
        ),
        {},
        {},
        {
            "training loss": "the training loss went from",
            "gradient norm": "the gradient norm is 80 at step 100",
            "held-out loss": "the held-out loss was best at step 50",
        },
    ),
    "healthy": (metrics(), {"start_check": START, "data": {"train": {"trees": 40}}}, SAMPLED, {}),
}


@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_what_is_wrong_with_a_run_is_named_from_its_folder_and_nothing_else_is(name, tmp_path):
    lines, record, result, wrong = PATHOLOGICAL[name]
    run = read_run(write(tmp_path / "run", lines, record=record, result=result))
    odd = {check.name: text for check, text in take_notes(run).odd}
    assert odd.keys() == wrong.keys(), odd
    assert all(said in odd[check] for check, said in wrong.items()), odd
    page = notes_text(run, take_notes(run))
    assert ("nothing odd" in page) == (not wrong) and all(f"\n- {check}: " in page for check in wrong)
