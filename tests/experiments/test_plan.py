"""Plans: names of slices, what a program's text says of its collectives, the counts, the verdict, and the command."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import plan as plan_config
from experiments.config_flag import complete
from prefjax.fit import plans as plans_lib
from prefjax.fit.budget import live_area, measure_load, step_budget
from prefjax.fit.chips import CHIPS, find_slice
from prefjax.fit.collectives import read_collectives
from prefjax.fit.compiled_plan import search_space
from prefjax.fit.flops import forward_flops, shared_work, step_flops
from prefjax.fit.plans import Plan
from prefjax.fit.roofline import step_time
from prefjax.losses import OBJECTIVES
from prefjax.models import ModelConfig
from prefjax.models.attention.kernel_tiles import Blocks
from prefjax.models.lora import LoraConfig
from prefjax.rows.arrays import Branches, RowShape
from prefjax.rows.layout import build_rows
from prefjax.rows.trees import TokenTree
from prefjax.training.mesh import MeshConfig, make_mesh
from prefjax.training.runs import run_config
from prefjax.training.scoring import Setup

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "name,chips,devices,shape",
    [
        ("v5e-16", 16, 16, "4x4"),
        ("v5e-8", 8, 8, "2x4"),
        ("v6e-8", 8, 8, "2x4"),
        ("v5p-64", 32, 32, "2x4x4"),
        ("v4-8", 4, 4, "2x2x1"),
        ("tpu7x-8", 4, 8, "2x2x1"),
        ("h100x8", 8, 8, "1x8x1"),
        ("h200x4", 4, 4, "1x4x1"),
    ],
)
def test_names_of_slices(name, chips, devices, shape):
    where = find_slice(name)
    assert (where.chips, where.devices, where.shape, where.name) == (chips, devices, shape, name)


def test_a_chip_alone_is_one_chip():
    for name, chip in CHIPS.items():
        where = find_slice(name)
        assert where.chips == 1 and where.devices == chip.devices and set(where.shape.split("x")) == {"1"}


@pytest.mark.parametrize("name", ["v5e-12", "v5p-6", "v5p-7", "h100-8", "h100x9", "h100x0", "v7", "", "v5ex4"])
def test_unknown_slices_are_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match="v5e|h100x8|v5p-8"):
        find_slice(name)


def test_the_table_of_chips_is_in_the_right_units():
    for chip in CHIPS.values():
        assert 1e14 < chip.peak_flops < 3e15 and 1e10 < chip.memory < 3e11
        assert 5e11 < chip.bandwidth < 1e13 and 1e11 < chip.links < chip.bandwidth
        assert bool(chip.target) == (chip.platform == "cuda") and bool(chip.shapes) == (chip.platform == "tpu")
        assert chip.source


# A program of 8 devices in the forms compilers print: a noted trip count (CUDA), a derived one (TPU: 2, 4, 6 below 8,
# so three, times four of the loop around it), asynchronous pairs, a conditional, and one gather spread over fusions.
PROGRAM = Path(__file__).with_name("program.hlo").read_text()
NOTE = ', backend_config={"known_trip_count":{"n":"4"}}'


def test_collectives_are_counted_in_loops_and_once_where_a_compiler_spreads_them():
    found = read_collectives(PROGRAM)
    assert found.unread == ""
    weights = 16 * 64 * 2
    assert found.by_kind == {
        "all-gather": (4, 4 * 7 * weights),
        "reduce-scatter": (1, 7 / 8 * 320),
        "all-reduce": (1, 2 * 3 / 4 * 400),
        "all-to-all": (1, 3 / 4 * 400),
        "collective-permute": (4 * 3, 4 * 3 * weights),
    }
    assert found.received == sum(traffic.received for traffic in found.by_kind.values())


def test_a_loop_whose_trips_are_not_known_is_named():
    found = read_collectives(PROGRAM.replace(NOTE, ""))  # its counter starts at an argument
    assert found.by_kind["collective-permute"].count == 3 and found.by_kind["all-gather"].count == 1
    assert "trips of layers" in found.unread


def test_a_group_that_cannot_be_read_is_counted_as_all_devices_and_said():
    found = read_collectives(PROGRAM.replace("replica_groups={{0,1,2,3},{4,5,6,7}}", "replica_groups=@new"))
    assert found.by_kind["all-reduce"].received == 2 * 7 / 8 * 400
    assert "1 collectives" in found.unread


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        read_collectives("HloModule nothing")


def test_a_roofline_by_hand():
    chip = CHIPS["tpu7x"]  # two devices a chip, each with half of it
    time = step_time(chip, flops=chip.peak_flops, bytes=chip.bandwidth / 4, received=chip.links / 2)
    assert tuple(time) == pytest.approx((2.0, 0.5, 1.0))
    assert time.overlapped == pytest.approx(2.0) and time.serial == pytest.approx(3.5) and time.bound == "compute"


def tree(prompt, *responses):
    ids = lambda length: np.ones(length, np.int32)
    return TokenTree(ids(prompt), tuple(map(ids, responses)), np.array([1, 0], np.float32), example_id=0)


MODEL = ModelConfig(
    vocab_size=64, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_width=8, mlp_width=24, remat="none"
)


def test_the_load_is_that_of_the_rows():
    trees = [tree(5, 3, 4), tree(7, 2, 9)]
    rows = build_rows([trees], RowShape("shared_packed", 1, 40, 24, 3, Branches(2)))
    load = measure_load([rows, rows], Blocks(query=8, key=16, rows=8))
    expected = shared_work(5, np.array([3, 4])) + shared_work(7, np.array([2, 9]))
    assert load.work == expected
    assert load.positions == 40 and load.prompts == 2 and load.fill == 30 / 40


@pytest.mark.parametrize("blocks", [(8, 8), (8, 16), (16, 8)])
def test_live_tiles_hold_a_visible_pair_each(blocks):
    rng = np.random.default_rng(0)
    trees = [tree(*rng.integers(1, 20, 3)) for _ in range(6)]
    rows = build_rows([trees[:3], trees[3:]], RowShape("shared_packed", 2, 180, 120, 3, Branches(2)))
    query, key = blocks
    padded = 180 + -180 % max(blocks)
    until = np.concatenate([rows.visible_until, np.tile(np.arange(180, padded) + 1, (2, 1))], axis=1)
    i, j = np.arange(padded)[:, None], np.arange(padded)[None]
    visible = (j <= i) & (i < until[:, None])
    tiles = visible.reshape(2, padded // query, query, padded // key, key).any((2, 4))
    assert live_area(rows.visible_until, Blocks(query=query, key=key, rows=query)) == tiles.sum() * query * key


def setup_on(mesh, **changes):
    model = dataclasses.replace(MODEL, **changes)
    return Setup(model, OBJECTIVES["dpo"], reference="precomputed", mesh=make_mesh(mesh))


def test_the_budget_without_padding_and_recomputation_is_the_problem_itself():
    """Whole tiles, recomputed logits in the backward kernels and the head's chunks are all that may come on top."""
    rows = build_rows([[tree(5, 3, 4)]] * 8, RowShape("shared_packed", 8, 12, 7, 1, Branches(2)))
    load = measure_load([rows], Blocks(query=1, key=1, rows=1))
    assert load.tile_area == load.work.area
    budget = step_budget(setup_on(MeshConfig(data=8)), load, parameter_bytes=0, optimizer_bytes=0)
    assert budget.model_flops * 8 == step_flops(MODEL, load.work, live_reference=False)
    head = 2 * 64 * 16 * load.work.scored
    attention = 2 * 4 * 4 * 8 * load.work.area
    assert budget.flops * 8 == pytest.approx(budget.model_flops * 8 + head + 1.5 * attention)


