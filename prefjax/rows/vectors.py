"""A token tree as named vectors, the form in which it is stored and hashed."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefjax.requirements import PAIR_NUMBERS
from prefjax.rows.arrays import TOKEN_DTYPES
from prefjax.rows.trees import TokenTree

# The dtypes of a record's vectors.
FIELDS: dict[str, type] = {
    "lengths": np.int32,  # prompt, responses, baseline, auxiliary (0 when absent)
    "tokens": np.int32,  # the same nodes, concatenated
    "targets": np.float32,
    "numbers": np.float32,  # weight, margin, target_probability (NaN when absent)
    **TOKEN_DTYPES,  # of all responses (empty when absent)
}


def flat(tree: TokenTree) -> tuple[np.ndarray, np.ndarray]:
    """The tree as two vectors: lengths of (prompt, responses, baseline, auxiliary), and all tokens in that order."""
    absent = np.zeros(0, np.int32)
    extras = [absent if branch is None else branch for branch in (tree.baseline, tree.auxiliary)]
    nodes = [tree.prompt, *tree.responses, *extras]
    return np.array([len(node) for node in nodes], np.int32), np.concatenate(nodes)


def same_tokens(a: TokenTree, b: TokenTree) -> bool:
    """Whether two trees hold the same token ids in the same nodes."""
    return all(np.array_equal(x, y) for x, y in zip(flat(a), flat(b), strict=True))


def numbers_of(tree: TokenTree) -> np.ndarray:
    """[3] float32: weight, margin and target_probability, NaN when absent."""
    return np.array([tree.weight, *(getattr(tree, name) for name in PAIR_NUMBERS)], np.float32)


def token_labels_of(tree: TokenTree) -> dict[str, np.ndarray]:
    """What the data say of single tokens, of all responses together; empty where nothing is said."""
    return {name: np.concatenate(getattr(tree, name) or [[]]).astype(dtype) for name, dtype in TOKEN_DTYPES.items()}


def read_token_labels(labels: dict[str, np.ndarray], responses: Sequence[np.ndarray]) -> dict[str, Any]:
    ends = np.cumsum([len(response) for response in responses])[:-1]
    return {name: tuple(np.split(labels[name], ends)) if len(labels[name]) else None for name in TOKEN_DTYPES}


def prompt_hash(tree: TokenTree) -> int:
    return int.from_bytes(hashlib.sha256(np.asarray(tree.prompt, "<i4").tobytes()).digest()[:8], "little")


def checked(tree: TokenTree, index: int) -> TokenTree:
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
        **read_numbers(numbers_of(tree)),
        **read_token_labels(token_labels_of(tree), tree.responses),
        example_id=index,
    )


def read_numbers(numbers: np.ndarray) -> dict[str, float | None]:
    weight, *optional = numbers.tolist()
    absent = [None if np.isnan(number) else number for number in optional]
    return {"weight": weight, **dict(zip(PAIR_NUMBERS, absent, strict=True))}


def vectors(tree: TokenTree) -> tuple[dict[str, np.ndarray], bytes]:
    """What is stored of a tree that is `checked`, by the names of `FIELDS`, and its digest."""
    lengths, tokens = flat(tree)
    numbers = {"targets": tree.targets, "numbers": numbers_of(tree)}
    stored = {"lengths": lengths, "tokens": tokens, **numbers, **token_labels_of(tree)}
    return stored, digest_of(stored)


def tree_of(stored: dict[str, np.ndarray], index: int) -> TokenTree:
    """The tree whose vectors these are."""
    prompt, *responses, baseline, auxiliary = np.split(stored["tokens"], np.cumsum(stored["lengths"])[:-1])
    return TokenTree(
        prompt=prompt,
        responses=tuple(responses),
        targets=stored["targets"],
        baseline=baseline if len(baseline) else None,
        auxiliary=auxiliary if len(auxiliary) else None,
        **read_numbers(stored["numbers"]),
        **read_token_labels(stored, responses),
        example_id=index,
    )


def digest_of(stored: dict[str, np.ndarray]) -> bytes:
    """sha256 (32 bytes) over everything a tree holds except its example_id."""
    integers, floats = ("lengths", "tokens", "token_segment"), ("targets", "numbers", "token_weight")
    parts = (*(np.asarray(stored[x], "<i4") for x in integers), *(np.asarray(stored[x], "<f4") for x in floats))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()
