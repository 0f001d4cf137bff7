"""Says before anything is rented whether a run fits, what it sends and how fast it can be: compiles the real train step
for chips that are not here.

    python -m experiments.plan --config=configs/plan.py:llama3_8b --topology=v5e-16
    python -m experiments.plan --config=configs/plan.py:llama3_8b --topology=v5e-16,h100x8 --output=plans
    python -m experiments.plan --config=configs/plan.py:llama3_8b --topology=v5e-16 --search
    python -m experiments.plan --config=configs/quickstart.py:kto --topology=h100 --lengths=preferences.jsonl.gz

Runs on a CPU, in an environment of its own: pip install -r requirements.txt -r requirements-aot.txt

TOPOLOGY  v5e-16, v6e-8 (chips); v4-8, v5p-64, tpu7x-8 (TensorCores, two to a chip, as Google names slices); h100x8,
          h200x4, a100x8 (GPUs of one node); a chip's name alone is one chip.
TIME      for an 8B model 1 to 4 minutes a TPU plan, 10 to 30 s a GPU plan; --search compiles a few dozen.
EXIT      0 if all fit (with --search: if any does), 1 if not, 2 for a wrong command line or a missing compiler.
"""

import dataclasses
import importlib.metadata
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from experiments.benchmarks import lengths as lengths_lib
from experiments.door import run_config
from prefjax.analysis import plans as plans_lib
from prefjax.analysis.chips import Slice, find_slice
from prefjax.analysis.collectives import read_collectives
from prefjax.analysis.plans import Plan
from prefjax.analysis.roofline import step_time
from prefjax.data.encoding import EncodingPolicy
from prefjax.data.packing import row_copies, tree_sizes
from prefjax.data.store import MemoryTrees
from prefjax.data.tokenizers import load_tokenizer
from prefjax.data.trees import TokenTree
from prefjax.models.pallas_tiles import choose_blocks
from prefjax.training.ahead import (
    COMPILERS,
    CompilerMissing,
    DoesNotFit,
    absent_devices,
    abstract_frozen,
    abstract_state,
    compile_train_step,
    device_bytes,
)
from prefjax.training.batches import branches_of, host_rows, plan_rows, training_plan, with_baselines
from prefjax.training.budget import measure_load, step_budget
from prefjax.training.config import StageConfig, find_objective
from prefjax.training.mesh import MeshConfig, make_mesh, row_shards
from prefjax.training.stage import complete_model, make_setup

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with get_config(argument), as in configs/.")
_TOPOLOGY = flags.DEFINE_list("topology", None, "Slices to plan for, see above.")
_LENGTHS = flags.DEFINE_string("lengths", "paper:ultrafeedback", "Whose lengths: a distribution or a preference file.")
_SEARCH = flags.DEFINE_bool("search", False, "Try meshes, remat policies and micro-batches, and rank those that fit.")
_OUTPUT = flags.DEFINE_string("output", "", "Folder for plans.md, plans.json and plans.png; plans there are kept.")
_MEASURED_ROWS = 64  # rows that fill and live tiles are measured on, at least
_REMAT = ("full", "dots", "none")  # from the least memory to the most
_ACCUMULATION = (1, 2, 4, 8)


def main(_) -> None:
    jax.config.update("jax_platforms", "cpu")  # what is planned for is never touched
    command = shlex.join(["python", "-m", "experiments.plan", *sys.argv[1:]])
    enough = any if _SEARCH.value else all
    everywhere = True
    try:
        stage = run_config(_CONFIG.value).stage
        slices = [find_slice(name) for name in _TOPOLOGY.value]
        trees, told = load_trees(stage, _LENGTHS.value)
        for where in slices:
            candidates = list(search_space(stage, where)) if _SEARCH.value else [stage]
            plans = make_plans(candidates, where, trees, told, command)
            everywhere &= enough(plan.fits for plan in plans)
            if _SEARCH.value:
                plans = plans_lib.ranked(plans) + [plan for plan in plans if not plan.fits]
                print(f"\n{plans_lib.table(plans)}", flush=True)
            if _OUTPUT.value:
                plans_lib.write(Path(_OUTPUT.value), plans)
    except (CompilerMissing, ValueError) as error:
        print(f"experiments.plan: {error}", file=sys.stderr)
        sys.exit(2)
    if _OUTPUT.value:
        print(f"{_OUTPUT.value}/: plans.md plans.json plans.png")
    sys.exit(0 if everywhere else 1)


def load_trees(config: StageConfig, lengths: str) -> tuple[MemoryTrees, str]:
    """Trees of these lengths that fit the config's rows, and a line that says whose they are and how many did not."""
    objective, tokenizer = find_objective(config.objective), load_tokenizer(config.data.tokenizer)
    vocab_size = complete_model(config.model, tokenizer).vocab_size
    drawn, told = lengths_lib.load_trees(
        lengths, config.data.tokenizer, EncodingPolicy(), vocab_size=vocab_size, group_size=objective.group_size
    )
    trees = with_baselines(config, _numbered(drawn))
    if not config.rows.row_length:
        return trees, told
    sizes = tree_sizes(trees.lengths, config.rows.layout, branches_of(trees, objective))
    kept = np.flatnonzero(sizes[:, 0] <= config.rows.row_length)
    if not len(kept):
        raise ValueError(f"no tree of {lengths} fits rows.row_length={config.rows.row_length}: raise it")
    if len(kept) < len(trees):
        told += f"; {1 - len(kept) / len(trees):.1%} too long for a row left out"
    return _numbered([trees[int(i)] for i in kept]), told


def _numbered(trees: Sequence[TokenTree]) -> MemoryTrees:
    return MemoryTrees([dataclasses.replace(tree, example_id=row) for row, tree in enumerate(trees)])


