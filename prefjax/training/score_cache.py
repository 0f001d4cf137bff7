"""Log-probs of token sequences on disk, by model and by content: what runs, objectives and data sets share.

    <cache>/<model>/model.json         whose scores these are: parameters, architecture, dtype
    <cache>/<model>/set-<hash>.json    what was scored, in words: tokenizer, template, truncation, source
    <cache>/<model>/part-<hash>.npz    keys [m] uint64, logps [m] float32; named by content, whole or not there at all

A score belongs to the tokens of a prompt and of one response, and to nothing else. So a table of pairs serves every
objective, single responses, flipped labels and subsets; a mismatched response is one more sequence; and a changed
template or truncation makes other sequences, for which no score is found.
"""

import dataclasses
import hashlib
import io
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt64

from prefjax.data.progress import progress_bar
from prefjax.models.families import architecture
from prefjax.rows.arrays import Branches
from prefjax.rows.store import TreeSource
from prefjax.state_files import read_object
from prefjax.training.scoring import Setup

Facts = Mapping[str, Any]
# What a score, or the tokens that it is of, cannot outlive; the rest of a set's facts says which records it took.
DECISIVE = ("model", "tokenizer", "template", "truncation")


def model_facts(setup: Setup, parameter_hash: str) -> dict[str, Any]:
    """What a log-prob depends on besides the tokens: parameters, architecture and the dtype of the computation.

    Layout, packing, mesh, kernels and chunk sizes are left out: they change rounding only. So are objective, labels
    and everything about data, which the tokens hold.
    """
    return _plain({"parameters": parameter_hash, "dtype": setup.model.dtype, **architecture(setup.model)})


def set_facts(manifest: Facts) -> dict[str, Any]:
    """What decides the tokens of prepared trees, from their manifest, by the names that messages use."""
    options = dict(manifest["options"])
    tokenizer = manifest["tokenizer"]
    parts = tokenizer.get("fingerprints", {"tokenizer": tokenizer["fingerprint"]})
    return _plain(
        {
            "tokenizer": parts["tokenizer"],
            "template": parts.get("template"),
            "truncation": options.pop("encoding"),
            "data": {"source": manifest["source"], "split": manifest["split"], "methods": manifest["methods"]},
            "options": {name: value for name, value in options.items() if name != "chat_template"},
        }
    )


def sequence_keys(trees: TreeSource, branches: Branches) -> tuple[UInt64[np.ndarray, "n N"], Bool[np.ndarray, "n N"]]:
    """([n, N] 64-bit hash of the tokens of prompt and branch, [n, N] whether the branch is there), in slot order."""
    present = trees.lengths.branches(branches) > 0
    keys = np.zeros(present.shape, np.uint64)
    for row in progress_bar(range(len(trees)), shown=True, desc="hashing sequences", unit=" prompts"):
        tree = trees[row]
        prompt = hashlib.blake2b(np.array([len(tree.prompt), *tree.prompt], "<i4").tobytes(), digest_size=8)
        slots = dict(enumerate(tree.responses))
        if branches.baseline:
            slots[branches.baseline_slot] = tree.baseline
        if branches.auxiliary:
            slots[branches.auxiliary_slot] = tree.auxiliary
        for slot, tokens in slots.items():
            digest = prompt.copy()
            digest.update(np.asarray(tokens, "<i4").tobytes())
            keys[row, slot] = int.from_bytes(digest.digest(), "little")
    return keys, present


