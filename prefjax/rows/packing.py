"""Which trees share a row: vector first-fit-decreasing on lengths alone, and the row shape that suits a dataset.

A tree has a size vector and a row a capacity vector, in the order of `RESOURCES`. Pure NumPy; token ids are not needed.
C is the number of resources: 5 in layout `merged`, 4 in the others.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from prefjax.rows.arrays import LAYOUTS, Branches, RowShape
from prefjax.rows.trees import TokenTree

# The RowShape field that bounds each one; the last in layout `merged` alone.
RESOURCES = ("row_length", "scored_length", "groups", "prompt_length", "entries")
PACKED_LAYOUTS = ("packed_pairs", "shared_packed", "merged")  # several prompts per row
_UNBOUNDED = int(np.iinfo(np.int32).max)
_TARGET_FILL = 0.985  # of rows, for `suggest_shape`
_MOST_UNITS = 32  # it gives up on that fill beyond this many units
_SAMPLE = 4096  # trees in its simulated window


def node_lengths(tree: TokenTree) -> tuple[int, list[int], int, int]:
    """Tokens of the prompt, of every response, of the baseline and of the auxiliary branch (0 when absent)."""
    baseline, auxiliary = (0 if branch is None else len(branch) for branch in (tree.baseline, tree.auxiliary))
    return len(tree.prompt), [len(response) for response in tree.responses], baseline, auxiliary


@dataclasses.dataclass(frozen=True, eq=False)
class TreeLengths:
    """Tokens per node of every tree of a dataset of n trees; int32, 0 means the branch is absent."""

    prompt: Int[np.ndarray, "n"]
    responses: Int[np.ndarray, "n K"]
    baseline: Int[np.ndarray, "n"]
    auxiliary: Int[np.ndarray, "n"]

    @classmethod
    def of(cls, trees: Iterable[TokenTree]) -> "TreeLengths":
        """Measures trees."""
        return cls.stack([node_lengths(tree) for tree in trees])

    @classmethod
    def stack(cls, counts: Sequence[tuple[int, Sequence[int], int, int]]) -> "TreeLengths":
        """Stacks what `node_lengths` returned; K is the largest number of responses."""
        responses = np.zeros((len(counts), max((len(count[1]) for count in counts), default=1)), np.int32)
        for row, count in zip(responses, counts, strict=True):
            row[: len(count[1])] = count[1]
        prompt, baseline, auxiliary = (np.array([count[i] for count in counts], np.int32) for i in (0, 2, 3))
        return cls(prompt=prompt, responses=responses, baseline=baseline, auxiliary=auxiliary)

    @classmethod
    def among(cls, arrays: Mapping[str, np.ndarray]) -> "TreeLengths":
        """Its fields among arrays by name."""
        return cls(**{field.name: arrays[field.name] for field in dataclasses.fields(cls)})

    def __len__(self) -> int:
        return len(self.prompt)

    def branches(self, branches: Branches) -> Int[np.ndarray, "n N"]:
        """Lengths in slot order for the branches a run asks for; ValueError names the first tree that lacks one."""
        count = np.count_nonzero(self.responses, axis=1)
        if count.max(initial=0) > branches.responses:
            raise ValueError(
                f"example {int(np.argmax(count))} has {count.max()} responses, but branches.responses is "
                f"{branches.responses}: raise it or select responses first"
            )
        columns = [self.responses[:, : branches.responses]]
        columns += [np.zeros((len(self), branches.responses - columns[0].shape[1]), np.int32)]
        for name in ("baseline", "auxiliary"):
            if getattr(branches, name):
                lengths = getattr(self, name)
                if not lengths.all():
                    raise ValueError(
                        f"example {int(np.argmin(lengths))} has no {name} branch, but branches.{name} is True"
                    )
                columns.append(lengths[:, None])
        return np.concatenate(columns, axis=1)


def row_copies(layout: str, branches: Branches) -> int:
    """R / B: rows that one group of trees fills, N in layout `pairs` and 1 otherwise."""
    return branches.count if layout == "pairs" else 1


def real_tokens(lengths: TreeLengths, layout: str, branches: Branches) -> Int[np.ndarray, "n"]:
    """[n] tokens that the tree puts into rows under this layout: what `fill` counts."""
    branch = lengths.branches(branches)
    copies = np.count_nonzero(branch, axis=1) if layout in ("pairs", "packed_pairs") else 1
    return (lengths.prompt * copies + branch.sum(axis=1)).astype(np.int64)


def tree_sizes(lengths: TreeLengths, layout: str, branches: Branches) -> Int[np.ndarray, "n C"]:
    """[n, C] size vectors: tokens, scored tokens, groups, prompt tokens, entries that the tree takes from one row.

    In layout `pairs` a group fills N rows, so what must fit is its longest prompt + branch. In layout `merged` it is
    what a tree takes that has nothing in common with others.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, expected one of {LAYOUTS}")
    branch = lengths.branches(branches)
    if layout == "pairs":
        scored = branch.max(axis=1)
        tokens = lengths.prompt + scored
    else:
        scored = branch.sum(axis=1)
        tokens = real_tokens(lengths, layout, branches)
    entries = [scored] if layout == "merged" else []
    return np.stack([tokens, scored, np.ones_like(scored), lengths.prompt, *entries], axis=1).astype(np.int64)