def test_a_frozen_base_has_no_gradients_of_weights():
    rows = build_rows([[tree(5, 3, 4)]] * 8, RowShape("shared_packed", 8, 12, 7, 1, Branches(2)))
    load = measure_load([rows], Blocks(query=1, key=1, rows=1))
    setup = setup_on(MeshConfig(data=8))
    whole, frozen = (
        step_budget(dataclasses.replace(setup, lora=adapters), load, parameter_bytes=0, optimizer_bytes=0)
        for adapters in (LoraConfig(), LoraConfig(rank=2))
    )
    weights = forward_flops(MODEL, load.work._replace(area=0))
    assert (whole.flops - frozen.flops) * 8 == pytest.approx(weights)
    assert (whole.model_flops - frozen.model_flops) * 8 == pytest.approx(weights)


def test_the_budget_counts_recomputation_and_gathered_weights():
    rows = build_rows([[tree(5, 3, 4)]] * 8, RowShape("shared_packed", 8, 16, 8, 1, Branches(2)))
    load = measure_load([rows], Blocks(query=8, key=8, rows=8))
    count = lambda mesh, **changes: step_budget(setup_on(mesh, **changes), load, parameter_bytes=0, optimizer_bytes=0)
    plain, dots, full = (count(MeshConfig(data=8), remat=remat) for remat in ("none", "dots", "full"))
    assert plain.flops == dots.flops < full.flops and plain.model_flops == full.model_flops
    assert count(MeshConfig(fsdp=8)).bytes > plain.bytes


def made_plan(**changes) -> Plan:
    facts = dict(
        topology="h100x8",
        chips=8,
        devices=8,
        model="8.03B",
        settings=dict(rows="8 x 4096", mesh="fsdp 8", remat="full", reference="precomputed", accumulation="1"),
        command="python -m experiments.plan",
        lengths="made up",
        prompts=64.0,
        fill=0.99,
        live_tiles=0.1,
        available=80e9,
        compile_seconds=1.0,
        memory=dict(parameters=4, optimizer=8, reference=0, batch=1, arguments=13, temporaries=7, peak=int(20e9)),
        collectives={"all-gather": [4, 2e9]},
        seconds=dict(compute=2.0, memory=0.5, links=1.0),
        mfu=0.5,
        compilers="jax 0",
    )
    return Plan(**facts | changes)