def search_space(config: StageConfig, where: Slice) -> Iterator[StageConfig]:
    """Configs of the same step on other meshes, remat policies and micro-batches; least memory first per mesh."""
    rows = config.rows.tokens_per_step // config.rows.row_length if config.rows.row_length else 0
    if not rows or config.rows.batching != "rows":
        raise ValueError("--search keeps the step's rows: set rows.row_length and batching='rows'")
    devices = where.devices
    for tensor in (n for n in range(1, devices + 1) if devices % n == 0 and config.model.num_kv_heads % n == 0):
        for data in (n for n in range(1, devices // tensor + 1) if devices // tensor % n == 0):
            mesh = MeshConfig(data=data, fsdp=devices // tensor // data, tensor=tensor)
            for accumulation in _ACCUMULATION:
                if rows % (mesh.data * mesh.fsdp * accumulation):
                    continue
                for remat in _REMAT:
                    model = dataclasses.replace(config.model, remat=remat)
                    yield dataclasses.replace(config, mesh=mesh, accumulation=accumulation, model=model)


def make_plans(
    candidates: Sequence[StageConfig], where: Slice, trees: MemoryTrees, told: str, command: str
) -> list[Plan]:
    """Plans of all candidates. A search skips what more memory cannot help, and what fits without micro-batches."""
    chip = where.chip
    devices = absent_devices(chip.platform, where.shape, chip=chip.name, megacore=chip.megacore, target=chip.target)
    plans, refused, easy = [], set(), set()
    searching = len(candidates) > 1
    bar = tqdm(candidates, desc=where.name, unit="plan", disable=None if searching else True)
    for config in bar:
        group = (config.mesh, config.accumulation)
        if searching and (group in refused or any(m == config.mesh and n < config.accumulation for m, n in easy)):
            continue
        bar.set_postfix_str(f"{_axes(dataclasses.asdict(config.mesh))}, {config.accumulation}, {config.model.remat}")
        plan = make_plan(config, where, devices, trees, told, command)
        plans.append(plan)
        if not plan.fits:
            refused.add(group)
        elif config.model.remat == "none":
            easy.add(group)
        if not searching:
            print(f"{plans_lib.describe(plan)}\n", flush=True)
    return plans


def make_plan(
    config: StageConfig, where: Slice, devices: Sequence[jax.Device], trees: MemoryTrees, told: str, command: str
) -> Plan:
    """Compiles the step of a config for these devices and says what it needs."""
    chip, mesh = where.chip, make_mesh(config.mesh, list(devices))
    setup = make_setup(config, load_tokenizer(config.data.tokenizer), trees, mesh)
    shape = plan_rows(config, trees, row_multiple=row_shards(mesh) * config.accumulation)
    blocks = choose_blocks(chip.platform, devices[0].device_kind, shape.rows // row_shards(mesh), shape.row_length)
    batches = host_rows(trees, shape, training_plan(config), prefetch=0)
    measured = [next(batches) for _ in range(-(-_MEASURED_ROWS // shape.rows))]
    load = measure_load(measured, blocks)
    state, frozen = abstract_state(setup, config.optimizer), abstract_frozen(setup)
    rows = shape.rows * row_copies(shape.layout, shape.branches)
    plan = Plan(
        topology=where.name,
        chips=where.chips,
        devices=where.devices,
        model=_model_line(frozen if setup.lora.rank else state.params),
        settings={
            "objective": config.objective,
            "rows": f"{rows} x {shape.row_length}",
            "layout": shape.layout,
            "mesh": _axes(mesh.shape),
            "remat": config.model.remat,
            "accumulation": str(config.accumulation),
            "optimizer": f"{config.optimizer.name}, {config.optimizer.mu_dtype} first moment",
            "reference": config.reference.kind,
            **({"adapters": f"rank {config.lora.rank}, quantize {config.lora.quantize}"} if config.lora.rank else {}),
        },
        command=command,
        lengths=told,
        prompts=load.prompts,
        fill=load.fill,
        live_tiles=load.tile_area / (rows * shape.row_length**2),
        available=chip.memory / chip.devices,
        compile_seconds=0.0,
        compilers=", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", COMPILERS[chip.platform])),
    )
    began = time.perf_counter()
    held = device_bytes(state) + device_bytes(frozen)
    if held > plan.available:  # no need to ask the compiler
        return dataclasses.replace(
            plan, reason=f"parameters and optimiser state alone are {held / 1e9:.2f} GB a device"
        )
    try:
        compiled, memory = compile_train_step(setup, config.optimizer, shape)
    except DoesNotFit as error:
        return dataclasses.replace(plan, reason=str(error), compile_seconds=time.perf_counter() - began)
    sent = read_collectives(compiled.as_text())
    budget = step_budget(
        setup, load, parameter_bytes=device_bytes(state.params), optimizer_bytes=device_bytes(state.optimizer)
    )
    seconds = step_time(chip, flops=budget.flops, bytes=budget.bytes, received=sent.received)
    return dataclasses.replace(
        plan,
        compile_seconds=time.perf_counter() - began,
        reason=plans_lib.memory_verdict(chip, memory.peak),
        memory=dataclasses.asdict(memory),
        collectives={kind: list(traffic) for kind, traffic in sent.by_kind.items()},
        unread=sent.unread,
        model_flops=budget.model_flops,
        flops=budget.flops,
        seconds=seconds._asdict(),
        mfu=budget.model_flops / seconds.overlapped / (chip.peak_flops / chip.devices),
    )


def _axes(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{axis} {size}" for axis, size in sizes.items() if size != 1) or "one device"


def _model_line(params: Any) -> str:
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return f"{count / 1e9:.3g}B" if count >= 1e8 else f"{count / 1e6:.3g}M"


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main)