def row_capacity(shape: RowShape) -> Int[np.ndarray, "C"]:
    """[C] capacity vector of one row; prompt tokens are unbounded when the run builds no prompt rows."""
    entries = [shape.entries] if shape.layout == "merged" else []
    bounds = [shape.row_length, shape.scored_length, shape.groups, shape.prompt_length or _UNBOUNDED, *entries]
    return np.array(bounds, np.int64)


def check_sizes(sizes: Int[np.ndarray, "n C"], capacity: Int[np.ndarray, "C"]) -> None:
    """Raises ValueError when some tree can never fit: says which, its size, how many more, and what to raise."""
    too_big = sizes > capacity
    if too_big.any():
        example = int(np.argmax(too_big.any(axis=1)))
        resource = int(np.argmax(too_big[example]))
        field = RESOURCES[resource]
        raise ValueError(
            f"example {example} needs {field} >= {sizes[example, resource]}, but it is {capacity[resource]} "
            f"({int(too_big.any(axis=1).sum())} of {len(sizes)} trees do not fit): raise {field} to "
            f"{sizes[:, resource].max()}, or drop or truncate long examples when the data is encoded"
        )


def first_fit_decreasing(
    sizes: Int[np.ndarray, "n C"], capacity: Int[np.ndarray, "C"]
) -> list[Int[np.ndarray, "members"]]:
    """Packs trees into rows: by tokens decreasing, each into the first row where its whole size vector fits.

    Returns the rows in the order they were opened, each as ascending indices into `sizes`. Ties keep their order, so
    the result is a pure function of the arguments. Raises ValueError when a tree exceeds the capacity.
    """
    check_sizes(sizes, capacity)
    if capacity[2] == 1:  # one group per row: nothing to choose
        return list(np.arange(len(sizes))[:, None])
    free = np.empty((len(sizes), len(capacity)), np.int64)
    free_tokens = np.empty(len(sizes), np.int64)  # contiguous copy of free[:, 0]; -1 closes a row without free groups
    members: list[list[int]] = []
    for tree in np.argsort(-sizes[:, 0], kind="stable").tolist():
        size = sizes[tree]
        opened = len(members)
        row = opened
        if opened:
            fits = free_tokens[:opened] >= size[0]
            row = int(fits.argmax())
            if not fits[row]:
                row = opened
            elif (free[row] < size).any():  # tokens rarely are not what binds; only then look at every resource
                fits &= (free[:opened] >= size).all(axis=1)
                row = int(fits.argmax()) if fits.any() else opened
        if row == opened:
            members.append([])
            free[row] = capacity
        members[row].append(tree)
        free[row] -= size
        free_tokens[row] = free[row, 0] if free[row, 2] > 0 else -1
    return [np.sort(np.array(row)) for row in members]


class Suggestion(NamedTuple):
    """A row shape for a dataset, and what to expect of it."""

    shape: RowShape
    fill: float  # real tokens / (R * T) over the simulated rows
    too_long: int  # trees longer than a row may be; the run refuses them: drop or truncate them when encoding


def suggest_shape(
    lengths: TreeLengths,
    layout: str,
    branches: Branches,
    rows: int,
    *,
    row_length: int | None = None,
    max_row_length: int | None = None,
    prompt_rows: bool = False,
    multiple: int = 128,
) -> Suggestion:
    """Suggests T, S, G (and Q, and E) by simulating the packing of a sample of the trees.

    T is 1.1 x the 95th percentile of the tree sizes (the rule of arXiv 2410.20305) times the smallest whole number that
    reaches a fill of 98.5 %, rounded up to `multiple`; it is never below the longest tree unless `max_row_length` says
    so. S, Q and E (in steps of `multiple`) and G are the smallest bounds that cost less than 0.1 % of fill. In the
    layouts that do not pack, every bound is the largest tree's.

    rows            B, copied into the shape
    row_length      T where it is already decided; only the other bounds are suggested then
    max_row_length  upper bound on T; longer trees are counted in `too_long` and left out of the simulation
    prompt_rows     also suggest Q
    """
    sizes = tree_sizes(lengths, layout, branches)
    if row_length is not None and max_row_length is not None:
        raise ValueError("row_length already decides T: leave max_row_length out")
    limit = row_length or max_row_length or _UNBOUNDED
    kept = sizes[:, 0] <= limit
    if not kept.any():
        raise ValueError(
            f"none of {len(lengths)} trees fits a row of {limit} tokens, the shortest takes {sizes[:, 0].min()}: raise "
            "rows.row_length, or truncate by data.encoding.truncation"
        )
    longest = sizes[kept].max(axis=0).tolist()
    sample = np.random.default_rng(0).permutation(np.flatnonzero(kept))[:_SAMPLE]
    sizes, real = sizes[sample], real_tokens(lengths, layout, branches)[sample]

    def fill(capacity: Sequence[int]) -> float:
        rows = first_fit_decreasing(sizes, np.array(capacity))
        return _emitted_fill(real, rows, row_copies(layout, branches) * capacity[0])

    if layout in PACKED_LAYOUTS:
        length = row_length or _packed_row_length(sizes, longest[0], limit, multiple, fill)
        unbounded = [_UNBOUNDED] * (sizes.shape[1] - 1)
        bounds = _tightest([length, *unbounded], sizes, longest, multiple, fill)
    else:
        length = row_length or min(_round_up(longest[0], multiple), limit)
        bounds = [length, _round_up(longest[1], multiple), 1, _round_up(longest[3], multiple)]
    length, scored, groups, prompt = bounds[0], min(bounds[1], bounds[0]), bounds[2], min(bounds[3], bounds[0])
    shape = RowShape(layout, rows, length, scored, groups, branches, prompt if prompt_rows else 0)
    if layout == "merged":
        shape = dataclasses.replace(shape, entries=bounds[4])
    return Suggestion(shape, fill(row_capacity(shape).tolist()), int((~kept).sum()))


