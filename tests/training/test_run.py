"""Whole stages on small data: learning, exact resume, stopping, the start check, a precomputed reference."""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from prefjax.data.config import DataConfig
from prefjax.data.world_records import WorldOptions
from prefjax.models import ModelConfig
from prefjax.policies.evaluate import evaluate_stage
from prefjax.training import loop, reference, stage
from prefjax.training.checkpoint import Checkpointer, load_proof
from prefjax.training.config import ReferenceConfig, RowsConfig, StageConfig
from prefjax.training.loop import LoopConfig
from prefjax.training.mesh import MeshConfig, make_mesh
from prefjax.training.optimizers import OptimizerConfig
from prefjax.training.processes import VARIABLES
from prefjax.training.stage import run_stage
from tests.compilation import QUICK
from tests.started import Started

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


@pytest.mark.slow
def test_twenty_steps_learn(whole):
    workdir, result = whole
    losses = [line["loss"] for line in lines(workdir)]
    assert losses[0] < 0.72 and losses[-1] < losses[0] - 0.02
    assert result.finished and result.eval_metrics["prompts"] == 16
    assert lines(workdir)[-1]["fill"] > 0.85
    assert "prompts_per_second" in lines(workdir)[-1]


@pytest.mark.slow
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
    with pytest.raises(ValueError, match=r"config\.loss\.beta: 0\.5 there, 0\.1 now"):
        run_stage(other, workdir, workdir / "data")


def test_other_held_out_data_are_refused_and_the_same_of_another_name_are_not(whole, tmp_path, capsys):
    workdir, _ = whole
    (held_out,) = (workdir / "data").glob("synthetic-*-eval-*.jsonl")
    other = held_out.read_text().splitlines()[1:]
    for name, lines in (("same.jsonl", held_out.read_text().splitlines()), ("other.jsonl", other)):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    config = lambda name: dataclasses.replace(DPO, data=dataclasses.replace(DPO.data, eval=str(tmp_path / name)))
    with pytest.raises(ValueError, match=r"another config \(held-out data: '\w+' there, '\w+' now\)"):
        run_stage(config("other.jsonl"), workdir, tmp_path)
    assert run_stage(config("same.jsonl"), workdir, tmp_path).finished
    assert "continuing from step 20\n" in capsys.readouterr().out


def test_a_run_may_become_longer_but_not_shorter_than_it_is(whole, tmp_path, capsys):
    workdir, _ = whole
    shorter = dataclasses.replace(DPO, train=LoopConfig(steps=10))
    with pytest.raises(ValueError, match="is at step 20, beyond train.steps=10"):
        run_stage(shorter, workdir, workdir / "data")
    stage._say_continued(tmp_path, load_proof(workdir), DPO, 24)
    said = capsys.readouterr().out
    assert "continuing from step 20; 24 steps, not 20: schedules of the learning rate" in said
    assert "begun before" not in said


# Steps of three rows: four with padding where four devices share them.
FOUR_STEPS = dataclasses.replace(
    DPO,
    rows=dataclasses.replace(DPO.rows, tokens_per_step=3 * 384),
    optimizer=OptimizerConfig(learning_rate=3e-4),
    train=LoopConfig(steps=4, log_every=1, checkpoint_every=2),
)
SECOND_HALF = """
import dataclasses, sys
from pathlib import Path
import jax
from prefjax.training.processes import join_processes
join_processes()
assert (jax.process_count(), jax.device_count()) == (2, 4)
from prefjax.training.mesh import MeshConfig
from prefjax.training.stage import run_stage
from tests.training.test_run import FOUR_STEPS, cannot_be_read
if jax.process_index():
    cannot_be_read(step=4)
run_stage(dataclasses.replace(FOUR_STEPS, mesh=MeshConfig(1, 2, 2)), Path(sys.argv[1]), Path(sys.argv[2]))
"""


def cannot_be_read(step):
    """From here on this process cannot read the arrays of a step."""
    import orbax.checkpoint as ocp

    read = ocp.PyTreeCheckpointHandler.restore

    def fails(self, path, *args, **kwargs):
        if str(step) in path.parts:
            raise OSError(f"{path} is seen as damaged by one process alone")
        return read(self, path, *args, **kwargs)

    ocp.PyTreeCheckpointHandler.restore = fails


@pytest.fixture(scope="module")
def eight(whole, tmp_path_factory):
    """The folder of a run of eight devices, its data, and what it evaluated."""
    folder, data = tmp_path_factory.mktemp("eight"), whole[0] / "data"
    return folder, data, run_stage(FOUR_STEPS, folder, data).eval_metrics["loss"]


def copy_of_half(eight, folder, *, without=("4",)):
    shutil.copytree(eight[0] / "checkpoints", folder / "checkpoints", ignore=shutil.ignore_patterns(*without))


