"""Token trees on disk (TFDS, array_record) or in memory, behind one random-access interface with a content hash."""

import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt64

from prefjax.rows.packing import TreeLengths
from prefjax.rows.trees import TokenTree
from prefjax.rows.vectors import checked, digest_of, prompt_hash, tree_of, vectors
from prefjax.state_files import read_object

FORMAT = 3  # of index.npz and manifest.json
OWN_KEYS = frozenset({"format", "examples", "content_hash", "index_hash"})


@runtime_checkable
class TreeSource(Protocol):
    """n token trees by index; tree i has example_id i."""

    lengths: TreeLengths
    prompt_hashes: UInt64[np.ndarray, "n"]  # equal iff the prompts are (up to 64-bit collisions)
    content_hash: str  # sha256 over tokens, targets, weights and other numbers, in order

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TokenTree: ...


class MemoryTrees:
    """Token trees held in memory, for small runs; the same interface and content hash as `PreparedTrees`."""

    def __init__(self, trees: Iterable[TokenTree]):
        self._trees = [checked(tree, index) for index, tree in enumerate(trees)]
        self.lengths = TreeLengths.of(self._trees)
        self.prompt_hashes = np.array([prompt_hash(tree) for tree in self._trees], np.uint64)
        self.content_hash = hashlib.sha256(b"".join(vectors(tree)[1] for tree in self._trees)).hexdigest()

    def __len__(self) -> int:
        return len(self._trees)

    def __getitem__(self, index: int) -> TokenTree:
        return self._trees[index]


class SelectedTrees:
    """Some trees of a source, in the order given: its tree i is the source's tree `indices[i]`."""

    def __init__(self, source: TreeSource, indices: np.ndarray):
        self._source, self._indices = source, np.asarray(indices, np.int64)
        self.lengths = TreeLengths(**{name: own[self._indices] for name, own in vars(source.lengths).items()})
        self.prompt_hashes = source.prompt_hashes[self._indices]
        self.content_hash = hashlib.sha256(source.content_hash.encode() + self._indices.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> TokenTree:
        return dataclasses.replace(self._source[int(self._indices[index])], example_id=index)


class PreparedTrees:
    """Token trees that `parts` wrote, read at random from disk. Picklable: a copy opens the files again.

    Lengths and digests are in memory; opening checks them against the manifest, and every tree that is read is
    checked against its own digest, so `content_hash` always speaks of what was really read.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory)
        manifest = self.directory / "manifest.json"
        if not manifest.is_file():
            raise FileNotFoundError(f"{self.directory} holds no prepared dataset (no manifest.json): prepare it first")
        self.manifest: dict[str, Any] = read_object(manifest)
        if lacking := OWN_KEYS - self.manifest.keys():
            raise ValueError(f"{manifest} is damaged: it says no {', '.join(sorted(lacking))}")
        if self.manifest["format"] != FORMAT:
            raise ValueError(f"{manifest}: format {self.manifest['format']} is not {FORMAT}: prepare the data again")
        index = (self.directory / "index.npz").read_bytes()
        if hashlib.sha256(index).hexdigest() != self.manifest["index_hash"]:
            raise ValueError(f"{self.directory}/index.npz is not what manifest.json says: prepare the data again")
        with np.load(io.BytesIO(index)) as arrays:
            self._digests = arrays["digests"]
            self.prompt_hashes = arrays["prompt_hashes"]
            self.lengths = TreeLengths.among(arrays)
        self.content_hash: str = self.manifest["content_hash"]
        from prefjax.rows.record_files import WrittenRecords  # here: trees in memory need no TFDS

        self._records = WrittenRecords(self.directory)
        if len(self._records) != len(self):
            raise ValueError(f"{self.directory} holds {len(self._records)} trees, but its manifest says {len(self)}")

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return PreparedTrees, (self.directory,)

    @property
    def keys(self) -> UInt64[np.ndarray, "n"]:
        """Of each tree the first 64 bits of its digest, which speaks of all that it holds."""
        return np.ascontiguousarray(self._digests[:, :8]).view(np.uint64)[:, 0]

    @property
    def repeated(self) -> int:
        """How many trees are equal to an earlier one in all that they hold."""
        return len(self) - len(np.unique(self.keys))

    def __len__(self) -> int:
        return self.manifest["examples"]

    def __getitem__(self, index: int) -> TokenTree:
        if index >= len(self):  # the readers raise ValueError, which does not end a loop over the trees
            raise IndexError(f"tree {index} of {self.directory}, which holds {len(self)}")
        stored = self._records[index]
        try:
            digest = digest_of(stored)
        except KeyError as error:  # a name in TFDS's features.json
            raise ValueError(f"{self.directory} has no {error} in its records: prepare the data again") from error
        if digest != self._digests[index].tobytes():
            raise ValueError(f"tree {index} of {self.directory} is not what was written: prepare the data again")
        return tree_of(stored, index)


def open_trees(directory: str | os.PathLike[str]) -> PreparedTrees:
    """Opens a dataset that `parts` wrote; FileNotFoundError or ValueError when it is absent or damaged."""
    return PreparedTrees(directory)