def unbounded(shape: RowShape) -> RowShape:
    """The shape with nothing but T to bound what is packed; prompt rows, where there are, are as long."""
    prompt_length = shape.row_length if shape.prompt_length else 0
    bounds = {"scored_length": _UNBOUNDED, "groups": _UNBOUNDED, "entries": _UNBOUNDED}
    return dataclasses.replace(shape, prompt_length=prompt_length, **bounds)


def suggest_for_units(shape: RowShape, sizes: Int[np.ndarray, "n C"], trunk: int, *, multiple: int = 128) -> RowShape:
    """Suggests S, G, E (and Q) for units of layout `merged` as `suggest_shape` does for trees.

    shape  its layout, T and whether it has prompt rows stay
    sizes  of units that were planned for `unbounded(shape)`
    trunk  tokens of every row that no unit's size counts
    """
    sample = sizes[np.random.default_rng(0).permutation(len(sizes))[:_SAMPLE]]
    length = shape.row_length - trunk

    def fill(capacity: Sequence[int]) -> float:
        return _emitted_fill(sample[:, 0], first_fit_decreasing(sample, np.array(capacity)), length)

    bounds = _tightest([length] + [_UNBOUNDED] * 4, sample, sizes.max(axis=0).tolist(), multiple, fill)
    return dataclasses.replace(
        shape,
        scored_length=min(bounds[1], shape.row_length),
        groups=bounds[2],
        prompt_length=min(bounds[3], shape.row_length) if shape.prompt_length else 0,
        entries=bounds[4],
    )


def _emitted_fill(tokens: Int[np.ndarray, "n"], rows: Iterable[np.ndarray], length: int) -> float:
    """Fill of the rows a run would emit: the emptiest row waits for the next window."""
    packed = sorted(int(tokens[row].sum()) for row in rows)
    emitted = packed[1:] or packed
    return sum(emitted) / float(len(emitted) * length)


def _round_up(tokens: int | float, multiple: int) -> int:
    return multiple * math.ceil(tokens / multiple)


def _packed_row_length(
    sizes: Int[np.ndarray, "n C"], longest: int, limit: int, multiple: int, fill: Callable[[Sequence[int]], float]
) -> int:
    """T: the first whole number of units that fills rows as wanted, or the one that fills them best."""
    unit = 1.1 * float(np.percentile(sizes[:, 0], 95))
    fills: dict[int, float] = {}
    for times in range(1, _MOST_UNITS + 1):
        length = min(_round_up(max(unit * times, longest), multiple), limit)
        fills[length] = fill([length] + [_UNBOUNDED] * (sizes.shape[1] - 1))
        if fills[length] >= _TARGET_FILL or length == limit:
            break
    return max(fills, key=lambda length: fills[length])


def _tightest(
    bounds: Sequence[int],
    sizes: Int[np.ndarray, "n C"],
    longest: Sequence[int],
    multiple: int,
    fill: Callable[[Sequence[int]], float],
) -> list[int]:
    """The bounds on all but tokens made as small as they can be at almost the same fill."""
    bounds = list(bounds)
    least = fill(bounds) - 1e-3
    used = np.array([sizes[row].sum(axis=0) for row in first_fit_decreasing(sizes, np.array(bounds))]).max(axis=0)
    for resource, step in enumerate([multiple, 1, multiple, multiple][: len(bounds) - 1], start=1):
        low, high = (math.ceil(bound[resource] / step) for bound in (longest, np.maximum(longest, used)))
        while low < high:  # bisection: the fill grows with the bound
            middle = (low + high) // 2
            trial = [*bounds[:resource], middle * step, *bounds[resource + 1 :]]
            low, high = (low, middle) if fill(trial) >= least else (middle + 1, high)
        bounds[resource] = high * step
    return bounds
