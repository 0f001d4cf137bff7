"""Training adapters: the frozen base is the reference, and every layout, mesh and split into micro-batches agrees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.models import init, lora
from prefjax.models.lora import LoraConfig
from prefjax.training.feed import to_devices
from prefjax.training.mesh import MeshConfig, make_mesh, parameter_shardings
from prefjax.training.metrics import Metrics
from prefjax.training.optimizers import OptimizerConfig, make_optimizer
from prefjax.training.step import init_params, init_state, loss_and_gradients, make_train_step
from tests.training.examples import MODEL, rows_for, setup_for, trees

LORA = LoraConfig(rank=3, alpha=6.0)
EXAMPLES = trees(16)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def outcome(setup, layout):
    """(gradients of the adapters, metrics)."""
    base = init(MODEL, jax.random.key(0))
    shake = lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype)
    params = jax.tree.map(shake, init_params(setup, base, seed=1))
    rows = rows_for(setup, layout, EXAMPLES)
    if setup.mesh is not None:
        place = lambda tree: jax.device_put(tree, parameter_shardings(setup.mesh, tree))
        params, base, rows = place(params), place(base), to_devices(setup.mesh, rows)
    gradients, metrics = jax.jit(lambda *args: loss_and_gradients(setup, *args))(params, base, rows)
    return gradients, dict(Metrics(metrics))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "kto", "dro"])
def test_layouts_meshes_and_micro_batches_agree(name):
    plain = setup_for(name, lora=LORA)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    expected = outcome(plain, "pairs")
    others = (
        outcome(dataclasses.replace(plain, mesh=mesh), "shared_packed"),
        outcome(dataclasses.replace(plain, accumulation=2), "shared_packed"),
    )
    for gradients, metrics in others:
        assert metrics["loss"] == pytest.approx(expected[1]["loss"], rel=1e-9)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected[0]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)
    assert "kernel" not in str(jax.tree.structure(expected[0]["policy"]))


@pytest.mark.slow
def test_gradients_are_those_through_merged_parameters():
    setup = setup_for("dpo", lora=LORA)
    gradients, _ = outcome(setup, "shared_packed")
    base = init(MODEL, jax.random.key(0))
    shake = lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype)
    adapters = jax.tree.map(shake, init_params(setup, base, seed=1))["policy"]
    rows = rows_for(setup, "shared_packed", EXAMPLES)
    full = dataclasses.replace(setup, lora=LoraConfig())
    merged, pull = jax.vjp(lambda a: lora.merge(LORA, base, a), adapters)
    whole, _ = jax.jit(lambda *args: loss_and_gradients(full, *args))({"policy": merged}, base, rows)
    (expected,) = pull(whole["policy"])
    for a, b in zip(jax.tree.leaves(gradients["policy"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.slow
def test_training_starts_at_the_reference_and_moves_adapters_only():
    with jax.enable_x64(False):
        model = dataclasses.replace(MODEL, dtype="float32", param_dtype="float32")
        mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
        setup = setup_for("dpo", model=model, lora=LORA, mesh=mesh)
        base = init(model, jax.random.key(0))
        base = jax.device_put(base, parameter_shardings(mesh, base))
        optimizer = make_optimizer(OptimizerConfig(learning_rate=5e-2), 10)
        state = init_state(setup, base, optimizer)
        size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
        assert size(state.params) < 0.6 * size(base), "the state holds more than adapters"
        step = make_train_step(setup)
        rows, losses = to_devices(mesh, rows_for(setup, "shared_packed", EXAMPLES)), []
        before = jax.tree.map(np.asarray, base)
        for _ in range(8):
            state, metrics = step(state, rows)
            losses.append(metrics["loss"])
    assert losses[0] == pytest.approx(np.mean([1 + 0.5 * (i % 3) for i in range(16)]) * np.log(2), rel=1e-5)
    assert losses[-1] < 0.95 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, base), before)
    assert float(jnp.abs(state.params["policy"]["layers"]["mlp"]["up"]["lora_b"]).max()) > 0
