"""Which rows a stage trains and evaluates on: prepared trees, the branches of a run, its static shape, its batching."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float32

from prefjax.data.config import DataConfig
from prefjax.data.prepare import full_account, prepare, short_account
from prefjax.data.tokenizers import Tokenizer
from prefjax.requirements import Requirements
from prefjax.rows.arrays import Branches, Rows, RowShape
from prefjax.rows.mismatch import mismatched_baselines
from prefjax.rows.packing import real_tokens, row_copies, suggest_for_units, suggest_shape, tree_sizes, unbounded
from prefjax.rows.pipeline import padded_rows, row_dataset
from prefjax.rows.steps import (
    FixedPrompts,
    FullRows,
    InOrder,
    Simulation,
    planned,
    rows_for_prompts,
    sampled,
    simulate,
)
from prefjax.rows.store import PreparedTrees, TreeSource
from prefjax.rows.units import sharing_of, units_of
from prefjax.training.config import RowsConfig, StageConfig, objective_of
from prefjax.training.mesh import host_share, row_shards

_FORECAST_STEPS = 200
_MERGED_AT_MOST = 100_000_000  # tokens of prompts and branches that are merged only to be counted: 400 MB


def data_directory(data: DataConfig, workdir: str | Path) -> Path:
    """Where a run keeps its prepared trees."""
    return Path(data.directory or Path(workdir) / "data")


def load_trees(
    config: StageConfig, tokenizer: Tokenizer, directory: Path, split: str, *, say: bool = True, full: bool = False
) -> PreparedTrees:
    """Prepared trees of one split, found in `directory` or made there. Prints what happened to every record if `say`,
    with tables of lengths if `full`.

    Of several processes the first prepares; the others wait and find its trees, so they must share `directory`.
    """
    requires = objective_of(config).requires
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices(f"prepared {split}")
    trees = prepare(config.data, requires, tokenizer, directory, split=split)
    if jax.process_count() > 1 and jax.process_index() == 0:
        multihost_utils.sync_global_devices(f"prepared {split}")
    if say:
        account = f"\n{full_account(trees)}\n" if full else f": {short_account(trees)}"
        print(f"[{split}] {trees.manifest['source']}{account}", flush=True)
        if repeated := trees.repeated:
            print(
                f"[{split}] {repeated} of {len(trees)} records are equal to an earlier one: counted twice", flush=True
            )
    return trees


def beyond_context(trees: TreeSource, context: int | None) -> dict[str, int]:
    """How many trees have a sequence of more tokens than `context`, and the longest; empty where there are none."""
    lengths = trees.lengths
    branches = np.column_stack([lengths.responses, lengths.baseline, lengths.auxiliary])
    longest = lengths.prompt + branches.max(axis=1)
    beyond = int((longest > (context or np.inf)).sum())
    return {"beyond_context": beyond, "longest": int(longest.max())} if beyond else {}


def in_training(trees: PreparedTrees, training: PreparedTrees) -> dict[str, int]:
    """How many trees have a prompt of the training data, and how many are in it as they are; empty without any."""
    prompts = int(np.isin(trees.prompt_hashes, training.prompt_hashes).sum())
    records = int(np.isin(trees.keys, training.keys).sum())
    return {"prompts_in_training": prompts, "records_in_training": records} if prompts else {}


def with_baselines(config: StageConfig, trees: TreeSource, *, training: bool = False) -> TreeSource:
    """The trees with KTO's mismatched responses where the objective reads them, else as they are.

    Args:
      training: they are trained on, so that `rows.mismatched` says which responses; else those drawn once.

    Raises:
      ValueError: one prompt holds more than half of the records; names the split and its size.
    """
    if not objective_of(config).requires.baseline:
        return trees
    try:
        return mismatched_baselines(trees, config.seed, of_step=training and config.rows.mismatched == "step")
    except ValueError as error:
        split = trees.manifest["split"] if isinstance(trees, PreparedTrees) else "drawn"
        raise ValueError(
            f"{config.objective} on the {split} split, {len(trees)} records: {error}, or give data.{split} more prompts"
        ) from error


def branches_of(trees: TreeSource, requires: Requirements) -> Branches:
    """The branches that hang below every prompt: K responses, and what the objective and the data add."""
    return Branches(
        responses=requires.group_size or trees.lengths.responses.shape[1],
        baseline=requires.baseline,
        auxiliary="auxiliary_logp" in requires.optional and bool(trees.lengths.auxiliary.any()),
        longest=int(trees.lengths.responses.max()) if requires.single_tokens else 0,
    )


def shape_for(
    rows: RowsConfig,
    requires: Requirements,
    trees: TreeSource,
    batching: FullRows | FixedPrompts,
    *,
    row_multiple: int = 1,
    prompt_rows: bool = False,
    steps: int | None = None,
) -> RowShape:
    """The static shape of a step's rows over all hosts.

    Args:
      row_multiple: `rows` of the shape is a multiple of it.
      prompt_rows: whether a value network of its own reads prompts alone.
      steps: of the run, where it is counted in steps; None: in epochs.
    """
    branches = branches_of(trees, requires)
    suggest = functools.partial(
        suggest_shape, trees.lengths, rows.layout, branches, row_multiple, prompt_rows=prompt_rows
    )
    if rows.row_length:
        shape = suggest(row_length=rows.row_length).shape
    else:
        # A row does not outgrow a micro-batch, unless a single tree does.
        longest = int(tree_sizes(trees.lengths, rows.layout, branches)[:, 0].max())
        share = rows.tokens_per_step // row_multiple
        shape = suggest(max_row_length=max(share, longest) if rows.batching == "rows" else None).shape
    if rows.merges:
        shape = dataclasses.replace(shape, merge_from=rows.merge_from)
        units = units_of(trees, unbounded(shape))
        shape = suggest_for_units(shape, units.sizes, units.sharing.trunk)
    if isinstance(batching, FixedPrompts):
        units = planned(trees, shape, batching)
        count = rows_for_prompts(trees.lengths, shape, batching, steps=steps, units=units)
    else:
        count = rows.tokens_per_step // (shape.row_length * row_copies(rows.layout, branches))
    count = max(1, math.ceil(count / row_multiple)) * row_multiple
    return dataclasses.replace(shape, rows=count, carries=requires.pair_numbers + requires.token_labels)


def training_shape(config: StageConfig, trees: TreeSource, before: tuple[int, ...] = ()) -> RowShape:
    """The static shape of a stage's rows over all hosts, whatever the mesh; `rows` is a multiple of `accumulation`."""
    return shape_for(
        config.rows,
        objective_of(config).requires,
        trees,
        training_batching(config, before),
        row_multiple=config.accumulation,
        prompt_rows=config.value_network == "own",
        steps=config.train.steps or None,
    )


