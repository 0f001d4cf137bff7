"""A reference that follows the policy (TR-DPO): when, how far, what the loss then reads, and exact resume."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prefjax.data.config import DataConfig
from prefjax.data.world_records import WorldOptions
from prefjax.models import init
from prefjax.models.lora import LoraConfig
from prefjax.policies.evaluate import evaluate_stage
from prefjax.training.config import ReferenceConfig
from prefjax.training.feed import to_devices
from prefjax.training.loop import LoopConfig
from prefjax.training.mesh import MeshConfig, make_mesh
from prefjax.training.stage import run_stage
from prefjax.training.step import init_state, make_train_step
from tests.training.examples import MODEL, rows_for, setup_for, trees
from tests.training.test_run import DPO, final_state, lines

pytestmark = pytest.mark.slow

FLOAT32 = dataclasses.replace(MODEL, dtype="float32", param_dtype="float32")


def steps(name, count, *, every, rate, **changes):
    """[(loss, policy, reference)] after each of some steps on one batch."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    setup = setup_for(name, model=FLOAT32, mesh=mesh, update_every=every, update_rate=rate, **changes)
    optimizer, policy = optax.sgd(0.3), init(setup.model, jax.random.key(0))
    state, step = init_state(setup, policy, optimizer), make_train_step(setup)
    # The step must read the reference that moves, not the one it started from.
    state = state.replace(frozen=jax.tree.map(jnp.zeros_like, state.frozen))
    rows = to_devices(mesh, rows_for(setup, "shared_packed", trees(20)))
    taken = [(math.nan, *jax.tree.map(np.asarray, (state.params["policy"], state.reference)))]
    for _ in range(count):
        state, metrics = step(state, rows)
        taken.append((metrics["loss"], *jax.tree.map(np.asarray, (state.params["policy"], state.reference))))
    return taken


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-8), a, b)


def test_a_soft_update_every_second_step():
    taken = steps("dpo", 4, every=2, rate=0.25)
    mixed = lambda new, old: jax.tree.map(lambda x, y: 0.25 * x + 0.75 * y, new, old)
    assert_equal(taken[1][2], taken[0][2])
    assert_equal(taken[2][2], mixed(taken[2][1], taken[0][2]))
    assert_equal(taken[3][2], taken[2][2])
    assert_equal(taken[4][2], mixed(taken[4][1], taken[2][2]))
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), taken[4][2], taken[0][2])
    assert min(jax.tree.leaves(moved)) > 0, "a parameter that never moves proves nothing"


def test_a_hard_update_makes_the_loss_start_anew():
    """After every copy policy == reference, whatever reference was given to the step: DPO's loss is log 2 again."""
    losses = [loss for loss, _, _ in steps("dpo", 4, every=2, rate=1.0)[1:]]
    start = losses[0]
    assert losses[2] == pytest.approx(start, rel=1e-6)
    assert losses[1] < start - 1e-3 and losses[3] < start - 1e-3


def test_a_value_head_on_the_trunk_is_not_the_references():
    taken = steps("dro", 1, every=1, rate=1.0, value_network="trunk")
    policy, reference = taken[1][1:]
    assert policy.keys() - reference.keys() == {"value_head", "value_bias"}
    assert_equal({name: policy[name] for name in reference}, reference)


def test_stopped_and_resumed_is_bit_for_bit_the_same(tmp_path):
    """With numbers that the objective carries, and units of merged rows of which three are held back for step 4."""
    config = dataclasses.replace(
        DPO,
        objective="beta_dpo",
        data=DataConfig(world=WorldOptions(train_examples=32, eval_examples=6, trees="dialogues")),
        rows=dataclasses.replace(DPO.rows, layout="merged"),
        train=LoopConfig(steps=8, log_every=1),
        reference=ReferenceConfig(update_every=3, update_rate=0.5),
    )
    run_stage(config, tmp_path / "whole", tmp_path / "data")
    run_stage(config, tmp_path / "parts", tmp_path / "data", should_stop=lambda step: step == 4)
    result = run_stage(config, tmp_path / "parts", tmp_path / "data")
    whole, parts = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    for metric in ("loss", "carried_margin"):
        assert [line[metric] for line in lines(tmp_path / "parts")] == [
            line[metric] for line in lines(tmp_path / "whole")
        ]
    margins = [line["margin"] for line in lines(tmp_path / "whole")]
    mean = functools.reduce(lambda usual, margin: 0.9 * usual + 0.1 * margin, margins, 0.0)
    assert whole["carried"]["margin"] == pytest.approx(mean, rel=1e-5) and mean > 0
    # An evaluation later reads what was carried, as those of training do.
    assert evaluate_stage(config, tmp_path / "parts", "")["loss"] == pytest.approx(
        result.eval_metrics["loss"], rel=1e-5
    )
    # Held-out metrics compare with the reference of the start, which has not moved.
    gap = lambda a, b: max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))
    start = jax.tree.map(np.asarray, result.reference)
    assert gap(start, jax.tree.map(np.asarray, whole["reference"])) > 1e-3
    with pytest.raises(ValueError, match="reference.update_every: 3 there, 0 now"):
        run_stage(dataclasses.replace(config, reference=ReferenceConfig()), tmp_path / "parts", tmp_path / "data")


@pytest.mark.parametrize(
    "reference,lora,message",
    [
        (dict(update_every=3), 0, "set both"),
        (dict(update_rate=0.5), 0, "set both"),
        (dict(update_every=3, update_rate=1.5), 0, "update_rate=1.5: set it to at least 0 and at most 1"),
        (dict(update_every=-1, update_rate=0.5), 0, "update_every=-1: set it to at least 0"),
        (dict(update_every=3, update_rate=1.0, kind="precomputed"), 0, "only a live reference can follow"),
        (dict(update_every=3, update_rate=1.0, kind="none"), 0, "only a live reference can follow"),
        (dict(update_every=3, update_rate=1.0), 4, "lora.rank above 0: the reference is the adapters' base"),
    ],
)
def test_updates_that_cannot_be_are_refused(reference, lora, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DPO, reference=ReferenceConfig(**reference), lora=LoraConfig(rank=lora))
