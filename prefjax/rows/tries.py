"""Token sequences that begin alike as one token trie: every token once below its parent. Pure NumPy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Integer


class Trie(NamedTuple):
    """A forest of M nodes with T' tokens, depth first, and the way of every sequence through it. int32."""

    tokens: np.ndarray  # [T']
    before: np.ndarray  # [T'] index of the token before this one in every sequence that holds both; -1 at a root
    paths: tuple[np.ndarray, ...]  # of every sequence, in the order given: index of each of its tokens
    lengths: np.ndarray  # [M] tokens of every node
    parents: np.ndarray  # [M] index of the node's parent, -1 for a root


def spelling(sequence: Int[np.ndarray, "L"]) -> bytes:
    """What sequences are sorted by: a prefix comes before what continues it, and what begins alike lies together."""
    return sequence.astype(">u4").tobytes()


def common_prefix(a: Integer[np.ndarray, "m"], b: Integer[np.ndarray, "n"]) -> int:
    """How many tokens two sequences have in common from their start."""
    least = min(len(a), len(b))
    same = a[:least] == b[:least]
    return least if same.all() else int(same.argmin())


def merge(sequences: Sequence[np.ndarray], cuts: Sequence[int]) -> Trie:
    """Merges sequences by their longest common prefixes.

    Args:
        sequences: token ids [L_i], each of one token or more.
        cuts: of every sequence, the tokens after which a node ends, as it does at forks and where a sequence ends.
    """
    total = sum(map(len, sequences))
    tokens, before = np.empty(total, np.int32), np.empty(total, np.int32)
    begins = np.zeros(total + 1, bool)  # where a node does
    paths: list[np.ndarray] = [np.zeros(0, np.int32)] * len(sequences)
    used, previous, path = 0, np.zeros(0, np.int32), np.zeros(0, np.int32)
    for i in sorted(range(len(sequences)), key=lambda i: spelling(sequences[i])):
        sequence = sequences[i]
        shared = common_prefix(previous, sequence)
        new = np.arange(used, used + len(sequence) - shared, dtype=np.int32)
        path = paths[i] = np.concatenate([path[:shared], new])
        tokens[new], before[new] = sequence[shared:], new - 1
        if len(new):
            before[used] = path[shared - 1] if shared else -1
        begins[used] = True
        for cut in (shared, cuts[i], len(sequence)):
            begins[path[cut - 1] + 1 if cut else 0] = True
        used += len(new)
        previous = sequence
    starts = np.flatnonzero(begins[:used])
    node = np.cumsum(begins[:used]) - 1
    above = before[starts]
    return Trie(
        tokens=tokens[:used],
        before=before[:used],
        paths=tuple(paths),
        lengths=np.diff(starts, append=used).astype(np.int32),
        parents=np.where(above >= 0, node[above], -1).astype(np.int32),
    )