def evaluation_shape(config: StageConfig, trees: TreeSource) -> RowShape:
    """The static shape for a pass over held-out trees: the rows that `tokens_per_step` holds, whatever the batching."""
    rows = dataclasses.replace(config.rows, batching="rows", prompts_per_step=0)
    return training_shape(dataclasses.replace(config, rows=rows, accumulation=1), trees)


def forecast(
    config: StageConfig, trees: TreeSource, shape: RowShape, steps: int | None, before: tuple[int, ...] = ()
) -> Simulation:
    """What the stage's batching will do, on lengths alone."""
    return simulate(sampled(trees, shape, training_batching(config, before)), steps)


def describe_shape(
    config: StageConfig, trees: TreeSource, shape: RowShape, before: tuple[int, ...] = (), *, row_multiple: int = 1
) -> str:
    """One line: rows, lengths, the prompts per step and fill to expect, and what a mesh needs besides.

    Args:
      before: see `training_batching`.
      row_multiple: the mesh's shards of rows times micro-batches.
    """
    endless = config.train.epochs == 0
    expected = forecast(config, trees, shape, min(config.train.steps, _FORECAST_STEPS) if endless else None, before)
    packed = f", up to {shape.groups} prompts a row" if shape.groups > 1 else ""
    order = ", in fixed order" if config.rows.order == "fixed" else ""
    padding = padded_rows(shape.rows, row_multiple) - shape.rows
    waste = (
        f"; {padding} rows of padding, as {row_multiple} must divide them: raise rows.tokens_per_step, or lower rows."
    )
    return (
        f"{shape.layout}: {shape.rows} rows of {shape.row_length} tokens a step, up to {shape.scored_length} scored"
        f"{packed}{order}; {expected.prompts / expected.steps:.1f} prompts a step, fill {expected.fill:.1%}"
        f"{f'{waste}row_length' if padding else ''}"
    )