def test_a_gpu_must_leave_room_and_a_tpu_compiler_judges_itself():
    assert plans_lib.memory_verdict(CHIPS["h100"], 0.91 * 80e9) == ""
    assert "80.00 GB" in plans_lib.memory_verdict(CHIPS["h100"], 0.93 * 80e9)
    assert plans_lib.memory_verdict(CHIPS["v5e"], 16.5e9) == ""


def test_ranking_is_by_time_and_leaves_out_what_does_not_fit():
    slow, fast = made_plan(), made_plan(seconds=dict(compute=1.0, memory=0.5, links=1.0))
    less_traffic = made_plan(seconds=dict(compute=1.0, memory=0.5, links=0.5))
    refused = made_plan(memory=None, seconds=None, reason="too large")
    assert plans_lib.ranked([slow, refused, fast, less_traffic]) == [less_traffic, fast, slow]


def test_plans_are_added_to_those_that_are_there(tmp_path):
    refused = made_plan(topology="v5e-8", memory=None, seconds=None, collectives={}, reason="Ran out of memory")
    plans_lib.write(tmp_path, [made_plan(), refused])
    plans_lib.write(tmp_path, [made_plan(prompts=32.0)])  # the same plan again: the newest counts
    assert plans_lib.read(tmp_path / "plans.json") == [made_plan(prompts=32.0), refused]
    text = (tmp_path / "plans.md").read_text()
    assert "no: Ran out of memory" in text and "| **20.00** |" in text and "16.0 to 9.1" in text
    assert (tmp_path / "plans.png").stat().st_size > 1000
    assert "DOES NOT FIT: Ran out of memory" in plans_lib.describe(refused)
    assert "FITS" in plans_lib.describe(made_plan())
    accumulated = made_plan(settings=made_plan().settings | {"accumulation": "4"})
    assert "8 x 4096 in 4 parts" in plans_lib.table([accumulated]) and "parts" not in plans_lib.table([made_plan()])


@pytest.mark.parametrize("shape", plan_config.SHAPES)
def test_the_large_shapes_are_whole_configs(shape):
    stage = run_config(complete(plan_config.get_config(shape), "configs/plan.py").to_dict()).stage
    assert stage.model.remat == "full" and stage.reference.kind == "precomputed"
    with pytest.raises(ValueError, match="llama3_8b"):
        plan_config.get_config("llama9")


def test_a_search_keeps_the_rows_of_the_step():
    stage = run_config(complete(plan_config.get_config("llama3_8b"), "configs/plan.py").to_dict()).stage  # 16 rows
    space = list(search_space(stage, find_slice("v5e-16")))
    meshes = {(config.mesh.data, config.mesh.fsdp, config.mesh.tensor) for config in space}
    assert {math.prod(mesh) for mesh in meshes} == {16} and (1, 16, 1) in meshes and (2, 1, 8) in meshes
    assert all(16 % (c.mesh.data * c.mesh.fsdp * c.accumulation) == 0 for c in space)
    assert not any(config.mesh.tensor > 8 for config in space), "8 key heads"
    assert len({(config.mesh, config.accumulation, config.model.remat) for config in space}) == len(space)


def command(*options):
    arguments = [sys.executable, "-m", "experiments.plan", *options]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""})


SMALL = [
    "--config=configs/plan.py:llama3_1b",
    *("--config.model.num_layers=2", "--config.model.width=256", "--config.model.vocab_size=1024"),
    *("--config.model.num_heads=8", "--config.model.mlp_width=512", "--config.rows.tokens_per_step=16384"),
]


@pytest.mark.slow
def test_the_command_compiles_searches_and_refuses(tmp_path):
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        done = command("--topology=h100x2", *SMALL)
        assert done.returncode == 2 and "requirements-aot.txt" in done.stderr
        pytest.skip("jax_cuda12_plugin is not installed: pip install -r requirements-aot.txt")
    done = command("--topology=h100x2", "--search", f"--output={tmp_path}", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    plans = json.loads((tmp_path / "plans.json").read_text())
    assert {plan["settings"]["remat"] for plan in plans} == {"none", "dots", "full"}
    assert all(not plan["reason"] and not plan["unread"] for plan in plans)
    assert any(plan["collectives"] for plan in plans)
    done = command("--topology=h100", "--config=configs/plan.py:llama3_70b", "--config.rows.tokens_per_step=4096")
    assert done.returncode == 1 and "DOES NOT FIT: parameters and optimiser state alone" in done.stdout
