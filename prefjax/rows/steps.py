"""Which records make up every step of a run, sampled on lengths alone.

The steps are global: every host computes the same steps and takes its own slice of their rows, so hosts never disagree
about the number of steps, and a run is the same on any number of hosts and devices.
"""

import dataclasses
import functools
import hashlib
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prefjax.rows.arrays import RowShape
from prefjax.rows.packing import (
    PACKED_LAYOUTS,
    TreeLengths,
    check_sizes,
    first_fit_decreasing,
    real_tokens,
    row_capacity,
    row_copies,
    tree_sizes,
)
from prefjax.rows.store import TreeSource
from prefjax.rows.units import Units, units_of

Step = list[list[int]]  # the step's rows over all hosts, each a list of record indices


@dataclasses.dataclass(frozen=True)
class FullRows:
    """Batching rule `rows`: every step has the same number of full rows, so its number of prompts varies.

    seed    of the global shuffle; every epoch has its own permutation. None: every epoch in the trees' order, each in
            the first row of its step where it fits
    epochs  passes over the data, or None for an endless run
    window  trees packed together; at least two steps' worth is always taken, at most one epoch otherwise. Unread
            without a seed
    before  numbers of epochs after which the run was to end before it was made longer: no window reaches over those
    """

    seed: int | None
    epochs: int | None = None
    window: int = 4096
    before: tuple[int, ...] = dataclasses.field(default=(), repr=False)


@dataclasses.dataclass(frozen=True)
class FixedPrompts:
    """Batching rule `prompts`: every step has the same prompts in every layout, whatever number of rows they need.

    prompts  per step, over all hosts; only the last step of a finite run may have fewer
    seed     of the global shuffle; every epoch has its own permutation. None: every epoch in the trees' order
    epochs   passes over the data, or None for an endless run
    before   numbers of epochs after which the run was to end before it was made longer: no step reaches over those
    """

    prompts: int
    seed: int | None
    epochs: int | None = None
    before: tuple[int, ...] = dataclasses.field(default=(), repr=False)


@dataclasses.dataclass(frozen=True)
class InOrder:
    """One pass for evaluation and scoring: every prompt exactly once, every step holds the next records in order."""


Batching = FullRows | FixedPrompts | InOrder


class Window(NamedTuple):
    """Steps batched together, and where the next window begins: the small state that a resumed run needs.

    Where records are packed in units, `position` and `carried` speak of units; with `FixedPrompts` of records.
    """

    steps: list[Step]
    position: int  # records taken from the shuffled stream so far
    carried: list[int]  # records held back, to be packed with the next window


@functools.lru_cache(maxsize=2)
def _permutation(records: int, seed: int | None, epoch: int) -> np.ndarray:
    return np.arange(records) if seed is None else np.random.default_rng([seed, epoch]).permutation(records)


def sampled(trees: TreeSource, shape: RowShape, batching: Batching) -> "StepSampler":
    """The sampler of a source's steps, in units where the shape asks for them and the order is free."""
    return StepSampler(trees.lengths, shape, batching, planned(trees, shape, batching))


def planned(trees: TreeSource, shape: RowShape, batching: Batching) -> Units | None:
    """The units that the steps are made of; None where they are made of single records."""
    ordered = not isinstance(batching, InOrder) and batching.seed is None
    return None if shape.layout != "merged" or not shape.merge_from or ordered else units_of(trees, shape)


