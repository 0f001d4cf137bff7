"""Token trees written to disk in parts, each whole or not at all, and the dataset that parts become.

A part is three files: the trees, what the index says of them, and, written last, facts as JSON. Who is killed leaves
the parts that were whole; whoever makes the same trees again finds them.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8, UInt64

from prefjax.rows.packing import TreeLengths, node_lengths
from prefjax.rows.store import FORMAT, OWN_KEYS, PreparedTrees, open_trees
from prefjax.rows.trees import TokenTree
from prefjax.rows.vectors import FIELDS, checked, prompt_hash, vectors
from prefjax.state_files import read_object, write_whole


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """What is known of n trees without reading them.

    digests        sha256 of each
    prompt_hashes  equal iff the prompts are (up to 64-bit collisions)
    lengths        tokens per node
    pairs          two responses, the first with the higher target
    """

    digests: UInt8[np.ndarray, "n 32"]
    prompt_hashes: UInt64[np.ndarray, "n"]
    lengths: TreeLengths
    pairs: Bool[np.ndarray, "n"]

    def arrays(self) -> dict[str, np.ndarray]:
        return {"digests": self.digests, "prompt_hashes": self.prompt_hashes, **vars(self.lengths)}


@contextlib.contextmanager
def parts_of(directory: Path) -> Iterator[Path]:
    """The folder where parts of the dataset `directory` lie until it is made of them; one process at a time is let in.

    Who is interrupted or killed leaves the parts that were whole, who fails leaves none.
    """
    folder, lock = (directory.absolute().with_name(f".{directory.name}.{end}") for end in ("parts", "lock"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            if folder.is_dir() and not any(folder.glob("part-*.json")):
                shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def write_part(folder: Path, number: int, trees: Iterable[TokenTree], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes a part, which is there once its facts are, and returns these.

    Args:
        folder: exists; holds parts of one dataset.
        facts: JSON-able, read after the last tree was taken, so that it may hold what is counted meanwhile; `trees` and
            `bytes` come to them.
    """
    from prefjax.rows.record_files import write_file  # here: trees in memory need no TFDS

    kept, digests, hashes, pairs = [], bytearray(), [], []

    def stored() -> Iterator[dict[str, np.ndarray]]:
        for index, given in enumerate(trees):
            tree = checked(given, index)
            found, own = vectors(tree)
            kept.append(node_lengths(tree))
            digests.extend(own)
            hashes.append(prompt_hash(tree))
            pairs.append(len(tree.responses) == 2 and bool(tree.targets[0] > tree.targets[1]))
            yield found

    size = write_file(_file(folder, number, "array_record"), stored(), FIELDS)
    index = Index(
        digests=np.frombuffer(bytes(digests), np.uint8).reshape(-1, 32),
        prompt_hashes=np.array(hashes, np.uint64),
        lengths=TreeLengths.stack(kept),
        pairs=np.array(pairs, bool),
    )
    np.savez(_file(folder, number, "npz"), pairs=index.pairs, **index.arrays())
    whole = {"trees": len(kept), "bytes": size, **facts}
    write_whole(_file(folder, number, "json"), json.dumps(whole, ensure_ascii=False))
    return whole


def read_facts(folder: Path, number: int) -> dict[str, Any] | None:
    """The facts of a part that is whole; None where it is not there, or damaged."""
    if not all(_file(folder, number, suffix).is_file() for suffix in ("array_record", "npz", "json")):
        return None
    try:
        facts = read_object(_file(folder, number, "json"))
        return facts if {"trees", "bytes"} <= facts.keys() else None
    except ValueError:
        return None


def read_index(folder: Path, count: int) -> Index:
    """The index of all parts of a folder, which are numbered from 0."""
    read: dict[str, list[np.ndarray]] = {}
    for number in range(count):
        with np.load(_file(folder, number, "npz")) as arrays:
            for name in arrays.files:
                read.setdefault(name, []).append(arrays[name])
    most = max(part.shape[1] for part in read["responses"])
    read["responses"] = [np.pad(part, ((0, 0), (0, most - part.shape[1]))) for part in read["responses"]]
    joined = {name: np.concatenate(parts) for name, parts in read.items()}
    return Index(joined["digests"], joined["prompt_hashes"], TreeLengths.among(joined), joined["pairs"])


def finish(
    directory: Path, folder: Path, parts: Sequence[Mapping[str, Any]], index: Index, manifest: Mapping[str, Any]
) -> PreparedTrees:
    """Makes a dataset of the parts of a folder, which becomes `directory`.

    Args:
        parts: the facts of all parts, in order.
        manifest: JSON-able facts about how the trees were made, kept beside the store's own.
    """
    from prefjax.rows.record_files import join_files

    if OWN_KEYS & manifest.keys():
        raise ValueError(f"manifest keys {sorted(OWN_KEYS & manifest.keys())} belong to the store: rename them")
    if not len(index.digests):
        raise ValueError("there are no trees to write")
    shards = [
        (_file(folder, n, "array_record"), part["trees"], part["bytes"])
        for n, part in enumerate(parts)
        if part["trees"]
    ]
    join_files(folder, shards, FIELDS)
    arrays = io.BytesIO()
    np.savez(arrays, **index.arrays())
    (folder / "index.npz").write_bytes(arrays.getvalue())
    own = {
        "format": FORMAT,
        "examples": len(index.digests),
        "content_hash": hashlib.sha256(index.digests.tobytes()).hexdigest(),
        "index_hash": hashlib.sha256(arrays.getvalue()).hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps(own | dict(manifest), indent=2, ensure_ascii=False) + "\n")
    for path in folder.glob("part-*"):
        path.unlink()
    folder.rename(directory)
    return open_trees(directory)


def write_trees(
    directory: str | os.PathLike[str], trees: Iterable[TokenTree], *, manifest: dict[str, Any]
) -> PreparedTrees:
    """Writes token trees in the given order, as one part; tree i gets example_id i.

    directory  must not exist yet; it appears only once everything in it is complete
    manifest   JSON-able facts about how the trees were made, stored in manifest.json beside the store's own `format`,
               `examples`, `content_hash` and `index_hash`; read after the last tree was taken, so it may hold counts
               that are filled while `trees` is consumed
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"{directory} exists: remove it or prepare into another directory")
    if OWN_KEYS & manifest.keys():
        raise ValueError(f"manifest keys {sorted(OWN_KEYS & manifest.keys())} belong to the store: rename them")
    partial = directory.absolute().with_name(f".{directory.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        facts = write_part(partial, 0, trees, {})
        return finish(directory, partial, [facts], read_index(partial, 1), manifest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _file(folder: Path, number: int, suffix: str) -> Path:
    return folder / f"part-{number:05d}.{suffix}"
