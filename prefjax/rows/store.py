"""Token trees on disk (TFDS, array_record) or in memory, behind one random-access interface with a content hash."""

import dataclasses
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt64

from prefjax.requirements import PAIR_NUMBERS
from prefjax.rows.arrays import TOKEN_DTYPES
from prefjax.rows.packing import TreeLengths, node_lengths
from prefjax.rows.trees import TokenTree
from prefjax.state_files import read_object

_FORMAT = 3  # of index.npz and manifest.json
_OWN_KEYS = frozenset({"format", "examples", "content_hash", "index_hash"})


@runtime_checkable
class TreeSource(Protocol):
    """n token trees by index; tree i has example_id i."""

    lengths: TreeLengths
    prompt_hashes: UInt64[np.ndarray, "n"]  # equal iff the prompts are (up to 64-bit collisions)
    content_hash: str  # sha256 over tokens, targets, weights and other numbers, in order

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> TokenTree: ...


def _flat(tree: TokenTree) -> tuple[np.ndarray, np.ndarray]:
    """The tree as two vectors: lengths of (prompt, responses, baseline, auxiliary), and all tokens in that order."""
    absent = np.zeros(0, np.int32)
    extras = [absent if branch is None else branch for branch in (tree.baseline, tree.auxiliary)]
    nodes = [tree.prompt, *tree.responses, *extras]
    return np.array([len(node) for node in nodes], np.int32), np.concatenate(nodes)


def same_tokens(a: TokenTree, b: TokenTree) -> bool:
    """Whether two trees hold the same token ids in the same nodes."""
    return all(np.array_equal(x, y) for x, y in zip(_flat(a), _flat(b), strict=True))


def _numbers(tree: TokenTree) -> np.ndarray:
    """[3] float32: weight, margin and target_probability, NaN when absent."""
    return np.array([tree.weight, *(getattr(tree, name) for name in PAIR_NUMBERS)], np.float32)


def _token_labels(tree: TokenTree) -> dict[str, np.ndarray]:
    """What the data say of single tokens, of all responses together; empty where nothing is said."""
    return {name: np.concatenate(getattr(tree, name) or [[]]).astype(dtype) for name, dtype in TOKEN_DTYPES.items()}


def _read_token_labels(labels: dict[str, np.ndarray], responses: Sequence[np.ndarray]) -> dict[str, Any]:
    ends = np.cumsum([len(response) for response in responses])[:-1]
    return {name: tuple(np.split(labels[name], ends)) if len(labels[name]) else None for name in TOKEN_DTYPES}


def _digest(
    lengths: np.ndarray, tokens: np.ndarray, targets: np.ndarray, numbers: np.ndarray, labels: dict[str, np.ndarray]
) -> bytes:
    """sha256 (32 bytes) over everything a tree holds except its example_id."""
    integers, floats = (lengths, tokens, labels["token_segment"]), (targets, numbers, labels["token_weight"])
    parts = (*(np.asarray(x, "<i4") for x in integers), *(np.asarray(x, "<f4") for x in floats))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()


def _prompt_hash(tree: TokenTree) -> int:
    return int.from_bytes(hashlib.sha256(np.asarray(tree.prompt, "<i4").tobytes()).digest()[:8], "little")


def _checked(tree: TokenTree, index: int) -> TokenTree:
    """The tree under its final example_id and with the dtypes that are stored; refuses what no layout can hold."""
    branches = tree.branches
    if len(tree.prompt) < 1 or not tree.responses or any(len(branch) < 1 for branch in branches):
        raise ValueError(f"tree {index} has an empty prompt, an empty branch or no responses: drop it when encoding")
    if len(tree.targets) != len(tree.responses):
        raise ValueError(f"tree {index} has {len(tree.responses)} responses, but {len(tree.targets)} targets")
    return dataclasses.replace(
        tree,
        prompt=np.asarray(tree.prompt, np.int32),
        responses=tuple(np.asarray(response, np.int32) for response in tree.responses),
        targets=np.asarray(tree.targets, np.float32),
        baseline=None if tree.baseline is None else np.asarray(tree.baseline, np.int32),
        auxiliary=None if tree.auxiliary is None else np.asarray(tree.auxiliary, np.int32),
        **_read_numbers(_numbers(tree)),
        **_read_token_labels(_token_labels(tree), tree.responses),
        example_id=index,
    )


