"""Rows from host to devices, ahead of the step, with the data position of what was actually consumed."""

import collections
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from prefjax.rows.arrays import Rows
from prefjax.training.mesh import row_sharding


def to_devices(mesh: Mesh, rows: Rows) -> Rows:
    """This process's NumPy rows as global arrays spread over ("data", "fsdp")."""
    sharding = row_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), rows)


class DeviceFeed:
    """Iterates device rows, keeping `depth` batches in flight.

    `get_state` is the position after the last batch handed out, not after those merely prefetched, so a restored
    feed continues with exactly the next batch.

    Args:
      source: iterator of NumPy `Rows` with get_state and set_state.
    """

    def __init__(self, source: Iterator[Rows], mesh: Mesh, *, depth: int = 2):
        self._source, self._mesh, self._depth = source, mesh, depth
        self._ahead = collections.deque()
        self._state = source.get_state()

    def __iter__(self):
        return self

    def __next__(self) -> Rows:
        while len(self._ahead) < self._depth:
            rows = next(self._source, None)
            if rows is None:
                break
            self._ahead.append((to_devices(self._mesh, rows), self._source.get_state()))
        if not self._ahead:
            raise StopIteration
        rows, self._state = self._ahead.popleft()
        return rows

    def close(self) -> None:
        """Stops the source's background thread."""
        self._ahead.clear()
        self._source.close()

    def get_state(self) -> dict[str, Any]:
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        self._ahead.clear()
        self._source.set_state(state)
        self._state = state
