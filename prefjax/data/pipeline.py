"""From token trees on disk to a resumable stream of `Rows`: plan, fetch, lay out, prefetch (Grain)."""

import functools
from typing import Any

import grain
import numpy as np
from jaxtyping import Float32

from prefjax.data.layout import attach_reference, build_rows
from prefjax.data.planning import Plan, Planner, Step, Window
from prefjax.data.rows import RowShape
from prefjax.data.store import TreeSource


class _PlannedSteps(grain.IterDataset):
    """This host's rows of every step, as record indices."""

    def __init__(self, planner: Planner, content_hash: str, host_index: int):
        super().__init__()
        self._settings = (planner, content_hash, host_index)

    def __iter__(self) -> grain.DatasetIterator:
        return _PlannedStepsIterator(*self._settings)


class _PlannedStepsIterator(grain.DatasetIterator):
    """State: where the current window begins, and how many of its steps were taken. A resumed run plans it again."""

    def __init__(self, planner: Planner, content_hash: str, host_index: int):
        super().__init__()
        self._planner = planner
        self._identity = f"{content_hash[:16]}-{planner.fingerprint}"
        self._slice = slice(host_index * planner.shape.rows, (host_index + 1) * planner.shape.rows)
        self._position, self._carried, self._step = 0, [], 0
        self._window: Window | None = None

    def __next__(self) -> Step:
        self._assert_not_closed()
        if self._window is None:
            self._window = self._planner.next_window(self._position, self._carried)
        if self._window.steps and self._step == len(self._window.steps):
            self._position, self._carried, self._step = self._window.position, self._window.carried, 0
            self._window = self._planner.next_window(self._position, self._carried)
        if not self._window.steps:
            raise StopIteration
        self._step += 1
        return self._window.steps[self._step - 1][self._slice]

    def get_state(self) -> dict[str, Any]:
        return {
            "identity": self._identity,
            "position": self._position,
            "carried": list(self._carried),
            "step": self._step,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        if state["identity"] != self._identity:
            raise ValueError(
                f"the iterator state belongs to {state['identity']}, this run is {self._identity}: the data, the row "
                "shape, the batching rule, its seed or epochs, or the rows per step over all hosts have changed"
            )
        self._position, self._carried, self._step = state["position"], list(state["carried"]), state["step"]
        self._window = None


def row_dataset(
    source: TreeSource,
    shape: RowShape,
    plan: Plan,
    *,
    host_index: int = 0,
    host_count: int = 1,
    reference: Float32[np.ndarray, "n N"] | None = None,
    prefetch: int = 2,
) -> grain.IterDataset:
    """An iterable of `Rows` of one static shape, for one host of a run.

    Its iterators have get_state() and set_state(): small JSON-able dicts, exact at every step, so grain.checkpoint and
    Orbax can save them. A state is good on any number of hosts that together produce the same rows per step.

    plan       FullRows (training: the same full rows every step), FixedPrompts (training: the same prompts per step
               in every layout) or InOrder (evaluation: one pass, last step padded with invalid rows)
    host_*     this host takes rows [host_index * B, (host_index + 1) * B) of every step of B * host_count rows
    reference  precomputed log-probs of every branch in nats; fills rows.reference_logp
    prefetch   steps built ahead by a background thread, which an iterator's close() stops; 0 builds them when asked

    Raises ValueError when a tree does not fit the shape, or the plan cannot be carried out.
    """
    if not 0 <= host_index < host_count:
        raise ValueError(f"host_index={host_index} is not in [0, host_count={host_count})")
    if reference is not None and reference.shape != (len(source), shape.branches.count):
        raise ValueError(
            f"the reference table has shape {reference.shape}, but {len(source)} trees with {shape.branches.count} "
            "branches need one row per tree and one column per branch: score this dataset with these branches"
        )
    planner = Planner(source.lengths, shape, plan, host_count)
    steps = _PlannedSteps(planner, source.content_hash, host_index)
    rows = steps.map(functools.partial(_build, source=source, shape=shape, reference=reference))
    return grain.experimental.ThreadPrefetchIterDataset(rows, prefetch_buffer_size=prefetch)


def _build(step: Step, *, source: TreeSource, shape: RowShape, reference: np.ndarray | None) -> Any:
    rows = build_rows([[source[record] for record in row] for row in step], shape)
    return rows if reference is None else attach_reference(rows, reference)
