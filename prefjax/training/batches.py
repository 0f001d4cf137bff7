"""Which rows a stage trains and evaluates on: prepared trees, the branches of a run, its static shape and its plan."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32

from prefjax.data.mismatch import mismatched_baselines
from prefjax.data.packing import suggest_shape, tree_sizes
from prefjax.data.pipeline import row_dataset
from prefjax.data.planning import FixedPrompts, FullRows, InOrder, Planner, Simulation, rows_for_prompts, simulate
from prefjax.data.prepare import Need, full_report, prepare
from prefjax.data.records import NUMBERS
from prefjax.data.rows import MARKS, Branches, Rows, RowShape
from prefjax.data.store import PreparedTrees, TreeSource
from prefjax.data.tokenizers import Tokenizer
from prefjax.losses import Objective
from prefjax.training.config import StageConfig, find_objective

_FORECAST_STEPS = 200


def data_need(config: StageConfig) -> Need:
    """What a stage's objective asks of records."""
    objective = find_objective(config.objective)
    return Need(
        objective.group_size,
        objective.reads,
        best_only=objective.name == "sft",
        least=objective.least,
        numbers=numbers_of(objective),
        spans=bool(marks_of(objective)),
    )


def load_trees(
    config: StageConfig, tokenizer: Tokenizer, directory: Path, split: str, *, say: bool = True
) -> PreparedTrees:
    """Prepared trees of one split, found in `directory` or made there. Prints what happened to every record if `say`.

    Of several processes the first prepares; the others wait and find its trees, so they must share `directory`.
    """
    need = data_need(config)
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices(f"prepared {split}")
    trees = prepare(config.data, need, tokenizer, directory, split=split)
    if jax.process_count() > 1 and jax.process_index() == 0:
        multihost_utils.sync_global_devices(f"prepared {split}")
    if say:
        print(f"[{split}] {trees.manifest['source']}\n{full_report(trees)}\n", flush=True)
    return trees


def with_baselines(config: StageConfig, trees: TreeSource) -> TreeSource:
    """The trees with KTO's mismatched responses where the objective reads them, else as they are."""
    needed = "baseline_logp" in find_objective(config.objective).needs
    return mismatched_baselines(trees, config.seed) if needed else trees


def branches_of(trees: TreeSource, objective: Objective) -> Branches:
    """The branches that hang below every prompt: K responses, and what the objective and the data add."""
    return Branches(
        responses=objective.group_size or trees.lengths.responses.shape[1],
        baseline="baseline_logp" in objective.needs,
        auxiliary="auxiliary_logp" in objective.optional and bool(trees.lengths.auxiliary.any()),
        longest=int(trees.lengths.responses.max()) if objective.reads_tokens else 0,
    )


def numbers_of(objective: Objective) -> tuple[str, ...]:
    """Which numbers of a pair the rows carry for this objective."""
    return tuple(name for name in NUMBERS if name in objective.needs)


def marks_of(objective: Objective) -> tuple[str, ...]:
    """What the data say of single tokens that the rows carry for this objective."""
    return tuple(name for name in MARKS if name.removesuffix("s") in objective.needs)


def plan_rows(config: StageConfig, trees: TreeSource, *, row_multiple: int) -> RowShape:
    """The static shape of a stage's rows over all hosts; `rows` is a multiple of `row_multiple`."""
    rows = config.rows
    objective = find_objective(config.objective)
    branches = branches_of(trees, objective)
    suggest = functools.partial(
        suggest_shape, trees.lengths, rows.layout, branches, row_multiple, prompt_rows=config.value_network == "own"
    )
    if rows.row_length:
        shape = suggest(row_length=rows.row_length).shape
    else:
        # A row does not outgrow a device's share of the step, unless a single tree does.
        longest = int(tree_sizes(trees.lengths, rows.layout, branches)[:, 0].max())
        share = rows.tokens_per_step // row_multiple
        shape = suggest(max_row_length=max(share, longest) if rows.batching == "rows" else None).shape
    if rows.batching == "prompts":
        plan = FixedPrompts(rows.prompts_per_step, config.seed, config.train.epochs or None)
        count = rows_for_prompts(trees.lengths, shape, plan, steps=config.train.steps or None)
    else:
        copies = branches.count if rows.layout == "pairs" else 1
        count = rows.tokens_per_step // (shape.row_length * copies)
    count = max(1, math.ceil(count / row_multiple)) * row_multiple
    return dataclasses.replace(shape, rows=count, numbers=numbers_of(objective), marks=marks_of(objective))


def plan_evaluation_rows(config: StageConfig, trees: TreeSource, *, row_multiple: int) -> RowShape:
    """The static shape for a pass over held-out trees: the rows that `tokens_per_step` holds, whatever the batching."""
    rows = dataclasses.replace(config.rows, batching="rows", prompts_per_step=0)
    return plan_rows(dataclasses.replace(config, rows=rows), trees, row_multiple=row_multiple)


def forecast(config: StageConfig, trees: TreeSource, shape: RowShape, steps: int | None) -> Simulation:
    """What the stage's plan will do, on lengths alone."""
    return simulate(Planner(trees.lengths, shape, training_plan(config)), steps)


def describe_shape(config: StageConfig, trees: TreeSource, shape: RowShape) -> str:
    """One line: rows, lengths, and the prompts per step and fill to expect."""
    endless = config.train.epochs == 0
    expected = forecast(config, trees, shape, min(config.train.steps, _FORECAST_STEPS) if endless else None)
    packed = f", up to {shape.groups} prompts a row" if shape.groups > 1 else ""
    return (
        f"{shape.layout}: {shape.rows} rows of {shape.row_length} tokens a step, up to {shape.scored_length} scored"
        f"{packed}; {expected.prompts / expected.steps:.1f} prompts a step, fill {expected.fill:.1%}"
    )


def training_plan(config: StageConfig) -> FullRows | FixedPrompts:
    epochs = config.train.epochs or None
    if config.rows.batching == "prompts":
        return FixedPrompts(config.rows.prompts_per_step, config.seed, epochs)
    return FullRows(config.seed, epochs, config.rows.window)


def host_rows(
    trees: TreeSource,
    shape: RowShape,
    plan: FullRows | FixedPrompts | InOrder,
    *,
    reference: Float32[np.ndarray, "n N"] | None = None,
    prefetch: int = 2,
) -> Iterator[Rows]:
    """This process's share of the rows of every step; `shape` is that of all hosts together."""
    local = dataclasses.replace(shape, rows=shape.rows // jax.process_count())
    dataset = row_dataset(
        trees,
        local,
        plan,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
        reference=reference,
        prefetch=prefetch,
    )
    return iter(dataset)