class StepSampler:
    """Turns (position, carried) into the next window of steps; a pure function of its constructor's arguments."""

    def __init__(self, lengths: TreeLengths, shape: RowShape, batching: Batching, units: Units | None = None):
        """Raises ValueError when some tree can never fit the shape, or the batching rule cannot be carried out."""
        if not len(lengths):
            raise ValueError("the dataset holds no trees")
        self.shape, self.batching = shape, batching
        self.rows_per_step = shape.rows
        self.sizes = tree_sizes(lengths, shape.layout, shape.branches)
        self.capacity = row_capacity(shape)
        self.real_tokens = real_tokens(lengths, shape.layout, shape.branches)
        check_sizes(self.sizes, self.capacity)
        self._units = units
        # What is packed: records or units, the tokens that all units begin with taken from the row once.
        self._packed, self._room = self.sizes, self.capacity.copy()
        if units is not None:
            self._packed = units.sizes
            self._room[0] -= units.sharing.trunk
        self._streamed = len(lengths) if isinstance(batching, FixedPrompts) else len(self._packed)  # in an epoch
        epochs = (1,) if isinstance(batching, InOrder) else (*batching.before, batching.epochs)
        counted = [count for count in epochs if count is not None]
        if counted and counted[0] < 1:
            raise ValueError(f"epochs={counted[0]}: it must be at least 1, or None for an endless run")
        if None in epochs[:-1] or sorted(set(counted)) != counted:
            raise ValueError(f"epochs={epochs[-1]} after {epochs[:-1]}: a run only becomes longer")
        # Of the stream of epochs, and where it was to end before.
        self._ends = [sys.maxsize if count is None else self._streamed * count for count in epochs]
        match batching:
            case FixedPrompts():
                self._prompts = batching.prompts
                if not 1 <= batching.prompts <= self.rows_per_step * shape.groups:
                    raise ValueError(
                        f"prompts={self._prompts} per step do not fit {self.rows_per_step} rows of "
                        f"{shape.groups} groups"
                    )
            case FullRows():
                if batching.window < 1:
                    raise ValueError(f"window={batching.window} trees: it must be at least 1")
                step = self.rows_per_step * shape.row_length / float(self._packed[:, 0].mean())
                trees = len(lengths) / len(self._packed)  # that are packed as one
                self._window = max(min(math.ceil(batching.window / trees), len(self._packed)), math.ceil(2 * step))
                self._prompts = self.rows_per_step  # what a full step holds when a row holds one prompt
        rows = None if isinstance(batching, FixedPrompts) else self.rows_per_step  # more of them are padding there
        endless = batching if isinstance(batching, InOrder) else dataclasses.replace(batching, epochs=None, before=())
        settings = (endless, shape.layout, self.capacity.tolist(), rows)
        digest = hashlib.sha256(self.sizes.tobytes() + repr(settings).encode())
        if units is not None:
            digest.update(repr(units.members).encode())
        self.fingerprint = digest.hexdigest()[:16]

    def next_window(self, position: int, carried: Sequence[int]) -> Window:
        """The steps that follow once `position` records were drawn and `carried` held back; none at the end."""
        end = next((end for end in self._ends if end > position), self._ends[-1])
        if isinstance(self.batching, InOrder):
            return self._in_order(position, end)
        if isinstance(self.batching, FixedPrompts) or self.shape.layout not in PACKED_LAYOUTS:
            return self._fixed_prompts(position, end)
        if self.batching.seed is None:
            return self._in_order(position, end)
        return self._full_rows(position, carried, end)

    def steps(self) -> Iterator[Step]:
        """All steps from the start."""
        window = self.next_window(0, [])
        while window.steps:
            yield from window.steps
            window = self.next_window(window.position, window.carried)

    def tokens_of(self, row: Sequence[int]) -> int:
        """What the records of a row take of it."""
        if self._units is not None:
            return int(self._units.sharing.size(row)[0])
        return int(self.real_tokens[row].sum())

    def _draw(self, position: int, count: int, end: int) -> list[int]:
        """The next records of the stream of epochs, or units where steps are made of them; fewer at its end."""
        drawn: list[int] = []
        while count > 0 and position < end:
            epoch, start = divmod(position, self._streamed)
            drawn += self._epoch(epoch)[start : start + count].tolist()
            count -= min(count, self._streamed - start)
            position += self._streamed - start
        return drawn

    def _epoch(self, epoch: int) -> np.ndarray:
        order = _permutation(len(self._packed), self.batching.seed, epoch)
        if self._units is None or self._streamed == len(order):
            return order
        return np.concatenate([self._units.members[unit] for unit in order])

    def _records(self, packed: Iterable[int]) -> list[int]:
        """The records of units, or of records themselves."""
        if self._units is None:
            return list(packed)
        return [record for unit in packed for record in self._units.members[unit]]

    def _full_rows(self, position: int, carried: Sequence[int], end: int) -> Window:
        """Packs a window by first-fit-decreasing and emits whole steps of its rows in random order.

        The emptiest rows, at least one and as many as leave whole steps, go back and are packed again with the next
        window. Rows that hold the records that waited longest leave first, so none waits for ever.
        """
        records, held = list(carried), []
        while True:
            drawn = self._draw(position, self._window, end)
            records += drawn
            position += len(drawn)
            rows = first_fit_decreasing(self._packed[records], self._room)
            if len(rows) > self.rows_per_step or position == end:
                break
        if position < end:
            tokens = self._packed[records, 0]
            rows.sort(key=lambda row: (min(row[0], len(carried)), -tokens[row].sum()))
            emitted = (len(rows) - 1) // self.rows_per_step * self.rows_per_step
            rows, held = rows[:emitted], rows[emitted:]
        np.random.default_rng([self.batching.seed, position, 1]).shuffle(rows)
        named = [self._records(records[i] for i in row) for row in rows]
        steps = [named[i : i + self.rows_per_step] for i in range(0, len(named), self.rows_per_step)]
        return Window(steps, position, [records[i] for i in sorted(int(i) for row in held for i in row)])

    def _fixed_prompts(self, position: int, end: int) -> Window:
        """The next prompts of the stream, packed; rows are ordered by their first prompt.

        A unit that reaches over the end of the step is packed as what of it is in this one.
        """
        records = self._draw(position, self._prompts, end)
        if not records:
            return Window([], position, [])
        together, sizes = [[record] for record in records], self.sizes[records]
        if self._units is not None:
            together, sizes = self._units.parts(records)
        rows = sorted(first_fit_decreasing(sizes, self._room), key=lambda row: int(row[0]))
        if len(rows) > self.rows_per_step:
            raise ValueError(
                f"step {position // self._prompts} needs {len(rows)} rows for its {len(records)} prompts, but there "
                f"are {self.rows_per_step}: raise rows to what `rows_for_prompts` finds, or ask for fewer prompts"
            )
        step = [[record for i in row for record in together[i]] for row in rows]
        return Window([step], position + len(records), [])

    def _in_order(self, position: int, end: int) -> Window:
        """One step of the next records, each in the first row where it fits, up to the first that fits nowhere."""
        rows: Step = [[] for _ in range(self.rows_per_step)]
        free = np.tile(self._room, (self.rows_per_step, 1))
        while position < end:
            packed = position % self._streamed
            fits = (free >= self._packed[packed]).all(axis=1)
            row = int(fits.argmax())
            if not fits[row]:
                break
            rows[row] += self._records([packed])
            free[row] -= self._packed[packed]
            position += 1
        return Window([[row for row in rows if row]] if rows[0] else [], position, [])


