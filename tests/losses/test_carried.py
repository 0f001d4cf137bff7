"""What objectives carry from step to step: each update against float64 NumPy written from its paper or its code."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prefjax as px
from docs import write_objectives
from prefjax.losses import OBJECTIVES, objective
from prefjax.losses.wrappers import smooth
from tests.losses import paper_formulas
from tests.losses.zoo import for_objective, make_fields, to_responses

SEEDS = (1, 2, 3)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def batches(name="bco", valid=None):
    """Fields of some batches, and the same as responses."""
    fields = [for_objective(name, make_fields(2, seed)) for seed in SEEDS]
    return [(f, to_responses(f, valid, jnp.float64)) for f in fields]


def steps(text, pairs):
    """[(losses, what is carried after them)] of one batch after the other."""
    own = objective(text)
    carried, taken = own.initial_carried(), []
    for _, r in pairs:
        r = r.replace(carried=carried)
        losses, carried = own.loss(r), own.update_carried(r)
        taken.append((np.asarray(losses), {name: np.asarray(x) for name, x in carried.items()}))
    return taken


def log_ratio(f):
    return f["logp"] - f["reference_logp"]


def test_the_running_shift_of_bco():
    """d <- moving averages of the two labels' mean rewards, half their sum, this batch among them."""
    pairs, means = batches(), np.zeros(2)
    for (f, _), (losses, carried) in zip(pairs, steps("bco(beta=0.3, momentum=0.8)", pairs), strict=True):
        reward = 0.3 * log_ratio(f)
        means = 0.8 * means + 0.2 * np.array([reward[f["target"] == kind].mean() for kind in (1, 0)])
        np.testing.assert_allclose([carried["desirable"], carried["undesirable"]], means, rtol=1e-12)
        expected = paper_formulas.bco(f | {"detached": means.sum() / 2}, beta=0.3)
        np.testing.assert_allclose(losses, expected, rtol=1e-11)


def test_a_label_that_a_batch_lacks_stays_where_it_was():
    (f, r), *_ = batches()
    before = {"desirable": 0.4, "undesirable": -0.3}
    own, r = objective("bco", momentum=0.9), r.replace(carried=before, target=jnp.ones((6, 2)))
    after = own.update_carried(r)
    assert float(after["undesirable"]) == -0.3
    np.testing.assert_allclose(after["desirable"], 0.9 * 0.4 + 0.1 * 0.01 * log_ratio(f).mean(), rtol=1e-12)
    nothing = own.update_carried(r.replace(valid=jnp.zeros((6, 2), bool)))
    assert {name: float(x) for name, x in nothing.items()} == before


def test_ktos_z0_as_a_moving_average():
    """The average is of what is clamped, not of the clamped."""
    pairs, mean = batches("kto"), 0.0
    for (f, _), (losses, carried) in zip(pairs, steps("kto(momentum=0.5, beta=0.2)", pairs), strict=True):
        mean = 0.5 * mean + 0.5 * (f["baseline_logp"] - f["baseline_reference_logp"]).mean()
        np.testing.assert_allclose(carried["mismatched_log_ratio"], mean, rtol=1e-12)
        expected = paper_formulas.kto(f | {"detached": max(0.0, mean)}, beta=0.2)
        np.testing.assert_allclose(losses, expected, rtol=1e-11)


@pytest.mark.parametrize("per", ["batch", "pair"])
def test_the_running_margin_of_beta_dpo(per):
    """M0 moves before it is read; only pairs that count are in it."""
    valid = np.ones((6, 2), bool)
    valid[4, 0] = False
    pairs, usual = batches("beta_dpo", valid), 0.0
    text = f"beta_dpo(beta=0.2, scaling=0.07, momentum=0.75, per={per!r})"
    for (f, _), (losses, carried) in zip(pairs, steps(text, pairs), strict=True):
        margins = log_ratio(f)[:, 0] - log_ratio(f)[:, 1]
        mean = margins[valid.all(1)].mean()
        usual = 0.75 * usual + 0.25 * mean
        beta = np.maximum(0.001, 0.2 * (1 + 0.07 * ((margins if per == "pair" else mean) - usual)))
        np.testing.assert_allclose(carried["margin"], usual, rtol=1e-12)
        np.testing.assert_allclose(losses, np.log1p(np.exp(-beta * margins)) * valid.all(1), rtol=1e-11)