def assert_same_second_half(eight, folder):
    losses = lambda folder: [line["loss"] for line in lines(folder) if line["step"] > 2]
    assert losses(folder) == pytest.approx(losses(eight[0]), rel=0, abs=1e-6) and len(losses(folder)) == 2
    # Log-probs of -150 nats are rounded to 1e-5 each.
    assert lines(folder, "eval")[-1]["loss"] == pytest.approx(eight[2], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("devices,mesh", [(1, (1, 1, 1)), (2, (1, 1, 2)), (4, (1, 4, 1))])
def test_a_run_of_eight_devices_continues_on_any_mesh(eight, tmp_path, devices, mesh, monkeypatch, capsys):
    """In another folder, from step 2 on."""
    copy_of_half(eight, tmp_path)
    monkeypatch.setattr(stage, "make_mesh", lambda config: make_mesh(config, jax.devices()[:devices]))
    run_stage(dataclasses.replace(FOUR_STEPS, mesh=MeshConfig(*mesh)), tmp_path, eight[1])
    said = capsys.readouterr().out
    assert "continuing from step 2\n" in said and ("1 rows of padding" in said) == (devices == 4)
    assert_same_second_half(eight, tmp_path)


@pytest.mark.slow
def test_a_run_of_one_process_continues_as_two_from_what_both_can_read(eight, tmp_path):
    """One of them cannot read step 4, so both put it aside, and go on from step 2."""
    copy_of_half(eight, tmp_path, without=())
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count=2 {QUICK}"
    variables = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", VARIABLES[0]: address, VARIABLES[1]: "2"}
    said = tmp_path / "said"
    said.mkdir()
    with contextlib.ExitStack() as running:
        started = [
            running.enter_context(
                Started(
                    [sys.executable, "-c", SECOND_HALF, tmp_path, eight[1]],
                    said / f"{index}.log",
                    env=os.environ | variables | {VARIABLES[2]: str(index)},
                )
            )
            for index in range(2)
        ]
        assert [process.ended() for process in started] == [0, 0], started[0].said[-3000:]
    assert (tmp_path / "checkpoints/damaged-4").is_dir() and load_proof(tmp_path).step == 4
    assert_same_second_half(eight, tmp_path)


def test_evaluate_repeats_the_last_evaluation(whole):
    workdir, result = whole
    values = evaluate_stage(DPO, workdir, "")
    assert values == pytest.approx(result.eval_metrics, rel=1e-5)


def test_other_held_out_data_are_refused(whole):
    workdir, _ = whole
    fewer = dataclasses.replace(DPO, data=DataConfig(world=WorldOptions(train_examples=96, eval_examples=15)))
    with pytest.raises(ValueError, match=f"{workdir}/data: the held-out data are no longer those that {workdir} was"):
        evaluate_stage(fewer, workdir, "")


@pytest.mark.slow
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


@pytest.mark.slow
def test_epochs_cover_every_prompt(epoch):
    assert sum(line["prompts"] for line in lines(epoch)) == 96


@pytest.mark.slow
def test_a_run_of_one_epoch_becomes_one_of_two_but_not_shorter(whole, epoch, tmp_path, capsys):
    shutil.copytree(epoch, tmp_path, dirs_exist_ok=True)
    first = len(lines(epoch))
    two = dataclasses.replace(DPO, train=LoopConfig(epochs=2, log_every=1))
    assert run_stage(two, tmp_path, whole[0] / "data").finished
    assert f"continuing from step {first}; {len(lines(tmp_path))} steps, not {first}: " in capsys.readouterr().out
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, len(lines(tmp_path)) + 1))
    assert sum(line["prompts"] for line in lines(tmp_path)[first:]) == 96
    assert load_proof(tmp_path).facts["epochs"] == [1, 2]
    one = dataclasses.replace(DPO, train=LoopConfig(epochs=1))
    with pytest.raises(ValueError, match="packs its data for train.epochs=2: give as many or more, not train.epochs=1"):
        run_stage(one, tmp_path, whole[0] / "data")
    with pytest.raises(ValueError, match="counts its length in steps.* give train.steps, not train.epochs=1"):
        run_stage(one, whole[0], whole[0] / "data")


@pytest.mark.slow
def test_a_trace_of_a_step_lies_in_the_workdir(epoch):
    """Read back with JAX: it holds the second step, once."""
    (path,) = (epoch / "profile").rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events]
    assert [dict(event.stats)["step_num"] for event in events if event.name == "train"] == [2]


@pytest.mark.slow
def test_prompts_batching_gives_every_layout_the_same_steps(whole, tmp_path):
    workdir, _ = whole
    losses = {}
    for layout, units in (("pairs", {}), ("merged", {"merge_from": 0})):
        rows = RowsConfig(layout=layout, batching="prompts", prompts_per_step=12, **units)
        config = dataclasses.replace(DPO, rows=rows, train=LoopConfig(steps=4, log_every=1))
        run_stage(config, tmp_path / layout, workdir / "data")
        assert [line["prompts"] for line in lines(tmp_path / layout)] == [12] * 4
        losses[layout] = [line["loss"] for line in lines(tmp_path / layout)]
    assert losses["pairs"] == pytest.approx(losses["merged"], rel=1e-4)


@pytest.mark.slow
def test_a_non_finite_loss_stops_with_advice(whole, tmp_path):
    workdir, _ = whole
    optimizer = OptimizerConfig(name="sgd", learning_rate=1e30, clip_norm=0.0)
    config = dataclasses.replace(DPO, optimizer=optimizer, train=LoopConfig(steps=4, log_every=1))
    with pytest.raises(loop.NonFiniteLossError, match="learning_rate"):
        run_stage(config, tmp_path, workdir / "data")


def test_checkpoints_keep_the_newest(whole):
    workdir, _ = whole
    checkpointer = Checkpointer(workdir / "checkpoints", identity={}, facts={})
    assert checkpointer.latest_step() == 20
    checkpointer.close()


def test_a_mesh_that_cuts_a_head_is_refused(whole, tmp_path):
    workdir, _ = whole
    config = dataclasses.replace(DPO, mesh=MeshConfig(data=1, fsdp=2, tensor=4))
    with pytest.raises(ValueError, match="mesh.tensor=4 does not divide model.num_kv_heads=2"):
        run_stage(config, tmp_path, workdir / "data")