class Simulation(NamedTuple):
    """What a batching rule does with a dataset, counted over all hosts."""

    steps: int
    prompts: int  # in all steps together
    fewest_prompts: int  # in one step
    most_prompts: int
    most_rows: int  # that one step fills with at least one prompt
    fill: float  # real tokens / (R * T), padded rows included


def simulate(sampler: StepSampler, steps: int | None = None) -> Simulation:
    """Takes steps on lengths alone: all of them, or the first `steps`. An endless rule needs `steps`."""
    if steps is None and not isinstance(sampler.batching, InOrder) and sampler.batching.epochs is None:
        raise ValueError("the batching is endless (epochs is None): say how many steps to simulate")
    prompts: list[int] = []
    rows: list[int] = []
    tokens = 0
    for count, step in enumerate(sampler.steps()):
        if count == steps:
            break
        prompts.append(sum(len(row) for row in step))
        rows.append(len(step))
        tokens += sum(map(sampler.tokens_of, step))
    shape = sampler.shape
    row_tokens = sampler.rows_per_step * row_copies(shape.layout, shape.branches) * shape.row_length
    return Simulation(
        steps=len(prompts),
        prompts=sum(prompts),
        fewest_prompts=min(prompts),
        most_prompts=max(prompts),
        most_rows=max(rows),
        fill=tokens / (len(prompts) * row_tokens),
    )


def rows_for_prompts(
    lengths: TreeLengths,
    shape: RowShape,
    batching: FixedPrompts,
    *,
    steps: int | None = None,
    units: Units | None = None,
) -> int:
    """B: the rows that hold every step of `FixedPrompts`. `shape.rows` is not read.

    Simulates all steps, or the first `steps` (an endless rule needs them).
    """
    unbounded = dataclasses.replace(shape, rows=batching.prompts)  # one prompt per row always fits
    return simulate(StepSampler(lengths, unbounded, batching, units), steps).most_rows
