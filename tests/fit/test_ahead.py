"""The step compiled ahead of time: fed what training feeds it, and compiled for chips that are not here."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

from prefjax.fit import ahead
from prefjax.fit.ahead import (
    COMPILERS,
    CompilerMissing,
    DoesNotFit,
    absent_devices,
    abstract_frozen,
    abstract_rows,
    abstract_state,
    compile_train_step,
    device_bytes,
)
from prefjax.fit.chips import CHIPS, find_slice
from prefjax.losses import OBJECTIVES
from prefjax.models import ModelConfig, decoder
from prefjax.models.lora import LoraConfig
from prefjax.rows.arrays import LAYOUTS, Branches, RowShape
from prefjax.rows.layout import attach_reference
from prefjax.training.feed import to_devices
from prefjax.training.mesh import MeshConfig, make_mesh
from prefjax.training.optimizers import OptimizerConfig, make_optimizer
from prefjax.training.scoring import Setup
from prefjax.training.step import make_train_step
from tests.training.examples import (
    GROUPS,
    MODEL,
    ROWS,
    branches_for,
    parameters,
    rows_for,
    setup_for,
    shape_for,
    state_for,
    trees,
)

SINGLE = dataclasses.replace(MODEL, dtype="float32", param_dtype="float32")


def meshed(name, **changes):
    return setup_for(name, model=SINGLE, mesh=make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), **changes)


def facts(tree):
    """Shape, dtype and sharding of every leaf, and the structure."""
    leaves, structure = jax.tree.flatten(tree)
    described = [(x.shape, x.dtype, x.sharding.shard_shape(x.shape), x.sharding.spec) for x in leaves]
    return described, structure


@pytest.mark.parametrize("name", ["dpo", "kto", "dro"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_abstract_rows_are_the_rows_that_training_feeds(name, layout):
    setup = meshed(name)
    examples = trees(ROWS * (GROUPS if "packed" in layout else 1))
    rows = to_devices(setup.mesh, rows_for(setup, layout, examples))
    assert facts(abstract_rows(setup, shape_for(setup, layout, rows=len(rows.valid)))) == facts(rows)


def test_a_precomputed_reference_travels_with_the_rows():
    live = meshed("dpo")
    setup = Setup(live.model, live.objective, reference="precomputed", mesh=live.mesh)
    examples = trees(ROWS * GROUPS)
    table = np.zeros((len(examples), branches_for("dpo").count), np.float32)
    rows = to_devices(setup.mesh, attach_reference(rows_for(setup, "shared_packed", examples), table))
    assert facts(abstract_rows(setup, shape_for(setup, "shared_packed"))) == facts(rows)


@pytest.mark.parametrize("name,optimizer", [("dpo", "adamw"), ("dpo", "adafactor"), ("dro", "sgd")])
def test_the_abstract_state_is_the_state_that_training_starts_with(name, optimizer):
    setup, config = meshed(name), OptimizerConfig(name=optimizer, warmup_steps=3)
    state = state_for(setup, parameters(setup)[0], make_optimizer(config, 10))
    assert facts(abstract_state(setup, config).replace(tx=None)) == facts(state.replace(tx=None))


@pytest.mark.slow
def test_the_step_compiled_ahead_of_time_is_the_step_that_trains():
    """It takes real arrays, agrees with the jitted step, and its arguments are as large as was said."""
    setup, config = meshed("dpo"), OptimizerConfig(learning_rate=1e-2)
    compiled, memory = compile_train_step(setup, config, shape_for(setup, "shared_packed"))
    params, reference = parameters(setup)
    rows = to_devices(setup.mesh, rows_for(setup, "shared_packed", trees(ROWS * GROUPS)))
    reference = jax.device_put(reference, abstract_sharding(abstract_state(setup, config).params["policy"]))
    optimizer = make_optimizer(config, 1)

    def start():
        return state_for(setup, params, optimizer, reference)

    state = start()
    assert memory.parameters == device_bytes(state.params)
    assert memory.optimizer == device_bytes(state.opt_state)
    assert memory.reference == device_bytes(reference) > 0
    assert memory.batch == device_bytes(rows)
    step_counter = 4
    unused = device_bytes(rows.segment_ids) + device_bytes(rows.example_id)  # the step reads neither
    held = memory.parameters + memory.optimizer + memory.reference + memory.batch + step_counter
    assert held - unused <= memory.arguments <= held
    assert memory.peak >= memory.arguments

    got, metrics = compiled(state.changing(), reference, rows)
    expected, wanted = make_train_step(setup)(start(), rows)
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(got.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.slow
def test_a_plan_of_adapters_counts_the_frozen_base_in_its_own_bits():
    model = dataclasses.replace(SINGLE, width=64, mlp_width=128)
    shapes = jax.tree.leaves(decoder.shapes(model))
    kernels = sum(x.size for x in shapes if x.ndim == 3)
    others = 4 * (sum(x.size for x in shapes) - kernels)
    scales = {"none": 0, "int8": 4 * kernels / 64, "nf4": 4 * kernels / 64}
    held = {}
    for quantize, size in (("none", 4), ("int8", 1), ("nf4", 0.5)):
        adapters = LoraConfig(rank=2, quantize=quantize)
        setup = setup_for("dpo", model=model, lora=adapters, mesh=make_mesh(MeshConfig(data=8)))
        _, memory = compile_train_step(setup, OptimizerConfig(), shape_for(setup, "shared_packed"))
        # Attention's output has 32 inputs, so its scales are twice as many.
        assert memory.reference == pytest.approx(others + kernels * size + scales[quantize], rel=0.02)
        assert memory.reference == device_bytes(abstract_frozen(setup))
        held[quantize] = memory.arguments
    assert held["nf4"] <= held["int8"] < 0.7 * held["none"]


def abstract_sharding(tree):
    return jax.tree.map(lambda x: x.sharding, tree)


def test_a_missing_compiler_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(ahead.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CompilerMissing, match="libtpu.*requirements-aot.txt"):
        absent_devices("tpu", "2x2", chip="v5e")


def absent_setup(name, *, chip, **axes):
    """A tiny DPO setup on chips that are not here; skips without their compiler."""
    where = find_slice(chip)
    package = COMPILERS[where.chip.platform]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} compiles for {chip} and is not installed: pip install -r requirements-aot.txt")
    kind = where.chip
    devices = absent_devices(kind.platform, where.shape, chip=kind.name, megacore=kind.megacore, target=kind.target)
    assert len(devices) == where.devices
    model = ModelConfig(
        vocab_size=512,
        num_layers=2,
        width=256,
        num_heads=4,
        num_kv_heads=2,
        head_width=64,
        mlp_width=512,
        tie_embeddings=False,
        dtype="bfloat16",
        remat="full",
    )
    return Setup(model, OBJECTIVES[name], reference="precomputed", mesh=make_mesh(MeshConfig(**axes), list(devices)))


@pytest.mark.parametrize("chip,axes", [("v5e-4", dict(data=1, fsdp=2, tensor=2)), ("h100", dict(data=1))], ids=str)
def test_the_step_compiles_for_chips_that_are_not_here(chip, axes):
    setup = absent_setup("dpo", chip=chip, **axes)
    shape = RowShape("shared_packed", 4, 1024, 512, 4, Branches(2))
    compiled, memory = compile_train_step(setup, OptimizerConfig(), shape)
    assert "prefix_attention" in compiled.as_text(), "the attention kernels of the platform"
    assert memory.optimizer > 1.9 * memory.parameters, "two moments"
    assert memory.arguments <= memory.peak < 1e9


def test_a_step_that_is_too_large_is_refused_with_the_compilers_words():
    setup = absent_setup("dpo", chip="v5e-4", fsdp=4)
    wide = ModelConfig(
        vocab_size=2**17,
        num_layers=8,
        width=8192,
        num_heads=64,
        num_kv_heads=8,
        head_width=128,
        mlp_width=2**15,
        dtype="bfloat16",
        remat="full",
    )
    setup = Setup(wide, setup.objective, reference="precomputed", mesh=setup.mesh)
    with pytest.raises(DoesNotFit, match="[Rr]an out of memory"):
        compile_train_step(setup, OptimizerConfig(), RowShape("shared_packed", 4, 1024, 512, 4, Branches(2)))


def test_every_chip_has_a_compiler():
    assert {chip.platform for chip in CHIPS.values()} == set(COMPILERS)
