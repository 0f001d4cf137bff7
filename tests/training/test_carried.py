"""What an objective carries in the train state: the same however rows are cut, proven with it, read where it must."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prefjax.training.checkpoint import Checkpointer, load_parts
from prefjax.training.feed import to_devices
from prefjax.training.mesh import MeshConfig, make_mesh
from prefjax.training.step import make_eval_step, make_train_step
from tests.training.examples import parameters, rows_for, setup_for, state_for, trees

STATEFUL = "0.5*bco(momentum=0.9, beta=0.2) + 0.3*kto(momentum=0.5) + 0.2*beta_dpo(momentum=0.75)"


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64(True):
        yield


def start(name, layout, *, mesh=None, **changes):
    """(setup, step, state, rows)."""
    setup = setup_for(name, mesh=mesh or make_mesh(MeshConfig(), jax.devices()[:1]), **changes)
    params, reference = parameters(setup)
    rows = to_devices(setup.mesh, rows_for(setup, layout, trees(8)))
    return setup, make_train_step(setup), state_for(setup, params, optax.sgd(0.1), reference), rows


def two_steps(step, state, rows):
    """[(state, metrics)] after each; what is donated is copied."""
    taken = []
    for _ in range(2):
        state, metrics = step(jax.tree.map(jnp.copy, state), rows)
        taken.append((state, dict(metrics)))
    return taken


@pytest.fixture(scope="module")
def plain(float64):
    """Every response in its own row, one device, no accumulation."""
    setup, step, state, rows = start(STATEFUL, "pairs")
    return setup, step, state, rows, two_steps(step, state, rows)


def test_the_numbers_are_those_of_the_global_batch(plain):
    (first, metrics), (second, later) = plain[-1]
    carried = jax.device_get(first.carried)
    assert carried["beta_dpo"]["margin"] == pytest.approx(0.25 * metrics["margin"], rel=1e-6)
    z0 = carried["kto"]["mismatched_log_ratio"]
    assert z0 == pytest.approx(0.5 * metrics["mismatched_log_ratio"], rel=1e-6) and z0 > 0.5
    best = 0.1 * 0.2 * metrics["chosen_logp_change"]
    assert carried["bco"]["desirable"] == pytest.approx(best, rel=1e-6) != 0
    assert later["carried_bco_desirable"] == second.carried["bco"]["desirable"] != carried["bco"]["desirable"]
    margin = 0.75 * carried["beta_dpo"]["margin"] + 0.25 * later["margin"]
    assert second.carried["beta_dpo"]["margin"] == pytest.approx(margin, rel=1e-6)


@pytest.mark.parametrize("layout,accumulation,sizes", [("shared", 2, (2, 2, 2)), ("shared_packed", 4, (1, 1, 1))])
def test_layouts_accumulation_and_meshes_carry_the_same(plain, layout, accumulation, sizes):
    """And what the second step makes of it: the state that it read is in its parameters."""
    devices = jax.devices()[: np.prod(sizes)]
    mesh = make_mesh(MeshConfig(*sizes), devices)
    _, step, state, rows = start(STATEFUL, layout, mesh=mesh, accumulation=accumulation, head_chunk=48)
    for (got, metrics), (expected, values) in zip(two_steps(step, state, rows), plain[-1], strict=True):
        assert metrics["loss"] == pytest.approx(values["loss"], rel=1e-7)
        got, expected = (jax.device_get({"carried": s.carried, "params": s.params}) for s in (got, expected))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8 * np.abs(b).max())


def test_stopped_and_resumed_is_bit_for_bit_the_same(plain, tmp_path):
    setup, step, state, rows, ((first, _), (second, _)) = plain
    options = dict(identity={}, facts={"steps": 2})
    with Checkpointer(tmp_path / "checkpoints", **options) as checkpointer:
        checkpointer.save(1, first.saved(), {})
    with Checkpointer(tmp_path / "checkpoints", **options) as checkpointer:
        restored = checkpointer.restore(state.saved())
    assert {name for name in restored.proof.arrays if name.startswith("carried")} == {
        *("carried/bco/desirable", "carried/bco/undesirable", "carried/kto/mismatched_log_ratio"),
        "carried/beta_dpo/margin",
    }
    resumed, _ = step(state.replace(**restored.state), rows)
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    read = load_parts(tmp_path, {"carried": first.carried})["carried"]
    assert jax.device_get(read) == jax.device_get(first.carried)


def test_evaluation_reads_it_and_leaves_it(plain):
    """The loss of the second step, before its update."""
    setup, _, _, rows, ((first, _), (_, later)) = plain
    evaluate = make_eval_step(setup)
    values = evaluate(first.params, first.frozen, rows, first.carried)
    assert values["loss"] == pytest.approx(later["loss"], rel=1e-12)
    assert not any(name.startswith("carried") for name in values)
    with pytest.raises(ValueError, match="a term of|needs carried"):
        evaluate(first.params, first.frozen, rows)


def test_a_stateless_objective_never_sees_it():
    setup, _, state, _ = start("0.5*bco + kto", "pairs")
    assert state.carried is None and "carried" not in state.saved()
    skipping = dataclasses.replace(setup, skip_non_finite=True)
    assert len(jax.tree.leaves(state_for(skipping, *parameters(setup)[:1], optax.sgd(0.1)).changing())) == len(
        jax.tree.leaves((state.step, state.skipped, state.params, state.opt_state))
    )
