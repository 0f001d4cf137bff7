"""Whole stages on small data: learning, exact resume, stopping, the start check, a precomputed reference."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from prefjax.data.prepare import DataConfig, WorldOptions
from prefjax.models import ModelConfig
from prefjax.training import loop, reference, stage
from prefjax.training.checkpoint import Checkpointer
from prefjax.training.config import ReferenceConfig, RowsConfig, StageConfig
from prefjax.training.loop import LoopConfig
from prefjax.training.mesh import MeshConfig
from prefjax.training.optimizers import OptimizerConfig
from prefjax.training.stage import evaluate_stage, run_stage

DPO = StageConfig(
    objective="dpo",
    loss={"beta": 0.5},
    data=DataConfig(world=WorldOptions(train_examples=96, eval_examples=16)),
    rows=RowsConfig(tokens_per_step=1536, row_length=384, window=32),
    model=ModelConfig(vocab_size=0, num_layers=1, width=32, num_heads=4, num_kv_heads=2, head_width=8, mlp_width=48),
    optimizer=OptimizerConfig(learning_rate=3e-3),
    train=LoopConfig(steps=20, log_every=5),
    mesh=MeshConfig(data=2, fsdp=2, tensor=2),
)


def lines(workdir, split="train"):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def final_state(workdir):
    """Every array of the last checkpoint."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(workdir / "checkpoints") as manager:
        restored = manager.restore(manager.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    return jax.tree.map(np.asarray, restored.state)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """20 steps in one go."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run_stage(DPO, workdir, workdir / "data")


def test_twenty_steps_learn(whole):
    workdir, result = whole
    losses = [line["loss"] for line in lines(workdir)]
    assert losses[0] < 0.72 and losses[-1] < losses[0] - 0.02
    assert result.finished and result.eval_metrics["prompts"] == 16
    assert lines(workdir)[-1]["fill"] > 0.85
    assert "prompts_per_second" in lines(workdir)[-1]


def test_stopped_and_resumed_is_bit_for_bit_the_same(whole, tmp_path):
    """10 steps, a new process's worth of fresh objects, 10 more: every array of the state equal, packing included."""
    workdir, result = whole
    first = run_stage(DPO, tmp_path, workdir / "data", should_stop=lambda step: step == 10)
    assert not first.finished
    # A line past the checkpoint, as a killed process leaves it, must not survive.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 11, "split": "train", "loss": 9.0}) + "\n")
    second = run_stage(DPO, tmp_path, workdir / "data")
    assert second.finished
    for a, b in zip(jax.tree.leaves(final_state(tmp_path)), jax.tree.leaves(final_state(workdir)), strict=True):
        np.testing.assert_array_equal(a, b)
    timing = {"prompts_per_second", "tokens_per_second", "seconds_per_step"}
    strip = lambda rows: [{k: v for k, v in row.items() if k not in timing} for row in rows]
    assert strip(lines(tmp_path)) == strip(lines(workdir))
    record = json.loads((tmp_path / "run.json").read_text())
    steps = [(session["from_step"], session["to_step"], session["outcome"]) for session in record["sessions"]]
    assert steps == [(0, 10, "stopped"), (10, 20, "finished")]


def test_the_run_says_what_it_is_made_of(whole):
    workdir, _ = whole
    record = json.loads((workdir / "run.json").read_text())
    assert (record["objective"], record["seed"], record["steps"]) == ("dpo", 0, 20)
    assert record["config"]["loss"] == {"beta": 0.5} and record["config"]["rows"]["row_length"] == 384
    for split, trees in (("train", 96), ("eval", 16)):
        data = record["data"][split]
        manifest = json.loads((Path(data["directory"]) / "manifest.json").read_text())
        assert data["trees"] == trees and data["content_hash"] == manifest["content_hash"]
    assert record["reference"]["kind"] == "live" and record["reference"]["from"] == "the initial policy"
    assert record["reference"]["parameters"] == record["initial_policy"]["parameters"]
    assert record["start_check"] == pytest.approx(
        {"loss": np.log(2), "expected_loss": np.log(2), "start_gap": 0}, abs=1e-4
    )


def test_another_run_in_the_same_workdir_is_refused(whole):
    workdir, _ = whole
    other = dataclasses.replace(DPO, loss={"beta": 0.1})
    with pytest.raises(ValueError, match="loss: checkpoint has .*0.5.*this run .*0.1"):
        run_stage(other, workdir, workdir / "data")


def test_evaluate_repeats_the_last_evaluation(whole):
    workdir, result = whole
    values = evaluate_stage(DPO, workdir, "")
    assert values == pytest.approx(result.eval_metrics, rel=1e-5)


def test_a_wrong_reference_stops_at_the_first_batch(whole, tmp_path, monkeypatch):
    """The loss is not log 2, and the run says so before it trains."""
    workdir, _ = whole
    config = dataclasses.replace(DPO, reference=ReferenceConfig(kind="precomputed"))
    monkeypatch.setattr(stage, "reference_table", lambda *a, **k: 0.9 * reference.reference_table(*a, **k))
    with pytest.raises(loop.StartCheckError, match="must be 0.693147"):
        run_stage(config, tmp_path, workdir / "data")


@pytest.fixture(scope="module")
def epoch(whole, tmp_path_factory):
    """The workdir of one epoch, its second step traced."""
    workdir = tmp_path_factory.mktemp("epoch")
    config = dataclasses.replace(DPO, train=LoopConfig(epochs=1, log_every=1, profile_steps=1))
    run_stage(config, workdir, whole[0] / "data")
    return workdir


def test_epochs_cover_every_prompt(epoch):
    assert sum(line["prompts"] for line in lines(epoch)) == 96


def test_a_trace_of_a_step_lies_in_the_workdir(epoch):
    """Read back with JAX: it holds the second step, once."""
    (path,) = (epoch / "profile").rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events]
    assert [dict(event.stats)["step_num"] for event in events if event.name == "train"] == [2]


