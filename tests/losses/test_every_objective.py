"""What must hold of every entry of the zoo. A newly registered objective is tested here without a line of its own,
but for its formula in `paper_formulas`."""

import dataclasses
import doctest
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prefjax
from prefjax.losses import OBJECTIVES, Responses
from prefjax.losses.responses import PROVIDED_BY
from tests.losses import paper_formulas, zoo
from tests.losses.zoo import (
    FIELDS,
    PER_RESPONSE,
    PER_TOKEN,
    SCORED,
    B,
    for_objective,
    make_fields,
    moved_fields,
    to_responses,
    variants,
)

every_objective = pytest.mark.parametrize("name", OBJECTIVES)
every_case = pytest.mark.parametrize(("name", "K"), zoo.CASES)


def test_zoo_is_complete_and_reachable_by_name():
    assert len(OBJECTIVES) >= 74
    for name, objective in OBJECTIVES.items():
        assert objective.name == name
        assert getattr(prefjax.losses, name) is objective.apply
        assert name in dir(prefjax.losses)
    pair = Responses(logp=jnp.array([[-10.0, -12.0]]), reference_logp=jnp.array([[-11.0, -11.0]]))
    np.testing.assert_allclose(prefjax.losses.dpo(pair, beta=0.1), np.log1p(np.exp(-0.2)), rtol=1e-6)


def test_every_optional_field_says_what_provides_it():
    assert set(PROVIDED_BY) == {f.name for f in dataclasses.fields(Responses)} - {"logp", "valid"}
    assert set(PROVIDED_BY) | {"logp"} == {*FIELDS, "carried"}


@pytest.mark.parametrize("module", sorted({o.apply.__module__.split(".")[-1] for o in OBJECTIVES.values()}))
def test_doctests(module):
    assert doctest.testmod(importlib.import_module(f"prefjax.losses.{module}")).failed == 0


@every_case
def test_value_and_gradient_are_those_of_the_paper(name, K):
    """Under jit against float64 NumPy written from the paper; DRO-V's two steps are the joint gradient at tau = 1."""
    oracle = getattr(paper_formulas, name)
    fields = for_objective(name, make_fields(K, seed=1))
    moved = moved_fields(name)
    for options, (losses, gradient) in zip(variants(name), zoo.exact_outcomes(K)[name], strict=True):
        np.testing.assert_allclose(losses, oracle(fields, **options), rtol=1e-9, atol=1e-9, err_msg=str(options))
        if name == "dro" and options:
            continue
        if name in paper_formulas.DETACHED:
            fields["detached"] = paper_formulas.DETACHED[name](fields, **options)
        step = 1e-5
        for field, index in ((name, at) for name in moved for at in np.ndindex(fields[name].shape)):
            up, down = (fields | {field: fields[field].copy()} for _ in range(2))
            up[field][index] += step
            down[field][index] -= step
            difference = (oracle(up, **options) - oracle(down, **options)).sum() / (2 * step)
            np.testing.assert_allclose(
                gradient[field][index], difference, rtol=1e-5, atol=1e-6, err_msg=str((options, field, index))
            )
        fields.pop("detached", None)


