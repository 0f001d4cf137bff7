"""What must hold of every entry of the zoo. A newly registered objective is tested here without a line of its own."""

import dataclasses
import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prefjax
from prefjax.losses import OBJECTIVES, Responses
from prefjax.losses.types import PROVIDED_BY

PER_RESPONSE = ("logp", "reference_logp", "length", "target")
PER_PROMPT = ("value", "baseline_logp", "baseline_reference_logp", "auxiliary_logp")
B = 6

every_objective = pytest.mark.parametrize("name", OBJECTIVES)
every_case = pytest.mark.parametrize(
    ("name", "K"),
    [(o.name, K) for o in OBJECTIVES.values() for K in ((1, 3) if o.group_size is None else (o.group_size,))],
)


def make_fields(K, seed=0, B=B, scale=30.0):
    """All floating-point fields of a plausible batch, as float64 NumPy arrays."""
    rng = np.random.default_rng(seed)
    fields = {name: -rng.uniform(1, scale, (B, K)) for name in ("logp", "reference_logp")}
    fields |= {name: -rng.uniform(1, scale, B) for name in ("baseline_logp", "baseline_reference_logp")}
    fields["auxiliary_logp"] = -rng.uniform(1, scale, B)
    fields["length"] = rng.integers(1, 9, (B, K)).astype(float)
    fields["target"] = (np.arange(K) + np.arange(B)[:, None]) % 2 * 1.0
    fields["value"] = rng.normal(size=B)
    return fields


def to_responses(fields, valid=None, dtype=jnp.float32):
    arrays = {name: jnp.asarray(x, dtype) for name, x in fields.items()}
    return Responses(**arrays, valid=None if valid is None else jnp.asarray(valid))


def total_and_gradients(objective, responses):
    """Per-prompt losses and the gradient of their sum with respect to every floating-point field."""
    fields = {f.name: getattr(responses, f.name) for f in dataclasses.fields(responses) if f.name != "valid"}

    def total(fields):
        losses = objective.loss(responses.replace(**fields))
        return losses.sum(), losses

    (_, losses), gradients = jax.value_and_grad(total, has_aux=True)(fields)
    return losses, gradients


def at_reference(fields):
    return fields | {"logp": fields["reference_logp"], "baseline_logp": fields["baseline_reference_logp"]}


def test_zoo_is_complete_and_reachable_by_name():
    assert set(OBJECTIVES) >= set("dpo cdpo rdpo ipo slic rso_hinge kto dro dro_p sft".split())
    for name, objective in OBJECTIVES.items():
        assert objective.name == name
        assert getattr(prefjax.losses, name) is objective.loss
        assert name in prefjax.losses.__all__
    pair = Responses(logp=jnp.array([[-10.0, -12.0]]), reference_logp=jnp.array([[-11.0, -11.0]]))
    np.testing.assert_allclose(prefjax.losses.dpo(pair, beta=0.1), np.log1p(np.exp(-0.2)), rtol=1e-6)


def test_every_optional_field_says_what_provides_it():
    assert set(PROVIDED_BY) == {f.name for f in dataclasses.fields(Responses)} - {"logp", "valid"}
    assert set(PROVIDED_BY) | {"logp"} == set(PER_RESPONSE) | set(PER_PROMPT)


@pytest.mark.parametrize("module", ["types", "pairwise", "unpaired", "supervised", "registry"])
def test_doctests(module):
    assert doctest.testmod(importlib.import_module(f"prefjax.losses.{module}")).failed == 0


@every_case
def test_jit_and_vmap_agree_with_the_eager_loss(name, K):
    objective = OBJECTIVES[name]
    batches = [make_fields(K, seed) for seed in range(3)]
    eager = [objective.loss(to_responses(fields)) for fields in batches]
    assert all(losses.shape == (B,) and losses.dtype == jnp.float32 for losses in eager)
    np.testing.assert_allclose(jax.jit(objective.loss)(to_responses(batches[0])), eager[0], rtol=1e-5, atol=1e-6)
    stacked = {field: jnp.asarray(np.stack([b[field] for b in batches]), jnp.float32) for field in batches[0]}
    mapped = jax.jit(jax.vmap(lambda fields: objective.loss(Responses(**fields))))(stacked)
    np.testing.assert_allclose(mapped, np.stack(eager), rtol=1e-5, atol=1e-6)


