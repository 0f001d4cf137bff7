"""From token trees on disk to a resumable stream of `Rows`: sample, fetch, lay out, prefetch (Grain)."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Float32

from prefjax.rows.arrays import RowShape
from prefjax.rows.layout import attach_reference, build_rows
from prefjax.rows.mismatch import MismatchedTrees
from prefjax.rows.steps import Batching, Step, StepSampler, Window, sampled
from prefjax.rows.store import TreeSource


class _Taken(NamedTuple):
    """One step: the rows of this host, and the records of all hosts."""

    rows: Step
    records: list[int]


class _SampledSteps(grain.IterDataset):
    """This host's rows of every step, as record indices."""

    def __init__(self, sampler: StepSampler, content_hash: str, own: slice):
        super().__init__()
        self._settings = (sampler, content_hash, own)

    def __iter__(self) -> grain.DatasetIterator:
        return _SampledStepsIterator(*self._settings)


class _SampledStepsIterator(grain.DatasetIterator):
    """State: where the current window begins, and how many of its steps were taken. A resumed run samples it again."""

    def __init__(self, sampler: StepSampler, content_hash: str, own: slice):
        super().__init__()
        self._sampler = sampler
        self._identity = f"{content_hash[:16]}-{sampler.fingerprint}"
        self._slice = own
        self._position, self._carried, self._step = 0, [], 0
        self._window: Window | None = None

    def __next__(self) -> _Taken:
        self._assert_not_closed()
        if self._window is None:
            self._window = self._sampler.next_window(self._position, self._carried)
        if self._window.steps and self._step == len(self._window.steps):
            self._position, self._carried, self._step = self._window.position, self._window.carried, 0
            self._window = self._sampler.next_window(self._position, self._carried)
        if not self._window.steps:
            raise StopIteration
        self._step += 1
        step = self._window.steps[self._step - 1]
        return _Taken(step[self._slice], [record for row in step for record in row])

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
                "shape, the batching rule, its seed, or the rows per step have changed"
            )
        self._position, self._carried, self._step = state["position"], list(state["carried"]), state["step"]
        self._window = None


def row_dataset(
    source: TreeSource,
    shape: RowShape,
    batching: Batching,
    *,
    host_index: int = 0,
    host_count: int = 1,
    row_multiple: int = 1,
    reference: Float32[np.ndarray, "n N"] | None = None,
    prefetch: int = 2,
) -> grain.IterDataset:
    """An iterable of `Rows` of one static shape, for one host of a run.

    Its iterators have get_state() and set_state(): small JSON-able dicts, exact at every step, so grain.checkpoint and
    Orbax can save them. A state is good on any number of hosts, and for any `row_multiple`.

    shape      of a step's rows over all hosts
    batching   FullRows (training: the same full rows every step), FixedPrompts (training: the same prompts per step
               in every layout) or InOrder (evaluation: one pass, last step padded with invalid rows)
    host_*     this host takes its share of every step's rows, one after the other
    row_multiple  rows of padding follow those of the shape until their number is a multiple of it, and of host_count
    reference  precomputed log-probs of every branch in nats; fills rows.reference_logp
    prefetch   steps built ahead by a background thread, which an iterator's close() stops; 0 builds them when asked

    Raises ValueError when a tree does not fit the shape, or the batching rule cannot be carried out.
    """
    if not 0 <= host_index < host_count:
        raise ValueError(f"host_index={host_index} is not in [0, host_count={host_count})")
    if reference is not None and reference.shape != (len(source), shape.branches.count):
        raise ValueError(
            f"the reference table has shape {reference.shape}, but {len(source)} trees with {shape.branches.count} "
            "branches need one row per tree and one column per branch: score this dataset with these branches"
        )
    sampler = sampled(source, shape, batching)
    count = padded_rows(shape.rows, math.lcm(row_multiple, host_count)) // host_count
    own = slice(host_index * count, (host_index + 1) * count)
    steps = _SampledSteps(sampler, source.content_hash, own)
    shape = dataclasses.replace(shape, rows=count)
    rows = steps.map(functools.partial(_build, source=source, shape=shape, reference=reference))
    return grain.experimental.ThreadPrefetchIterDataset(rows, prefetch_buffer_size=prefetch)


def padded_rows(rows: int, multiple: int) -> int:
    """The next multiple."""
    return -(-rows // multiple) * multiple


def _build(step: _Taken, *, source: TreeSource, shape: RowShape, reference: np.ndarray | None) -> Any:
    trees = source.of_step(step.records) if isinstance(source, MismatchedTrees) else source
    rows = build_rows([[trees[record] for record in row] for row in step.rows], shape)
    return rows if reference is None else attach_reference(rows, reference)