class ScoreCache:
    """The scores of one model in a cache folder. Processes may add to it at the same time.

    Args:
      directory: the cache, shared by models.
      model: see `model_facts`.

    Raises:
      ValueError: a file of scores is damaged; names it.
    """

    def __init__(self, directory: Path, model: Facts):
        self.directory, self.model = Path(directory), _plain(model)
        self.folder = self.directory / _hash(self.model)
        self._keys, self._logps = np.zeros(0, np.uint64), np.zeros(0, np.float32)
        parts = [_read_part(path) for path in sorted(self.folder.glob("part-*.npz"))]
        if parts:
            self._merge(*map(np.concatenate, zip(*parts, strict=True)))

    def __len__(self) -> int:
        return len(self._keys)

    def lookup(self, keys: UInt64[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
        """Scores in nats; NaN, which no score is, where there is none."""
        if not len(self._keys):
            return np.full(keys.shape, np.nan, np.float32)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[at] == keys, self._logps[at], np.float32(np.nan))

    def add(self, keys: UInt64[np.ndarray, "m"], logps: Float32[np.ndarray, "m"], *, write: bool = True) -> None:
        """Keeps scores, and writes them as one part.

        Args:
          write: False where another process of the run writes the same ones.

        Raises:
          ValueError: a score is not finite.
        """
        if not np.isfinite(logps).all():
            raise ValueError(f"{np.sum(~np.isfinite(logps))} of {len(logps)} scores are not finite")
        self._merge(keys, logps)
        if write:
            buffer = io.BytesIO()
            np.savez(buffer, keys=keys, logps=logps)
            self._write(_part_name(buffer.getvalue()), buffer.getvalue())

    def begin_set(self, facts: Facts) -> None:
        """Notes in words what is about to be scored, so that a later run can be told what differs."""
        self._write("model.json", _pretty(self.model))
        self._write(f"set-{_hash(_plain(facts))}.json", _pretty(_plain(facts)))

    def check_unchanged(self, facts: Facts, missing: int, total: int) -> None:
        """Refuses a cache whose scores were made with another model, tokenizer, template or truncation.

        What differs in records alone (a method, a subset, further data) is scored where it is missing.

        Args:
          missing, total: sequences without a score, and all of them, for the message.

        Raises:
          ValueError: names what differs from the nearest set of the cache, and the ways out.
        """
        changed = self._changed(_plain(facts))
        if changed:
            raise ValueError(
                f"{self.directory} holds reference log-probs, but not those of this run: {missing} of {total} "
                f"responses have none. Changed since they were scored: {'; '.join(changed)}. Undo that, or score for "
                "this run as well: python -m experiments.score with the same options, or give an empty reference.cache"
            )

    def _changed(self, facts: Facts) -> list[str]:
        """The decisive differences to the nearest set in the cache, of any model; none where there is no set."""
        found = []
        for path in sorted(self.directory.glob("*/set-*.json")):
            there = {"model": read_object(path.parent / "model.json"), **read_object(path)}
            now = {"model": self.model, **facts}
            differing = [name for name in now if there.get(name) != now[name]]
            decisive = [name for name in differing if name in DECISIVE]
            found.append((len(decisive), len(differing), [(name, there.get(name), now[name]) for name in decisive]))
        _, _, changes = min(found, key=lambda entry: entry[:2], default=(0, 0, []))
        return [text for change in changes for text in _differences(*change)]

    def _merge(self, keys: np.ndarray, logps: np.ndarray) -> None:
        self._keys, first = np.unique(np.concatenate([self._keys, keys]), return_index=True)
        self._logps = np.concatenate([self._logps, logps])[first]

    def _write(self, name: str, content: bytes) -> None:
        """Under its name all at once; a file that is there already says the same."""
        path = self.folder / name
        if path.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{name}.{secrets.token_hex(4)}.partial"
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)


def _read_part(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = path.read_bytes()
    if path.name != _part_name(content):
        raise ValueError(f"{path} is damaged: its content is not what its name says. Delete it, and score again")
    with np.load(io.BytesIO(content)) as arrays:
        return arrays["keys"], arrays["logps"]


def _part_name(content: bytes) -> str:
    return f"part-{hashlib.sha256(content).hexdigest()[:16]}.npz"


def _plain(facts: Facts) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(facts, default=dataclasses.asdict))


def _pretty(facts: Facts) -> bytes:
    return (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode()


def _hash(facts: Facts) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _differences(name: str, there: Any, now: Any) -> list[str]:
    """One text for every leaf that differs."""
    if isinstance(there, dict) and isinstance(now, dict):
        keys = sorted({*there, *now})
        return [text for key in keys for text in _differences(f"{name}.{key}", there.get(key), now.get(key))]
    brief = lambda value: f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else repr(value)
    return [] if there == now else [f"{name} ({brief(there)} there, {brief(now)} here)"]