@every_case
def test_gradient_is_the_float64_finite_difference(name, K):
    """Under jit, with default options (where DRO-V's two steps are the gradient of the joint loss: tau = 1)."""
    fields = make_fields(K, seed=1)
    with jax.enable_x64(True):
        loss = jax.jit(lambda logp: OBJECTIVES[name].loss(to_responses(fields | {"logp": logp}, dtype=float)).sum())
        gradient = jax.jit(jax.grad(loss))(jnp.asarray(fields["logp"]))
        step = 1e-4
        for index in np.ndindex(B, K):
            up, down = fields["logp"].copy(), fields["logp"].copy()
            up[index] += step
            down[index] -= step
            difference = (loss(up) - loss(down)) / (2 * step)
            np.testing.assert_allclose(gradient[index], difference, rtol=1e-5, atol=1e-7)
    in_float32 = total_and_gradients(OBJECTIVES[name], to_responses(fields))[1]["logp"]
    np.testing.assert_allclose(in_float32, gradient, rtol=2e-4, atol=1e-5)


@every_case
def test_start_value_is_the_loss_at_the_reference(name, K):
    objective = OBJECTIVES[name]
    if objective.at_init is None:
        assert "reference_logp" not in objective.needs
        return
    valid = np.random.default_rng(2).random((B, K)) < 0.7
    valid[0], valid[1] = True, False
    halved = {option: default / 2 for option, default in objective.options.items() if isinstance(default, float)}
    for options in ({}, halved):
        responses = to_responses(at_reference(make_fields(K)), valid)
        start = objective.at_init(responses, **options)
        assert start.shape == (B,)
        np.testing.assert_allclose(objective.loss(responses, **options), start, rtol=1e-5, atol=1e-6)
        assert start[0] != 0 and start[1] == 0
        np.testing.assert_allclose(jax.jit(lambda r, o=options: objective.at_init(r, **o))(responses), start, rtol=1e-6)


@every_case
@pytest.mark.parametrize("gap", [-1e4, 0.0, 1e4])
def test_finite_at_extreme_log_probs(name, K, gap):
    """|h| = 1e4, and responses of 1e5 nats: 8k tokens of a model that is uniform over a 256k vocabulary."""
    fields = make_fields(K)
    for level in (-1.0, -1e5):
        extreme = fields | {"reference_logp": np.full((B, K), level), "logp": np.full((B, K), level)}
        extreme["logp"][:, 0] += gap
        extreme["baseline_logp"] = fields["baseline_logp"] + gap
        losses, gradients = total_and_gradients(OBJECTIVES[name], to_responses(extreme))
        assert np.isfinite(losses).all()
        assert all(np.isfinite(g).all() for g in gradients.values())


@every_case
@pytest.mark.parametrize("garbage", [np.nan, -np.inf])
def test_invalid_slots_contribute_exactly_nothing(name, K, garbage):
    """Whatever they hold: zero loss and gradient of their own, and the others as if they had never been there."""
    objective, fields = OBJECTIVES[name], make_fields(K)
    valid = np.ones((B, K), bool)
    valid[2] = valid[4] = False
    valid[0, -1] = K == 1  # with K > 1 a prompt that keeps some of its slots; it counts unless the objective wants all
    counts = np.array(objective.valid_prompts(to_responses(fields, valid)))
    np.testing.assert_array_equal(counts, [objective.group_size is None or K == 1, True, False, True, False, True])

    dirty = {f: np.where(valid if f in PER_RESPONSE else valid.any(-1), x, garbage) for f, x in fields.items()}
    losses, gradients = total_and_gradients(objective, to_responses(dirty, valid))
    assert (np.array(losses)[~counts] == 0).all()
    for field, gradient in gradients.items():
        live = valid & counts[:, None] if field in PER_RESPONSE else counts
        assert (np.array(gradient)[~live] == 0).all(), field
        assert np.isfinite(gradient).all(), field

    # The same batch without the prompts that do not count, and without the dead slot where the others allow it.
    kept_losses, kept = total_and_gradients(
        objective, to_responses({f: x[counts] for f, x in fields.items()}, valid[counts])
    )
    np.testing.assert_allclose(np.array(losses)[counts], kept_losses, rtol=1e-6)
    for field, gradient in gradients.items():
        np.testing.assert_allclose(np.array(gradient)[counts], kept[field], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [o.name for o in OBJECTIVES.values() if o.group_size is None])