def under_layout(config: StageConfig, layout: str) -> StageConfig:
    """The stage with its rows under another layout."""
    merge_from = config.rows.merge_from if layout == "merged" else RowsConfig.merge_from
    return dataclasses.replace(config, rows=dataclasses.replace(config.rows, layout=layout, merge_from=merge_from))


def can_be_merged(config: StageConfig, trees: TreeSource) -> bool:
    """Whether all prompts and branches, which merging holds in memory, are few enough to do it only to count."""
    branches = branches_of(trees, objective_of(config).requires)
    return int(real_tokens(trees.lengths, "pairs", branches).sum()) <= _MERGED_AT_MOST


def describe_merging(config: StageConfig, trees: TreeSource) -> str:
    """What an epoch takes as separate sequences, shared per record, merged, and merged in the units of the stage."""
    branches = branches_of(trees, objective_of(config).requires)
    sharing = sharing_of(trees, branches)
    shared = int(real_tokens(trees.lengths, "shared", branches).sum())
    merged = int(sharing.size(range(len(trees)))[0])
    times = lambda tokens: f"{tokens:,} ({sharing.separate / tokens:.2f} times fewer)"
    said = f"tokens an epoch: {sharing.separate:,} separate, {times(shared)} shared per record, {times(merged)} merged"
    if not config.rows.merges:
        return said
    shape = training_shape(config, trees)
    units = units_of(trees, shape)
    largest = max(map(len, units.members))
    return (
        f"{said}; {times(units.merged)} in {len(units):,} units that rows of {shape.row_length} hold, by "
        f"rows.merge_from={shape.merge_from}, the largest of {units.largest:,} tokens, or of {largest:,} records"
    )


def training_batching(config: StageConfig, before: tuple[int, ...] = ()) -> FullRows | FixedPrompts:
    """How a stage's records become steps.

    Args:
      before: numbers of epochs that the run was to have before it was made longer, see `rows.steps`.
    """
    epochs, seed = config.train.epochs or None, config.seed if config.rows.order == "shuffled" else None
    if config.rows.batching == "prompts":
        return FixedPrompts(config.rows.prompts_per_step, seed, epochs, before)
    return FullRows(seed, epochs, config.rows.window, before)


def host_rows(
    mesh: Mesh,
    trees: TreeSource,
    shape: RowShape,
    batching: FullRows | FixedPrompts | InOrder,
    *,
    accumulation: int = 1,
    reference: Float32[np.ndarray, "n N"] | None = None,
    prefetch: int = 2,
) -> Iterator[Rows]:
    """This process's share of the rows of every step; `shape` is that of all hosts together.

    Steps do not depend on the mesh: where it or `accumulation` needs more rows, they are padding.
    """
    host_index, host_count = host_share(mesh)
    dataset = row_dataset(
        trees,
        shape,
        batching,
        host_index=host_index,
        host_count=host_count,
        row_multiple=row_shards(mesh) * accumulation,
        reference=reference,
        prefetch=prefetch,
    )
    return iter(dataset)
