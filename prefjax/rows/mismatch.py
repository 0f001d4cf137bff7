"""KTO's mismatched responses: every record gets a response to another prompt, once and for the whole run, or that of
another record of each step."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

from prefjax.rows.store import TreeSource
from prefjax.rows.trees import TokenTree


def mismatched_partners(prompt_hashes: UInt64[np.ndarray, "n"], seed: int) -> Int64[np.ndarray, "n"]:
    """[n] a random record with another prompt for every record; a permutation, so each record serves exactly once.

    Records are shuffled, gathered by prompt, and shifted cyclically by the size of the largest prompt's group: no
    record can meet its own group. Raises ValueError when one prompt holds more than half of the records.
    """
    rng = np.random.default_rng(seed)
    records = len(prompt_hashes)
    _, group, sizes = np.unique(prompt_hashes, return_inverse=True, return_counts=True)
    largest = int(sizes.max(initial=1))
    if 2 * largest > records:
        raise ValueError(
            f"{largest} of {records} records share one prompt: a mismatched response needs a different prompt, and "
            "each record may serve only once; remove repeated prompts"
        )
    shuffled = rng.permutation(records)
    return _shifted(shuffled[np.argsort(rng.permutation(len(sizes))[group[shuffled]], kind="stable")], largest)


def _shifted(order: Int64[np.ndarray, "n"], largest: int) -> Int64[np.ndarray, "n"]:
    """[n] for 0..n-1 in an order in which those of a group follow each other, the one that is `largest` places on."""
    partners = np.empty(len(order), np.int64)
    partners[order] = np.roll(order, -largest)
    return partners


class MismatchedTrees:
    """A tree source whose baselines are responses of other prompts; the partner is a function of (seed, example_id).

    Fixed partners let a precomputed reference table [n, N] hold the baseline's log-prob like any other branch's.
    """

    def __init__(self, source: TreeSource, seed: int):
        if source.lengths.baseline.any():
            raise ValueError("the trees already hold baselines: use them as they are, or encode without them")
        self._source = source
        self._partners = mismatched_partners(source.prompt_hashes, seed)
        available = np.count_nonzero(source.lengths.responses, axis=1)[self._partners]
        self._choices = np.random.default_rng([seed, 1]).integers(0, available)
        baseline = source.lengths.responses[self._partners, self._choices]
        self.lengths = dataclasses.replace(source.lengths, baseline=baseline)
        self.prompt_hashes = source.prompt_hashes
        pairing = self._partners.tobytes() + self._choices.tobytes()
        self.content_hash = hashlib.sha256(source.content_hash.encode() + pairing).hexdigest()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> TokenTree:
        baseline = self._source[int(self._partners[index])].responses[self._choices[index]]
        return dataclasses.replace(self._source[index], baseline=baseline)

    def of_step(self, records: Sequence[int]) -> "MismatchedTrees | _OfStep":
        """The trees as a step of these records has them: as they are."""
        return self


class ShiftedTrees(MismatchedTrees):
    """The same, but the partner is another record of the step: the shift within the batch of arXiv 2402.01306.

    A step's records are put in an order that their prompts decide and shifted, so that partners are the same on any
    number of hosts and in any layout, and new whenever a record is in a step with others. Where one prompt has more
    than half of a step's records, as in a step of one, they keep the partner that `MismatchedTrees` gives them.
    Every tree is as long as with the longest response of all for a baseline: whichever comes, the rows hold it.
    """

    def __init__(self, source: TreeSource, seed: int):
        super().__init__(source, seed)
        counts = np.count_nonzero(source.lengths.responses, axis=1)
        self._served = np.random.default_rng([seed, 2]).integers(0, counts)
        longest = np.full(len(source), source.lengths.responses.max(), np.int32)
        self.lengths = dataclasses.replace(source.lengths, baseline=longest)
        self.content_hash = hashlib.sha256(f"{self.content_hash} shifted".encode() + self._served.tobytes()).hexdigest()

    def of_step(self, records: Sequence[int]) -> "MismatchedTrees | _OfStep":
        """The trees as a step of these records has them."""
        members = np.unique(np.asarray(records, np.int64))
        hashes = self.prompt_hashes[members]
        largest = int(np.unique(hashes, return_counts=True)[1].max(initial=1))
        if 2 * largest > len(members):
            return self
        partners = members[_shifted(np.argsort(hashes, kind="stable"), largest)]
        return _OfStep(self._source, dict(zip(members.tolist(), partners.tolist(), strict=True)), self._served)


class _OfStep:
    """Trees with a response of the partner for a baseline; nothing else is read of it."""

    def __init__(self, source: TreeSource, partners: dict[int, int], served: Int64[np.ndarray, "n"]):
        self._source, self._partners, self._served = source, partners, served

    def __getitem__(self, index: int) -> TokenTree:
        partner = self._partners[int(index)]
        baseline = self._source[partner].responses[self._served[partner]]
        return dataclasses.replace(self._source[index], baseline=baseline)


def mismatched_baselines(source: TreeSource, seed: int, *, of_step: bool = False) -> MismatchedTrees:
    """Gives every tree of a source the baseline that KTO's z0 needs (arXiv 2402.01306, eq 8).

    Args:
      of_step: a response of another record of each step, see `ShiftedTrees`, and not one that is drawn once.
    """
    return ShiftedTrees(source, seed) if of_step else MismatchedTrees(source, seed)
