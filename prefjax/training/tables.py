"""All trees once, in order, over all hosts: the one loop behind evaluation, the reference's scores, and every table."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float32
from tqdm import tqdm

from prefjax.rows.arrays import Branches, Rows, RowShape
from prefjax.rows.packing import suggest_shape, tree_sizes
from prefjax.rows.steps import InOrder
from prefjax.rows.store import TreeSource
from prefjax.training.batches import host_rows
from prefjax.training.feed import to_devices
from prefjax.training.mesh import row_shards


def rows_once(
    mesh: Mesh, trees: TreeSource, shape: RowShape, *, reference: Float32[np.ndarray, "n N"] | None = None
) -> Iterator[Rows]:
    """Rows on the devices that hold every tree once.

    Args:
      shape: of a step's rows over all hosts.
      reference: log-probs of every branch, where rows carry them.
    """
    batches = host_rows(mesh, trees, shape, InOrder(), reference=reference)
    try:
        for rows in batches:
            yield to_devices(mesh, rows)
    finally:
        batches.close()


def over_trees(
    read: Callable[[Rows], Any], mesh: Mesh, trees: TreeSource, shape: RowShape, *, bar: tqdm | None = None
) -> Any:
    """What is read of every tree: a table [n, ...] float32 for every array [B, G, ...] that `read` returns.

    Args:
      read: rows on the devices -> arrays, compiled by the caller.
      shape: of a step's rows over all hosts.
      bar: counts trees.
    """
    tables, structure = [], None
    for rows in rows_once(mesh, trees, shape):
        values, ids = multihost_utils.process_allgather((read(rows), rows.example_id), tiled=True)
        leaves, structure = jax.tree.flatten(values)
        real = ids >= 0
        tables = tables or [np.full((len(trees), *leaf.shape[2:]), np.nan, np.float32) for leaf in leaves]
        for table, leaf in zip(tables, leaves, strict=True):
            table[ids[real]] = leaf[real]
        if bar is not None:
            bar.update(int(real.sum()))
    return jax.tree.unflatten(structure, tables)


def shape_once(trees: TreeSource, mesh: Mesh, *, tokens_per_step: int = 16_384) -> RowShape:
    """A shape for a pass over trees of any size; lengths are rounded up, so that few programs are compiled."""
    branches, shards = Branches(trees.lengths.responses.shape[1]), row_shards(mesh)
    longest = int(tree_sizes(trees.lengths, "shared_packed", branches)[:, 0].max())
    limit = max(tokens_per_step // shards, longest)
    tight = suggest_shape(trees.lengths, "shared_packed", branches, shards, max_row_length=limit).shape
    length = round_up(tight.row_length)
    return RowShape(
        "shared_packed",
        max(1, tokens_per_step // (length * shards)) * shards,
        length,
        round_up(tight.scored_length),
        round_up(tight.groups),
        branches,
    )


def round_up(count: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, ...: shapes that are compiled stay few, and a third at most is padding."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 else power