def test_prompts_batching_gives_every_layout_the_same_steps(whole, tmp_path):
    workdir, _ = whole
    losses = {}
    for layout in ("pairs", "shared_packed"):
        rows = RowsConfig(layout=layout, batching="prompts", prompts_per_step=12)
        config = dataclasses.replace(DPO, rows=rows, train=LoopConfig(steps=4, log_every=1))
        run_stage(config, tmp_path / layout, workdir / "data")
        assert [line["prompts"] for line in lines(tmp_path / layout)] == [12] * 4
        losses[layout] = [line["loss"] for line in lines(tmp_path / layout)]
    assert losses["pairs"] == pytest.approx(losses["shared_packed"], rel=1e-4)


def test_a_non_finite_loss_stops_with_advice(whole, tmp_path):
    workdir, _ = whole
    optimizer = OptimizerConfig(name="sgd", learning_rate=1e30, clip_norm=0.0)
    config = dataclasses.replace(DPO, optimizer=optimizer, train=LoopConfig(steps=4, log_every=1))
    with pytest.raises(loop.NonFiniteLossError, match="learning_rate"):
        run_stage(config, tmp_path, workdir / "data")


def test_checkpoints_keep_the_newest(whole):
    workdir, _ = whole
    checkpointer = Checkpointer(workdir / "checkpoints", identity={})
    assert checkpointer.latest_step() == 20
    checkpointer.close()


def test_a_mesh_that_cuts_a_head_is_refused(whole, tmp_path):
    workdir, _ = whole
    config = dataclasses.replace(DPO, mesh=MeshConfig(data=1, fsdp=2, tensor=4))
    with pytest.raises(ValueError, match="mesh.tensor=4 does not divide model.num_kv_heads=2"):
        run_stage(config, tmp_path, workdir / "data")
