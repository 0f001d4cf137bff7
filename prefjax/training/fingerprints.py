"""Fingerprints of arrays: the same on every mesh, and no array is gathered or moved between devices for them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prefjax.training.processes import one_at_a_time

_SMALL = 1 << 20  # numbers; below it a program's compilation takes longer than the host


class Fingerprint(NamedTuple):
    """Of one array.

    text        dtype, shape, and 64 bits of which a change of a single word changes both halves
    not_finite  how many of its numbers are NaN or infinite
    """

    text: str
    not_finite: int


def fingerprints(tree: Any) -> dict[str, Fingerprint]:
    """Of every array of a tree, by its path; waits for all of them. All processes that hold the arrays call it."""
    leaves = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    measured = jax.device_get({name: _measure(leaf) for name, leaf in leaves.items()})
    return {
        name: Fingerprint(f"{describe(leaves[name])} {int(first):08x}{int(second):08x}", int(bad))
        for name, (first, second, bad) in measured.items()
    }


def name_of(path: Any) -> str:
    """A path into a tree, as "params/policy/embedding"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def describe(leaf: Any) -> str:
    """Dtype and shape, as "float32 [96, 4]"."""
    return f"{np.dtype(leaf.dtype)} {list(leaf.shape)}"


def _measure(x: Any) -> tuple[Any, Any, Any]:
    """Two sums, and how many numbers are not finite."""
    elsewhere = isinstance(x, jax.Array) and not x.is_fully_addressable
    return one_at_a_time(_on_devices(x)) if elsewhere or x.size > _SMALL else _sums(np.asarray(x), np)


def _sums(x: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Sums of mixed words modulo 2^32, in which addition has no order; a word is mixed with its place by bijections."""
    words = _words(x, xp)
    place = xp.zeros(words.shape, np.uint32)
    for axis, size in enumerate(words.shape):
        along = xp.arange(size, dtype=np.uint32).reshape([-1 if i == axis else 1 for i in range(words.ndim)])
        place = place * np.uint32(size % 2**32) + along
    first = _mix(words ^ _mix(place + np.uint32(1)))
    second = _mix(first ^ np.uint32(0x9E3779B9))
    total = functools.partial(xp.sum, dtype=np.uint32)
    return total(first), total(second), xp.sum(~xp.isfinite(x), dtype=np.int32)


_on_devices = jax.jit(functools.partial(_sums, xp=jnp))


def _words(x: Any, xp: Any) -> Any:
    """The bits of an array [...] as uint32 [..., words of a number]."""
    x = x.astype(np.uint8) if x.dtype == bool else x
    word = np.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    if xp is np:
        return np.ascontiguousarray(x[..., None]).view(word).astype(np.uint32)
    words = jax.lax.bitcast_convert_type(x, word).astype(np.uint32)
    return words if x.dtype.itemsize > 4 else words[..., None]


def _mix(x: Any) -> Any:
    """MurmurHash3's finaliser: every bit of a word decides every other, and no two words become one."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
