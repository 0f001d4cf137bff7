"""Records that share long prefixes as one unit of shuffling and packing, and what any records take together, merged.

All prompts and branches of a source are one radix tree, found in one pass over its tokens. What a set of records takes
from a row is the sum over the nodes of their paths, each once, so that plans are made on lengths of nodes alone. Pure
NumPy and Python; while the tree is made, every token of prompts and branches is in memory as 4 bytes.
"""

import dataclasses
import functools
import itertools
import weakref
from collections.abc import Iterable, Sequence

import numpy as np

from prefjax.rows.arrays import Branches, RowShape
from prefjax.rows.layout import branch_slots
from prefjax.rows.packing import row_capacity
from prefjax.rows.store import TreeSource
from prefjax.rows.trees import TokenTree, token_ids
from prefjax.rows.tries import common_prefix, spelling


@dataclasses.dataclass(frozen=True)
class Sharing:
    """What n trees have in common from their start.

    lengths    [M] tokens of every node of the radix tree of all prompts and branches
    nodes      of every tree, the nodes that it stands in
    scored     of every tree, those of them that hold a branch's tokens: what is below its prompt
    sums       [n, 3] of every tree, what adds up whatever is merged: groups (1), prompt tokens, entries
    separate   tokens of every prompt and branch as a sequence of its own
    links      (tokens in common, one tree, another): neighbours in the order of spelling
    trunk      tokens that every prompt begins with
    """

    lengths: np.ndarray
    nodes: tuple[frozenset[int], ...]
    scored: tuple[frozenset[int], ...]
    sums: np.ndarray
    separate: int
    links: tuple[tuple[int, int, int], ...]
    trunk: int

    def size(self, records: Sequence[int]) -> np.ndarray:
        """[5] what these trees take from a row, in the order of `packing.RESOURCES`."""
        tokens, scored = (
            sum(self.lengths[list(frozenset().union(*(nodes[record] for record in records)))].tolist())
            for nodes in (self.nodes, self.scored)
        )
        return np.array([tokens, scored, *self.sums[list(records)].sum(axis=0)], np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """Trees that are shuffled and packed together; every tree is in one unit.

    members  [U] indices of the trees of every unit, ascending; units are in the order of their first trees
    sizes    [U, 5] what a unit takes from a row, the trunk of all trees left out of its tokens
    sharing  of all trees
    """

    members: tuple[tuple[int, ...], ...]
    sizes: np.ndarray
    sharing: Sharing

    def __len__(self) -> int:
        return len(self.members)

    @functools.cached_property
    def of(self) -> np.ndarray:
        """[n] the unit of every tree."""
        unit = np.empty(len(self.sharing.nodes), np.int64)
        for number, members in enumerate(self.members):
            unit[list(members)] = number
        return unit

    def parts(self, records: Sequence[int]) -> tuple[list[list[int]], np.ndarray]:
        """Trees that follow each other and are of one unit, and their sizes as in `sizes`."""
        together = [list(group) for _, group in itertools.groupby(records, key=lambda record: self.of[record])]
        sizes = np.stack([self.sharing.size(group) for group in together])
        sizes[:, 0] -= self.sharing.trunk
        return together, sizes

    @property
    def largest(self) -> int:
        """Tokens of the largest unit."""
        return int(self.sizes[:, 0].max()) + self.sharing.trunk

    @property
    def merged(self) -> int:
        """Tokens of all units, each by itself."""
        return int((self.sizes[:, 0] + self.sharing.trunk).sum())


class _Radix:
    """A radix tree that grows by sequences in the order of their spelling."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.parents: list[int] = []
        self._path: list[int] = []  # nodes from the root to the end of the last sequence

    def _grow(self, start: int, end: int) -> None:
        self.parents.append(self._path[-1] if self._path else -1)
        self.starts.append(start)
        self.ends.append(end)
        self._path.append(len(self.ends) - 1)

    def _cut(self, depth: int) -> int:
        """Makes a node of the path end at this depth, and returns its place on the path.

        Of a node that is cut, the lower part keeps the number, as sequences end with it.
        """
        place = next(i for i, node in enumerate(self._path) if self.ends[node] >= depth)
        node = self._path[place]
        if self.ends[node] > depth:
            self.parents.append(self.parents[node])
            self.starts.append(self.starts[node])
            self.ends.append(depth)
            upper = len(self.ends) - 1
            self.starts[node], self.parents[node] = depth, upper
            self._path.insert(place, upper)
        return place

    def add(self, shared: int, prompt: int, length: int) -> tuple[int, int]:
        """The nodes that prompt and sequence end with, of one that has `shared` tokens in common with the last."""
        self._path = self._path[: self._cut(shared) + 1] if shared else []
        if shared < prompt:
            self._grow(shared, prompt)
        if max(shared, prompt) < length:
            self._grow(max(shared, prompt), length)
        return self._path[self._cut(prompt)], self._path[-1]

    def above(self, node: int, until: int = -1) -> Iterable[int]:
        """The node and those above it, below `until`."""
        while node != until:
            yield node
            node = self.parents[node]


def measure(trees: TreeSource | Sequence[TokenTree], branches: Branches) -> Sharing:
    """What the trees have in common from their start, in the branches that a run asks for."""
    chains, sums = [], np.zeros((len(trees), 3), np.int64)
    for record in range(len(trees)):
        tree = trees[record]
        prompt = len(tree.prompt)
        sums[record] = 1, prompt, 0
        for _, branch in branch_slots(tree, branches):
            chains.append((spelling(np.concatenate([tree.prompt, token_ids(branch)])), record, prompt))
            sums[record, 2] += len(branch)
    chains.sort(key=lambda chain: chain[0])
    radix, ends, links, last = _Radix(), [], [], np.zeros(0, ">u4")
    for i, (spelled, record, prompt) in enumerate(chains):
        ids = np.frombuffer(spelled, ">u4")
        shared = common_prefix(last, ids)
        ends.append((record, *radix.add(shared, prompt, len(ids))))
        if i and chains[i - 1][1] != record:
            links.append((shared, chains[i - 1][1], record))
        last = ids
    nodes: list[set[int]] = [set() for _ in range(len(trees))]
    scored: list[set[int]] = [set() for _ in range(len(trees))]
    for record, prompt_end, end in ends:
        nodes[record].update(radix.above(end))
        scored[record].update(radix.above(end, prompt_end))
    first = np.frombuffer(chains[0][0], ">u4")
    return Sharing(
        lengths=np.array(radix.ends) - np.array(radix.starts),
        nodes=tuple(map(frozenset, nodes)),
        scored=tuple(map(frozenset, scored)),
        sums=sums,
        separate=sum(len(spelled) // 4 for spelled, _, _ in chains),
        links=tuple(links),
        trunk=min(common_prefix(first, last), int(sums[:, 1].min())),
    )


def plan_units(sharing: Sharing, capacity: np.ndarray, merge_from: int) -> Units:
    """Puts trees together that have enough in common, those with most first, as far as a row holds them.

    Whoever outgrows the row is so cut where least is repeated.

    Args:
        capacity: [5] of a row.
        merge_from: tokens in common, beyond the trunk of all trees.
    """
    unit = list(range(len(sharing.nodes)))  # a tree's unit, by the number of one of its trees
    members = [[record] for record in unit]
    nodes, scored, sums = [set(x) for x in sharing.nodes], [set(x) for x in sharing.scored], sharing.sums.copy()
    weigh = lambda own: int(sharing.lengths[list(own)].sum())
    tokens, heads = [weigh(own) for own in nodes], [weigh(own) for own in scored]

    def find(record: int) -> int:
        while unit[record] != record:
            unit[record] = unit[unit[record]]
            record = unit[record]
        return record

    for shared, *both in sorted(sharing.links, key=lambda link: -link[0]):
        if shared - sharing.trunk < merge_from:
            break
        small, large = sorted(map(find, both), key=lambda record: len(nodes[record]))
        if small == large:
            continue
        joined = tokens[small] + tokens[large] - weigh(nodes[small] & nodes[large])
        heads_joined = heads[small] + heads[large] - weigh(scored[small] & scored[large])
        if (np.array([joined, heads_joined, *(sums[small] + sums[large])]) > capacity).any():
            continue
        unit[small], tokens[large], heads[large] = large, joined, heads_joined
        nodes[large] |= nodes[small]
        scored[large] |= scored[small]
        sums[large] += sums[small]
        members[large] += members[small]
    roots = sorted((record for record in range(len(unit)) if unit[record] == record), key=lambda r: min(members[r]))
    return Units(
        members=tuple(tuple(sorted(members[root])) for root in roots),
        sizes=np.array([[tokens[root] - sharing.trunk, heads[root], *sums[root]] for root in roots], np.int64),
        sharing=sharing,
    )


_measured: "weakref.WeakKeyDictionary[TreeSource, dict[object, Sharing | Units]]" = weakref.WeakKeyDictionary()


def sharing_of(trees: TreeSource, branches: Branches) -> Sharing:
    """`measure`, once for every source that lives."""
    known = _measured.setdefault(trees, {})
    key = dataclasses.replace(branches, longest=0)
    if key not in known:
        known[key] = measure(trees, key)
    return known[key]


def units_of(trees: TreeSource, shape: RowShape) -> Units:
    """The units of a source for rows of this shape, in layout `merged`."""
    known, capacity = _measured.setdefault(trees, {}), row_capacity(shape)
    key = (dataclasses.replace(shape.branches, longest=0), shape.merge_from, tuple(capacity.tolist()))
    if key not in known:
        known[key] = plan_units(sharing_of(trees, shape.branches), capacity, shape.merge_from)
    return known[key]
