"""Arithmetic on checkpoints: preference vectors, the difference of two policies' parameters, added to a base."""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from prefjax.models import Params
from prefjax.policies.export import export_policy
from prefjax.policies.open import open_mesh, open_policy

_VECTOR = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s+(\S.*?)(?:\s+-\s+(\S.*))?")


class PreferenceVector(NamedTuple):
    """coefficient * (aligned - opposite), where opposite learned the same preferences exchanged; None is the base.

    Each policy is the workdir of a run, of one of its stages, or a Hugging Face folder.
    """

    coefficient: float
    aligned: str
    opposite: str | None = None


def parse_vector(text: str) -> PreferenceVector:
    """ "0.5 runs/a" or "0.5 runs/a - runs/b". Raises ValueError where it is not of this form."""
    found = _VECTOR.fullmatch(text.strip())
    if not found:
        raise ValueError(f'vector={text!r}: write "COEFFICIENT POLICY" or "COEFFICIENT POLICY - OPPOSITE"')
    return PreferenceVector(float(found[1]), found[2], found[3])


def weighted_sum(terms: Iterable[tuple[str, float, Params]]) -> Params:
    """sum_i c_i theta_i over (name, c_i, theta_i), parameter by parameter, in float32 or wider.

    Terms are taken one at a time, so that an iterator may load them as they are needed. A single term with c = 1 comes
    back bit for bit.

    Returns:
      parameters with the types of the first term's.

    Raises:
      ValueError: no term; or the first parameter that two terms do not share by name and shape.
    """
    total, first, types = None, "", None
    for name, coefficient, params in terms:
        if total is None:
            first, types = name, jax.tree.map(lambda leaf: leaf.dtype, params)
            total = _scaled(params, coefficient)
            continue
        _require_same(first, total, name, params)
        total = _added(total, params, coefficient)
    if total is None:
        raise ValueError("a sum needs at least one term")
    return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), total, types)


def combine(
    base: str,
    vectors: Sequence[PreferenceVector],
    folder: str | Path,
    *,
    dtype: str | None = None,
    shard_bytes: int = 5_000_000_000,
) -> dict[str, float]:
    """Writes base + sum_i c_i (aligned_i - opposite_i) as a Hugging Face folder, with the base's tokenizer.

    Preference vectors, arXiv 2504.20106: of policies trained on preferences and on the same preferences exchanged. With
    the base for the opposite they are task vectors, arXiv 2212.04089. Coefficients of one policy are added up first, so
    that c = 1 on its own gives the aligned policy, and c = 0 the base, bit for bit.

    Args:
      base: a policy, as those of the vectors.
      folder, dtype, shard_bytes: as of `export_policy`; errors too.
    Returns:
      the coefficient of every source that took part.
    Raises:
      ValueError: a source is no policy; or a policy's parameters differ from the others' by name or shape, of which the
        first is named.
    """
    parts: dict[str, list[float]] = {}

    def add(source: str, coefficient: float) -> None:
        parts.setdefault(str(source), []).append(coefficient)

    add(base, 1.0)
    for vector in vectors:
        add(vector.aligned, vector.coefficient)
        add(vector.opposite or base, -vector.coefficient)
    sums = {source: math.fsum(own) for source, own in parts.items()}
    used = {source: coefficient for source, coefficient in sums.items() if coefficient}
    mesh = open_mesh()
    # Read as float32, whatever a folder stores: sums of bfloat16 parameters would lose what small coefficients add.
    load = lambda source: open_policy(source, mesh, dtype="float32")
    params = weighted_sum((source, coefficient, load(source).params) for source, coefficient in used.items())
    policy = dataclasses.replace(load(base), params=params)
    export_policy(policy, folder, dtype=dtype, shard_bytes=shard_bytes)
    return used


@jax.jit
def _scaled(params: Params, coefficient: Float[jax.Array, ""]) -> Params:
    return jax.tree.map(lambda leaf: coefficient * leaf.astype(_wide(leaf)), params)


@jax.jit
def _added(total: Params, params: Params, coefficient: Float[jax.Array, ""]) -> Params:
    return jax.tree.map(lambda sum_, leaf: sum_ + coefficient * leaf.astype(sum_.dtype), total, params)


def _wide(leaf: Any) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _require_same(first: str, params: Params, second: str, others: Params) -> None:
    def shapes(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}

    ours, theirs = shapes(params), shapes(others)
    for name in sorted({*ours, *theirs}):
        if name not in theirs:
            raise ValueError(f"parameter {name} of {first} is missing in {second}: they are not the same architecture")
        if name not in ours:
            raise ValueError(f"parameter {name} of {second} is missing in {first}: they are not the same architecture")
        if ours[name] != theirs[name]:
            raise ValueError(f"parameter {name} is {list(ours[name])} in {first} and {list(theirs[name])} in {second}")