def test_without_momentum_nothing_is_carried():
    for text in ("bco", "kto", "dpo", "0.5*bco + kto + sft", "smooth(dpo)", "beta_dpo(momentum=0.0)"):
        own = objective(text)
        assert own.initial_carried() == {} == own.update_carried(batches()[0][1])
    by_default = [name for name, entry in OBJECTIVES.items() if entry.initial_carried()]
    assert by_default == ["beta_dpo"]


def test_a_sum_carries_what_each_term_does():
    """A term under a wrapper from what the wrapper shows it; none sees another's."""
    ((f, r), *_) = batches()
    whole = px.objective("0.8*beta_dpo + 0.4*bco(momentum=0.9) + per_token(bco(beta=1.0, momentum=0.5)) + sft")
    start = whole.initial_carried()
    assert start == {
        "beta_dpo": {"margin": 0.0},
        "bco": {"desirable": 0.0, "undesirable": 0.0},
        "per_token_bco": {"desirable": 0.0, "undesirable": 0.0},
    }
    carried = jax.tree.map(lambda _: 0.25, start)
    r = r.replace(carried=carried)
    parts, after = whole.parts(r), whole.update_carried(r)
    for key, (_, term) in whole.terms.items():
        alone = r.replace(carried=carried.get(key))
        if key == "sft":
            continue
        np.testing.assert_array_equal(parts[key], term.loss(alone))
        assert after[key] == term.update_carried(alone)
    a = (log_ratio(f) / f["length"])[f["target"] == 1].mean()
    np.testing.assert_allclose(after["per_token_bco"]["desirable"], 0.5 * 0.25 + 0.5 * a, rtol=1e-12)


def test_what_is_carried_is_asked_for_by_name():
    r = batches()[0][1]
    for text in ("bco(momentum=0.9)", "beta_dpo", "0.5*dpo + bco(momentum=0.9)"):
        own = objective(text)
        for call in (own.check_inputs, own.loss):
            with pytest.raises(ValueError, match=r"needs carried: .* objective.initial_carried\(\) before"):
                call(r)
        own.check_inputs(r.replace(carried=own.initial_carried()))


@pytest.mark.parametrize(
    "text,message",
    [
        ("smooth(beta_dpo)", "its pairs depend on each other"),
        ("beta_dpo(momentum=1.0)", "out of range: set it to at least 0 and below 1"),
        ("beta_dpo(per='row')", "must be 'batch' or 'pair'"),
    ],
)
def test_what_cannot_be_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        objective(text)


def test_an_objective_of_ones_own():
    """That of the page. It is not coupled, and may not be seen twice in a step."""
    page = Path(write_objectives.__file__).with_name("objectives.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    try:
        exec(compile(block, "page", "exec"), {"__name__": "__main__"})
        own, ((f, r), *_) = objective("above_level", beta=0.2), batches("dpo")
        level = 0.1 * log_ratio(f)[:, 0].mean()
        r = r.replace(carried=own.initial_carried())
        r = r.replace(carried=own.update_carried(r))
        np.testing.assert_allclose(own.loss(r), np.maximum(0, 1 - 0.2 * (log_ratio(f)[:, 0] - level)), rtol=1e-12)
        assert not own.coupled
        with pytest.raises(ValueError, match="smooth does not fit above_level: it carries numbers from step to step"):
            smooth(own)
    finally:
        OBJECTIVES._entries.pop("above_level", None)
        OBJECTIVES._ordered = None
