"""Plans of a config: its real train step compiled for chips that are not here, and the variants a search tries."""

import dataclasses
import importlib.metadata
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from prefjax.data.progress import progress_bar
from prefjax.fit import plans as plans_lib
from prefjax.fit.ahead import (
    COMPILERS,
    DoesNotFit,
    absent_devices,
    abstract_frozen,
    abstract_state,
    compile_train_step,
    device_bytes,
)
from prefjax.fit.budget import measure_load, step_budget
from prefjax.fit.chips import Slice
from prefjax.fit.collectives import read_collectives
from prefjax.fit.plans import Plan
from prefjax.fit.roofline import step_time
from prefjax.models.attention.kernel_tiles import choose_blocks
from prefjax.rows.arrays import Rows, RowShape
from prefjax.rows.packing import row_copies, tree_sizes
from prefjax.rows.pipeline import padded_rows, row_dataset
from prefjax.rows.store import MemoryTrees, TreeSource
from prefjax.rows.trees import TokenTree
from prefjax.training.batches import branches_of, training_batching, training_shape, with_baselines
from prefjax.training.config import StageConfig, objective_of
from prefjax.training.mesh import MeshConfig, make_mesh, row_shards
from prefjax.training.parameters import tokenizer_of
from prefjax.training.stage import make_setup

_MEASURED_ROWS = 64  # rows that fill and live tiles are measured on, at least
_REMAT = ("full", "dots", "none")  # from the least memory to the most
_ACCUMULATION = (1, 2, 4, 8)


def fitting_trees(config: StageConfig, drawn: Sequence[TokenTree], source: str) -> TreeSource:
    """Those of the trees that fit the config's rows, with baselines where its objective reads them.

    Raises:
      ValueError: none of `source` fits.
    """
    trees = with_baselines(config, _numbered(drawn), training=True)
    if not config.rows.row_length:
        return trees
    sizes = tree_sizes(trees.lengths, config.rows.layout, branches_of(trees, objective_of(config).requires))
    kept = np.flatnonzero(sizes[:, 0] <= config.rows.row_length)
    if not len(kept):
        raise ValueError(f"no tree of {source} fits rows.row_length={config.rows.row_length}: raise it")
    return _numbered([trees[int(i)] for i in kept])


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
    candidates: Sequence[StageConfig], where: Slice, trees: TreeSource, told: str, command: str
) -> list[Plan]:
    """Plans of all candidates. A search skips what more memory cannot help, and what fits without micro-batches."""
    chip = where.chip
    devices = absent_devices(chip.platform, where.shape, chip=chip.name, megacore=chip.megacore, target=chip.target)
    plans, refused, easy = [], set(), set()
    searching = len(candidates) > 1
    bar = progress_bar(candidates, shown=searching, desc=where.name, unit="plan")
    for config in bar:
        group = (config.mesh, config.accumulation)
        if searching and (group in refused or any(m == config.mesh and n < config.accumulation for m, n in easy)):
            continue
        what = f"{_axes(dataclasses.asdict(config.mesh))}, {config.accumulation}, {config.model.remat}"
        bar.set_postfix_str(what, refresh=False)
        plan = make_plan(config, where, devices, trees, told, command)
        plans.append(plan)
        if not plan.fits:
            refused.add(group)
        elif config.model.remat == "none":
            easy.add(group)
        if not searching:
            print(f"{plans_lib.describe(plan)}\n", flush=True)
    return plans


def first_batches(config: StageConfig, trees: TreeSource, shape: RowShape, row_multiple: int) -> list[Rows]:
    """The first batches of training, enough to measure fill and tiles on; all of an epoch that has fewer."""
    batches = iter(row_dataset(trees, shape, training_batching(config), row_multiple=row_multiple, prefetch=0))
    return list(itertools.islice(batches, -(-_MEASURED_ROWS // padded_rows(shape.rows, row_multiple))))


def make_plan(
    config: StageConfig, where: Slice, devices: Sequence[jax.Device], trees: TreeSource, told: str, command: str
) -> Plan:
    """Compiles the step of a config for these devices and says what it needs."""
    chip, mesh = where.chip, make_mesh(config.mesh, list(devices))
    setup = make_setup(config, tokenizer_of(config.data, config.model), mesh)
    shape, multiple = training_shape(config, trees), row_shards(mesh) * config.accumulation
    measured = first_batches(config, trees, shape, multiple)
    shape = dataclasses.replace(shape, rows=padded_rows(shape.rows, multiple))
    blocks = choose_blocks(chip.platform, devices[0].device_kind, shape.rows // row_shards(mesh), shape.row_length)
    load = measure_load(measured, blocks)
    state, frozen = abstract_state(setup, config.optimizer), abstract_frozen(setup)
    rows = shape.rows * row_copies(shape.layout, shape.branches)
    plan = Plan(
        topology=where.name,
        chips=where.chips,
        devices=where.devices,
        model=_model_line(frozen if setup.lora.rank else state.params),
        settings=_settings(config, shape, rows, mesh),
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
        setup, load, parameter_bytes=device_bytes(state.params), optimizer_bytes=device_bytes(state.opt_state)
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


def _settings(config: StageConfig, shape: RowShape, rows: int, mesh: jax.sharding.Mesh) -> dict[str, str]:
    settings = {
        "objective": config.objective,
        "rows": f"{rows} x {shape.row_length}",
        "layout": shape.layout,
        "mesh": _axes(mesh.shape),
        "remat": config.model.remat,
        "accumulation": str(config.accumulation),
        "optimizer": f"{config.optimizer.name}, {config.optimizer.mu_dtype} first moment",
        "reference": config.reference.kind,
    }
    if config.lora.rank:
        settings["adapters"] = f"rank {config.lora.rank}, quantize {config.lora.quantize}"
    return settings


def _axes(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{axis} {size}" for axis, size in sizes.items() if size != 1) or "one device"


def _model_line(params: Any) -> str:
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return f"{count / 1e9:.3g}B" if count >= 1e8 else f"{count / 1e6:.3g}M"