@pytest.mark.slow
@every_case
def test_float32_jit_and_vmap_agree(name, K):
    """Compiled float32, and a vmap over batches, against compiled float64."""
    exact, exact_gradients = zoo.exact_outcomes(K)[name][0]
    losses, gradients = zoo.outcomes(K, make_fields(K, seed=1))[name]
    mapped = zoo.mapped_losses(K, seeds=(1, 2))[name]
    assert losses.shape == (B,) and losses.dtype == np.float32
    for got in (losses, mapped[0]):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)
    for field in SCORED:
        np.testing.assert_allclose(gradients[field], exact_gradients[field], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(mapped[1], zoo.outcomes(K, make_fields(K, seed=2))[name][0], rtol=1e-5, atol=1e-6)


@every_case
def test_start_value_is_the_loss_at_the_reference(name, K):
    valid, pairs = zoo.starts(K)
    if OBJECTIVES[name].start is None:
        assert "reference_logp" not in OBJECTIVES[name].requires.inputs
        return
    for options, (loss, start) in zip(variants(name), pairs[name], strict=True):
        assert start.shape == (B,)
        np.testing.assert_allclose(loss, start, rtol=1e-5, atol=1e-6, err_msg=str(options))
        assert (start[0] != 0 or name == "npo") and start[1] == 0  # npo reads nothing in a desirable response
        counts = OBJECTIVES[name].valid_prompts(Responses(logp=jnp.zeros((B, K)), valid=jnp.asarray(valid)))
        assert (start[~np.asarray(counts)] == 0).all()


@every_case
@pytest.mark.parametrize("gap", [-1e4, 0.0, 1e4])
def test_finite_at_extreme_log_probs(name, K, gap):
    """|h| = 1e4, and responses of 1e5 nats: 8k tokens of a model that is uniform over a 256k vocabulary."""
    fields = make_fields(K)
    for level in (-1.0, -1e5):
        extreme = fields | {"reference_logp": np.full((B, K), level), "logp": np.full((B, K), level)}
        extreme["logp"][:, 0] += gap
        extreme |= {f: np.full_like(fields[f], level / zoo.L) for f in ("token_logp", "token_reference_logp")}
        extreme["token_logp"][:, 0, 0] += gap
        extreme["baseline_logp"] = fields["baseline_logp"] + gap
        losses, gradients = zoo.outcomes(K, extreme)[name]
        assert np.isfinite(losses).all()
        assert all(np.isfinite(g).all() for g in gradients.values())
        assert all(np.isfinite(np.square(g).sum()) for g in gradients.values()), "no gradient norm in float32"


@every_case
@pytest.mark.parametrize("garbage", [np.nan, -np.inf])
def test_invalid_slots_contribute_exactly_nothing(name, K, garbage):
    """Whatever they hold: zero loss and gradient of their own, and the others as if they held something else."""
    objective, fields = OBJECTIVES[name], make_fields(K)
    valid = np.ones((B, K), bool)
    valid[2] = valid[4] = False
    valid[0, -1] = K == 1  # with K > 1 a prompt that keeps some of its slots; it counts unless the objective wants all
    counts = np.array(objective.valid_prompts(to_responses(fields, valid)))
    first = objective.requires.group_size is None and valid[0].sum() >= objective.requires.min_responses
    np.testing.assert_array_equal(counts, [first, True, False, True, False, True])

    def with_garbage(x, garbage):
        return np.where({1: valid.any(-1), 2: valid, 3: valid[..., None]}[x.ndim], x, garbage)

    losses, gradients = zoo.outcomes(K, {f: with_garbage(x, garbage) for f, x in fields.items()}, valid)[name]
    assert (losses[~counts] == 0).all()
    for field, gradient in gradients.items():
        live = valid & counts[:, None] if field in PER_RESPONSE + PER_TOKEN else counts
        assert (gradient[~live] == 0).all(), field
        assert np.isfinite(gradient).all(), field
    other_losses, others = zoo.outcomes(K, {f: with_garbage(x, 1.0) for f, x in fields.items()}, valid)[name]
    np.testing.assert_array_equal(losses, other_losses)
    for field, gradient in gradients.items():
        np.testing.assert_array_equal(gradient, others[field])


@pytest.mark.parametrize("name", [o.name for o in OBJECTIVES.values() if o.requires.inputs & set(PER_TOKEN)])
@pytest.mark.parametrize("garbage", [np.nan, -np.inf, 1.0])
def test_nothing_behind_the_end_of_a_response_is_read(name, garbage):
    fields = make_fields(2)
    there = np.arange(zoo.L) < fields["length"][..., None]
    losses, gradients = zoo.outcomes(
        2, {f: np.where(there, x, garbage) if f in PER_TOKEN else x for f, x in fields.items()}
    )[name]
    expected, their_gradients = zoo.outcomes(2, fields)[name]
    np.testing.assert_array_equal(losses, expected)
    for field in PER_TOKEN:
        assert (gradients[field][~there] == 0).all(), field
        np.testing.assert_array_equal(gradients[field][there], their_gradients[field][there])


@pytest.mark.parametrize(("name", "K"), [case for case in zoo.CASES if OBJECTIVES[case[0]].coupled])
def test_no_batch_statistic_sees_a_prompt_that_does_not_count(name, K):
    fields, valid = make_fields(K), np.ones((B, K), bool)
    # All margins above 0 and all of the reference's below: a masked 0 among them would shift every rank.
    fields["logp"][:, 0] += 100
    fields["reference_logp"][:, 0] -= 100
    valid[2] = valid[4] = False
    kept = valid.any(-1)
    losses = zoo.outcomes(K, fields, valid)[name][0]
    alone = OBJECTIVES[name].loss(to_responses({f: x[kept] for f, x in for_objective(name, fields).items()}, name=name))
    np.testing.assert_allclose(losses[kept], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", [o.name for o in OBJECTIVES.values() if o.requires.group_size is None and o.requires.min_responses < 3]
)
def test_a_dead_slot_equals_a_narrower_group(name):
    fields = make_fields(3)
    narrow = {f: x[:, [0, 2]] if f in PER_RESPONSE + PER_TOKEN else x for f, x in fields.items()}
    losses, _ = zoo.outcomes(3, fields, np.tile([True, False, True], (B, 1)))[name]
    np.testing.assert_allclose(losses, zoo.outcomes(2, narrow)[name][0], rtol=1e-5, atol=1e-6)


@every_case
def test_a_batch_without_a_valid_slot_is_exactly_zero(name, K):
    losses, gradients = zoo.outcomes(K, make_fields(K), np.zeros((B, K), bool))[name]
    assert (losses == 0).all() and all((g == 0).all() for g in gradients.values())


@every_case
def test_coupled_says_whether_prompts_influence_each_other(name, K):
    fields, other = make_fields(K), make_fields(K, seed=7)
    # Move the first prompt's policy up, so that a clamped batch statistic (KTO's z0) and the order of margins move too.
    other["baseline_logp"] = other["baseline_reference_logp"] + 500
    other["logp"][0, 0] += 500
    other["target"][0] = (
        2 if fields["target"][0].min() <= 1 else 0
    )  # a kind of response is gone, or comes (PMPO's means)
    changed = {f: np.concatenate([other[f][:1], x[1:]]) for f, x in fields.items()}
    same = zoo.outcomes(K, fields)[name][0][1:] == zoo.outcomes(K, changed)[name][0][1:]
    assert same.all() != OBJECTIVES[name].coupled


@every_case
def test_the_order_of_prompts_makes_no_difference(name, K):
    """With validity and coupling above: an objective does not see how prompts fall into rows or micro-batches."""
    fields, order = make_fields(K), np.random.default_rng(0).permutation(B)
    valid = np.arange(B)[:, None] + np.zeros((1, K)) != 2
    losses, gradients = zoo.outcomes(K, fields, valid)[name]
    permuted, their_gradients = zoo.outcomes(K, {f: x[order] for f, x in fields.items()}, valid[order])[name]
    np.testing.assert_allclose(permuted, losses[order], rtol=1e-5, atol=1e-6)
    for field in ("logp", "features"):
        np.testing.assert_allclose(their_gradients[field], gradients[field][order], rtol=1e-5, atol=1e-6)


@every_objective
def test_needs_is_exactly_what_the_loss_reads(name):
    objective = OBJECTIVES[name]
    fields = for_objective(name, make_fields(objective.requires.group_size or 3))
    read = {f: x for f, x in fields.items() if f in objective.requires.inputs or f == "logp"}
    complete = to_responses(read, name=name)
    objective.check_inputs(complete)
    jax.eval_shape(objective.loss, complete)
    for field in objective.requires.inputs:
        lacking = complete.replace(**{field: None})
        with pytest.raises(ValueError, match=f"^{name} needs {field}: {re.escape(PROVIDED_BY[field])}"):
            objective.check_inputs(lacking)
        with pytest.raises(ValueError, match=f"needs {field}: "):
            objective.loss(lacking)


@every_objective
def test_a_wrong_group_size_is_refused(name):
    objective = OBJECTIVES[name]
    size, least = objective.requires.group_size, objective.requires.min_responses
    refused = range(1, least) if size is None else (size - 1, size + 1)
    said = f"at least K = {least} " if size is None else f"exactly K = {size} "
    for K in refused:
        with pytest.raises(ValueError, match=f"^{name} compares {said}.*{K}\\)"):
            objective.check_inputs(to_responses(make_fields(K)))
        with pytest.raises(ValueError, match=said):
            objective.loss(to_responses(make_fields(K)))


@every_objective
def test_an_unknown_option_is_refused_by_name(name):
    objective = OBJECTIVES[name]
    assert objective.with_options(objective.options).options == objective.options == objective.with_options({}).options
    with pytest.raises(ValueError) as error:
        objective.with_options(dict(objective.options) | {"temperature": 1.0})
    assert f"{name} takes no option 'temperature'" in str(error.value)
    assert all(f"{option}={default!r}" in str(error.value) for option, default in objective.options.items())
    requires = objective.requires
    with pytest.raises(TypeError, match="temperature"):
        fields = make_fields(requires.group_size or requires.min_responses)
        objective.loss(to_responses(fields, name=name), temperature=1.0)


def test_an_objective_keeps_the_options_it_is_given():
    pair = Responses(logp=jnp.array([[-10.0, -12.0]]), reference_logp=jnp.array([[-11.0, -11.0]]))
    mine = prefjax.losses.objective("dpo", beta=2)
    np.testing.assert_allclose(mine.loss(pair), prefjax.losses.dpo(pair, beta=2.0))
    assert mine.options == {"beta": 2.0} and OBJECTIVES["dpo"].options == {"beta": 0.1}
    assert mine.loss(pair, beta=0.1) == OBJECTIVES["dpo"].loss(pair)
    assert prefjax.losses.objective(mine, beta=1.0).options == {"beta": 1.0}
    for wrong, message in (
        ("dpoo", "near it: dpo"),
        ("json:dumps", "no objective yet: put @for_pairs"),
        ("a:b", "a:b"),
    ):
        with pytest.raises(ValueError, match=message):
            prefjax.losses.objective(wrong)
    with pytest.raises(ValueError, match=r"dpo\(beta=...\): 'large' must be a number"):
        prefjax.losses.objective("dpo", beta="large")