def test_a_dead_slot_equals_a_narrower_group(name):
    fields = make_fields(K=3)
    valid = np.tile([True, False, True], (B, 1))
    narrow = {f: x[:, [0, 2]] if f in PER_RESPONSE else x for f, x in fields.items()}
    losses, gradients = total_and_gradients(OBJECTIVES[name], to_responses(fields, valid))
    narrow_losses, narrow_gradients = total_and_gradients(OBJECTIVES[name], to_responses(narrow))
    np.testing.assert_allclose(losses, narrow_losses, rtol=1e-6)
    np.testing.assert_allclose(gradients["logp"][:, jnp.array([0, 2])], narrow_gradients["logp"], rtol=1e-6)


@every_case
def test_a_batch_without_a_valid_slot_is_exactly_zero(name, K):
    losses, gradients = total_and_gradients(
        OBJECTIVES[name], to_responses(make_fields(K), valid=np.zeros((B, K), bool))
    )
    assert (losses == 0).all() and all((g == 0).all() for g in gradients.values())


@every_case
def test_coupled_says_whether_prompts_influence_each_other(name, K):
    fields, other = make_fields(K), make_fields(K, seed=7)
    # Move the first prompt's policy up, so that a clamped batch statistic (KTO's z0) moves too.
    other["baseline_logp"] = other["baseline_reference_logp"] + 500
    changed = {f: np.concatenate([other[f][:1], x[1:]]) for f, x in fields.items()}
    loss = OBJECTIVES[name].loss
    same = np.array(loss(to_responses(fields))[1:] == loss(to_responses(changed))[1:])
    assert not same.any() if OBJECTIVES[name].coupled else same.all()


@every_case
def test_needs_is_exactly_what_the_loss_reads(name, K):
    objective, fields = OBJECTIVES[name], make_fields(K)
    needed = {f: x for f, x in fields.items() if f in objective.needs or f == "logp"}
    complete = to_responses(needed)
    objective.check_inputs(complete)
    assert np.isfinite(objective.loss(complete)).all()
    for field in objective.needs:
        lacking = complete.replace(**{field: None})
        with pytest.raises(ValueError, match=f"^{name} needs {field}: .*{PROVIDED_BY[field].split()[0]}"):
            objective.check_inputs(lacking)
        with pytest.raises(ValueError, match=f"needs {field}: "):
            objective.loss(lacking)
        with pytest.raises(ValueError, match=f"needs {field}: "):
            jax.eval_shape(objective.loss, lacking)


@pytest.mark.parametrize("name", [o.name for o in OBJECTIVES.values() if o.group_size is not None])
def test_a_wrong_group_size_is_refused(name):
    objective = OBJECTIVES[name]
    for K in (objective.group_size - 1, objective.group_size + 1):
        with pytest.raises(ValueError, match=f"^{name} compares exactly K = {objective.group_size} .*{K}\\)"):
            objective.check_inputs(to_responses(make_fields(K)))
        with pytest.raises(ValueError, match=f"exactly K = {objective.group_size} "):
            objective.loss(to_responses(make_fields(K)))


@every_objective
def test_an_unknown_option_is_refused_by_name(name):
    objective = OBJECTIVES[name]
    assert objective.options, "every objective of the zoo has at least one option today"
    objective.check_options(objective.options)
    objective.check_options({})
    with pytest.raises(ValueError) as error:
        objective.check_options(dict(objective.options) | {"temperature": 1.0})
    assert f"{name} takes no option 'temperature'" in str(error.value)
    assert all(f"{option}={default!r}" in str(error.value) for option, default in objective.options.items())
    with pytest.raises(TypeError, match="temperature"):
        objective.loss(to_responses(make_fields(objective.group_size or 1)), temperature=1.0)


@every_objective
def test_docstring_gives_the_formula_and_where_it_comes_from(name):
    docstring = OBJECTIVES[name].loss.__doc__
    assert "nats" in docstring or "nats" in importlib.import_module(OBJECTIVES[name].loss.__module__).__doc__
    assert "arXiv" in docstring or name in ("cdpo", "sft")  # a note outside arXiv; maximum likelihood
