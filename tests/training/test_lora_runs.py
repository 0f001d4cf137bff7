"""Stages that train adapters: their checkpoints, what loads them, and stages on top of one another."""

import dataclasses

import jax
import numpy as np
import pytest

from prefjax.models import lora
from prefjax.models.lora import LoraConfig
from prefjax.policies.evaluate import evaluate_stage
from prefjax.training.checkpoint import load_proof
from prefjax.training.config import ReferenceConfig, StageConfig
from prefjax.training.loop import LoopConfig
from prefjax.training.optimizers import OptimizerConfig
from prefjax.training.parameters import read_policy
from prefjax.training.stage import run_stage
from tests.training.examples import setup_for
from tests.training.test_run import DPO, final_state, lines

pytestmark = pytest.mark.slow

ADAPTED = dataclasses.replace(
    DPO,
    lora=LoraConfig(rank=4, alpha=8.0),
    optimizer=OptimizerConfig(learning_rate=2e-2),
    train=LoopConfig(steps=12, log_every=4),
    seed=3,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lora")
    return workdir, run_stage(ADAPTED, workdir, workdir / "data")


def equal(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_adapters_learn_and_only_they_are_saved(whole):
    workdir, result = whole
    losses = [line["loss"] for line in lines(workdir)]
    assert losses[0] < 0.72 and losses[-1] < losses[0] - 0.01
    saved = jax.tree_util.tree_leaves_with_path(final_state(workdir))
    names = {jax.tree_util.keystr(path).rsplit("'", 2)[-2] for path, leaf in saved if leaf.ndim > 1}
    assert names == {"lora_a", "lora_b"}
    assert jax.tree.structure(result.policy) == jax.tree.structure(result.reference)
    assert load_proof(workdir).facts["init_from"] == ""


def test_stopping_and_resuming_is_exact(whole, tmp_path):
    workdir, _ = whole
    assert not run_stage(ADAPTED, tmp_path, workdir / "data", should_stop=lambda step: step == 5).finished
    run_stage(ADAPTED, tmp_path, workdir / "data")
    jax.tree.map(np.testing.assert_array_equal, final_state(workdir), final_state(tmp_path))


def test_a_run_loads_as_the_merged_policy_from_anywhere(whole):
    """Also under a config with another seed: the base is the run's own."""
    workdir, result = whole
    other = dataclasses.replace(ADAPTED, seed=99)
    loaded = read_policy(str(workdir), result.setup.model, result.setup.mesh, seed=other.seed)
    equal(loaded, result.policy, rtol=1e-6, atol=1e-7)
    base = read_policy("", result.setup.model, result.setup.mesh, seed=ADAPTED.seed)
    expected = lora.merge(ADAPTED.lora, base, final_state(workdir)["params"]["policy"])
    equal(loaded, expected, rtol=1e-5, atol=1e-6)


def test_evaluation_is_that_of_the_run(whole):
    workdir, result = whole
    values = evaluate_stage(ADAPTED, workdir, "")
    assert values["loss"] == pytest.approx(result.eval_metrics["loss"], rel=1e-5)


def test_adapters_go_on_top_of_a_finished_run_and_a_precomputed_reference_is_the_live_one(whole, tmp_path):
    workdir, result = whole
    stage = dataclasses.replace(ADAPTED, init_from=str(workdir), train=LoopConfig(steps=3, log_every=1))
    live = run_stage(stage, tmp_path / "live", workdir / "data")
    equal(live.reference, result.policy, rtol=1e-6, atol=1e-7)
    cached = dataclasses.replace(stage, reference=ReferenceConfig(kind="precomputed"))
    run_stage(cached, tmp_path / "cached", workdir / "data")
    for a, b in zip(lines(tmp_path / "live"), lines(tmp_path / "cached"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    again = read_policy(str(tmp_path / "live"), live.setup.model, live.setup.mesh, seed=stage.seed)
    equal(again, live.policy, rtol=1e-5, atol=1e-6)


def test_a_quantised_base_is_the_reference_and_what_loads_is_what_was_trained(tmp_path):
    coded = dataclasses.replace(ADAPTED, lora=dataclasses.replace(ADAPTED.lora, quantize="nf4"))
    stopped = dict(should_stop=lambda step: step == 5)
    assert not run_stage(coded, tmp_path, tmp_path / "data", **stopped).finished
    result = run_stage(coded, tmp_path, tmp_path / "data")
    losses = [line["loss"] for line in lines(tmp_path)]
    assert losses[0] < 0.72 and losses[-1] < losses[0] - 0.01
    assert evaluate_stage(coded, tmp_path, "")["loss"] == pytest.approx(result.eval_metrics["loss"], rel=1e-5)
    loaded = read_policy(str(tmp_path), result.setup.model, result.setup.mesh, seed=coded.seed)
    equal(loaded, result.policy, rtol=1e-6, atol=1e-7)
    plain = read_policy("", result.setup.model, result.setup.mesh, seed=coded.seed)["layers"]["mlp"]["up"]["kernel"]
    assert np.abs(loaded["layers"]["mlp"]["up"]["kernel"] - plain).max() > 0.01, "the base was not quantised"


def test_a_value_network_of_its_own_cannot_be_codes():
    coded = dataclasses.replace(ADAPTED.lora, quantize="int8")
    with pytest.raises(ValueError, match="lora.quantize='int8' with value_network='own'"):
        setup_for("dro", lora=coded)


def test_another_live_reference_is_refused():
    with pytest.raises(ValueError, match="reference.init_from with lora.rank"):
        dataclasses.replace(ADAPTED, reference=ReferenceConfig(init_from="runs/other"))


def test_the_value_network_of_dro_is_trained_whole_beside_adapters(tmp_path):
    config = StageConfig(
        **{f.name: getattr(ADAPTED, f.name) for f in dataclasses.fields(ADAPTED)}
        | dict(objective="dro", loss={"tau": 1.0}, value_network="own", train=LoopConfig(steps=2, log_every=1)),
    )
    result = run_stage(config, tmp_path, tmp_path / "data")
    assert result.finished and "value" in final_state(tmp_path)["params"]