def _read_numbers(numbers: np.ndarray) -> dict[str, float | None]:
    weight, *optional = numbers.tolist()
    absent = [None if np.isnan(number) else number for number in optional]
    return {"weight": weight, **dict(zip(PAIR_NUMBERS, absent, strict=True))}


class MemoryTrees:
    """Token trees held in memory, for small runs; the same interface and content hash as `PreparedTrees`."""

    def __init__(self, trees: Iterable[TokenTree]):
        self._trees = [_checked(tree, index) for index, tree in enumerate(trees)]
        self.lengths = TreeLengths.of(self._trees)
        self.prompt_hashes = np.array([_prompt_hash(tree) for tree in self._trees], np.uint64)
        self.content_hash = hashlib.sha256(
            b"".join(_digest(*_flat(tree), tree.targets, _numbers(tree), _token_labels(tree)) for tree in self._trees)
        ).hexdigest()

    def __len__(self) -> int:
        return len(self._trees)

    def __getitem__(self, index: int) -> TokenTree:
        return self._trees[index]


class SelectedTrees:
    """Some trees of a source, in the order given: its tree i is the source's tree `indices[i]`."""

    def __init__(self, source: TreeSource, indices: np.ndarray):
        self._source, self._indices = source, np.asarray(indices, np.int64)
        fields = {f.name: getattr(source.lengths, f.name)[self._indices] for f in dataclasses.fields(TreeLengths)}
        self.lengths = TreeLengths(**fields)
        self.prompt_hashes = source.prompt_hashes[self._indices]
        self.content_hash = hashlib.sha256(source.content_hash.encode() + self._indices.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> TokenTree:
        return dataclasses.replace(self._source[int(self._indices[index])], example_id=index)


# The dtypes of a record's vectors.
_FIELDS: dict[str, type] = {
    "lengths": np.int32,  # prompt, responses, baseline, auxiliary (0 when absent)
    "tokens": np.int32,  # the same nodes, concatenated
    "targets": np.float32,
    "numbers": np.float32,  # weight, margin, target_probability (NaN when absent)
    **TOKEN_DTYPES,  # of all responses (empty when absent)
}


class _Records:
    """The records of trees, in order; what the index needs is gathered on the way."""

    def __init__(self, trees: Iterable[TokenTree]):
        self._trees = trees
        self.lengths: list[tuple[int, list[int], int, int]] = []
        self.digests: list[bytes] = []
        self.prompt_hashes: list[int] = []

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for index, given in enumerate(self._trees):
            tree = _checked(given, index)
            (lengths, tokens), numbers, labels = _flat(tree), _numbers(tree), _token_labels(tree)
            self.lengths.append(node_lengths(tree))
            self.digests.append(_digest(lengths, tokens, tree.targets, numbers, labels))
            self.prompt_hashes.append(_prompt_hash(tree))
            yield {"lengths": lengths, "tokens": tokens, "targets": tree.targets, "numbers": numbers, **labels}
        if not self.digests:
            raise ValueError("there are no trees to write")


class PreparedTrees:
    """Token trees written by `write_trees`, read at random from disk. Picklable: a copy opens the files again.

    Lengths and digests are in memory; opening checks them against the manifest, and every tree that is read is
    checked against its own digest, so `content_hash` always speaks of what was really read.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self.directory = Path(directory)
        manifest = self.directory / "manifest.json"
        if not manifest.is_file():
            raise FileNotFoundError(f"{self.directory} holds no prepared dataset (no manifest.json): prepare it first")
        self.manifest: dict[str, Any] = read_object(manifest)
        if lacking := _OWN_KEYS - self.manifest.keys():
            raise ValueError(f"{manifest} is damaged: it says no {', '.join(sorted(lacking))}")
        if self.manifest["format"] != _FORMAT:
            raise ValueError(f"{manifest}: format {self.manifest['format']} is not {_FORMAT}: prepare the data again")
        index = (self.directory / "index.npz").read_bytes()
        if hashlib.sha256(index).hexdigest() != self.manifest["index_hash"]:
            raise ValueError(f"{self.directory}/index.npz is not what manifest.json says: prepare the data again")
        with np.load(io.BytesIO(index)) as arrays:
            self._digests = arrays["digests"]
            self.prompt_hashes = arrays["prompt_hashes"]
            fields = dataclasses.fields(TreeLengths)
            self.lengths = TreeLengths(**{field.name: arrays[field.name] for field in fields})
        self.content_hash: str = self.manifest["content_hash"]
        from prefjax.rows.record_files import WrittenRecords  # here: trees in memory need no TFDS

        self._records = WrittenRecords(self.directory)
        if len(self._records) != len(self):
            raise ValueError(f"{self.directory} holds {len(self._records)} trees, but its manifest says {len(self)}")

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return PreparedTrees, (self.directory,)

    def __len__(self) -> int:
        return self.manifest["examples"]

    def __getitem__(self, index: int) -> TokenTree:
        if index >= len(self):  # the readers raise ValueError, which does not end a loop over the trees
            raise IndexError(f"tree {index} of {self.directory}, which holds {len(self)}")
        record = self._records[index]
        try:
            lengths, tokens = record["lengths"], record["tokens"]
            digest = _digest(lengths, tokens, record["targets"], record["numbers"], record)
        except KeyError as error:  # a name in TFDS's features.json
            raise ValueError(f"{self.directory} has no {error} in its records: prepare the data again") from error
        if digest != self._digests[index].tobytes():
            raise ValueError(f"tree {index} of {self.directory} is not what was written: prepare the data again")
        prompt, *responses, baseline, auxiliary = np.split(tokens, np.cumsum(lengths)[:-1])
        return TokenTree(
            prompt=prompt,
            responses=tuple(responses),
            targets=record["targets"],
            baseline=baseline if len(baseline) else None,
            auxiliary=auxiliary if len(auxiliary) else None,
            **_read_numbers(record["numbers"]),
            **_read_token_labels(record, responses),
            example_id=index,
        )


def open_trees(directory: str | os.PathLike[str]) -> PreparedTrees:
    """Opens a dataset written by `write_trees`; FileNotFoundError or ValueError when it is absent or damaged."""
    return PreparedTrees(directory)


def write_trees(
    directory: str | os.PathLike[str], trees: Iterable[TokenTree], *, manifest: dict[str, Any]
) -> PreparedTrees:
    """Writes token trees in the given order; tree i gets example_id i.

    directory  must not exist yet; it appears only once everything in it is complete
    manifest   JSON-able facts about how the trees were made, stored in manifest.json beside the store's own `format`,
               `examples`, `content_hash` and `index_hash`; read after the last tree was taken, so it may hold counts
               that are filled while `trees` is consumed
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"{directory} exists: remove it or prepare into another directory")
    if _OWN_KEYS & manifest.keys():
        raise ValueError(f"manifest keys {sorted(_OWN_KEYS & manifest.keys())} belong to the store: rename them")
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.absolute().with_name(f".{directory.name}.partial-{secrets.token_hex(4)}")
    try:
        from prefjax.rows.record_files import write_records  # here: trees in memory need no TFDS

        records = _Records(trees)
        write_records(partial, records, _FIELDS)
        digests = b"".join(records.digests)
        index = io.BytesIO()
        np.savez(
            index,
            digests=np.frombuffer(digests, np.uint8).reshape(-1, 32),
            prompt_hashes=np.array(records.prompt_hashes, np.uint64),
            **dataclasses.asdict(TreeLengths.stack(records.lengths)),
        )
        (partial / "index.npz").write_bytes(index.getvalue())
        facts = {
            "format": _FORMAT,
            "examples": len(records.digests),
            "content_hash": hashlib.sha256(digests).hexdigest(),
            "index_hash": hashlib.sha256(index.getvalue()).hexdigest(),
        }
        (partial / "manifest.json").write_text(json.dumps(facts | manifest, indent=2, ensure_ascii=False) + "\n")
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_trees(directory)
