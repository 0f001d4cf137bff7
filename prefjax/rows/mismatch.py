"""KTO's mismatched responses: every record gets, once and for the whole run, a response to another prompt."""

import dataclasses
import hashlib

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
    order = shuffled[np.argsort(rng.permutation(len(sizes))[group[shuffled]], kind="stable")]
    partners = np.empty(records, np.int64)
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


def mismatched_baselines(source: TreeSource, seed: int) -> MismatchedTrees:
    """Gives every tree of a source the baseline that KTO's z0 needs (arXiv 2402.01306, eq 8)."""
    return MismatchedTrees(source, seed)
