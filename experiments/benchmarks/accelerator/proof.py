"""The attention kernels on this device against the definition in float32 on its host, and plain XLA beside them.

Rows are random forests of deep trees. Errors are |found - exact| / |exact| of the output and of the gradients of
queries, keys and values, in the norm of vectors. A kernel is equal where each is at most twice that of plain XLA, which
writes the whole mask out, in the same numbers.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.accelerator.early import Early, has_crashed
from experiments.benchmarks.accelerator.findings import EQUAL
from experiments.benchmarks.attention import padded
from prefjax.models import attention
from prefjax.models.attention import kernel_tiles, kernels

ROUNDING = 1e-5  # that a kernel may be off where plain XLA is exact
SLACK = 2.0


@dataclasses.dataclass(frozen=True)
class Variant:
    """Heads and rows of one attention."""

    dtype: str
    width: int
    query_heads: int = 8
    key_heads: int = 2
    length: int = 1003  # odd: blocks are padded
    softcap: float | None = None
    window: int | None = None

    def __str__(self) -> str:
        cap = f", soft cap {self.softcap:g}" if self.softcap else ""
        window = f", window {self.window}" if self.window else ""
        return f"{self.dtype}, {self.query_heads}/{self.key_heads} heads of {self.width}, T {self.length}{cap}{window}"


def _variants() -> tuple[Variant, ...]:
    """In the order of worth: what models have, then each thing apart, then together."""
    plain = [Variant(dtype, width) for dtype in ("bfloat16", "float32") for width in (64, 128)]
    bent = [
        Variant("bfloat16", 128, softcap=20.0),
        Variant("bfloat16", 64, window=97),
        Variant("bfloat16", 64, query_heads=9, key_heads=3),  # SmolLM2
        Variant("bfloat16", 128, length=2048),
        Variant("bfloat16", 256),
        Variant("bfloat16", 256, softcap=20.0, window=97),  # Gemma 2
        Variant("bfloat16", 64, query_heads=4, key_heads=4),
        Variant("float32", 64, softcap=20.0, window=97),
        Variant("float32", 256),
        Variant("bfloat16", 96, query_heads=6, key_heads=1, length=385),
    ]
    return (*plain, *bent)


@dataclasses.dataclass(frozen=True)
class Size:
    variants: tuple[Variant, ...] = _variants()
    rows: int = 2
    interpret: str | None = None  # the platform whose kernels are emulated


TINY = Size((Variant("float32", 16, 2, 1, 90, softcap=2.0, window=9),), rows=1, interpret="cuda")


def cases(size: Size, folder: Path) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    makers = {variant: functools.partial(compare, variant, size) for variant in size.variants}
    made = Early(makers, 1 if has_crashed(folder, "proof") else 4)
    prove = lambda variant: iter([made[variant]()])
    return {str(variant): functools.partial(prove, variant) for variant in size.variants}


def compare(variant: Variant, size: Size) -> Callable[[], dict[str, Any]]:
    """Compiles kernels, plain XLA and live tiles; the call runs them and returns their errors and the verdict.

    A kernel that does not compile or run is a verdict too.
    """
    masks, arrays = inputs(variant, size.rows)
    platform = size.interpret or kernel_tiles.platform_of(None)
    exact = oracle(variant, masks, arrays)
    programs = {"plain": ("dense", None), "live tiles": ("tiled", None)}
    if platform in kernel_tiles.PLATFORMS and kernels.supports(arrays[0], platform):
        programs["kernels"] = ("pallas", size.interpret)
    compiled = {
        name: _attempt(lambda how=how: gradients(variant, *how).lower(masks, *arrays).compile())
        for name, how in programs.items()
    }

    def run() -> dict[str, Any]:
        results = {
            name: made if isinstance(made, Exception) else _attempt(lambda made=made: made(masks, *arrays))
            for name, made in compiled.items()
        }
        failed = {name: f"{type(x).__name__}: {x}"[:300] for name, x in results.items() if isinstance(x, Exception)}
        errors = {name: _errors(x, exact) for name, x in results.items() if name not in failed}
        said = verdict(errors, failed, "kernels" in programs)
        return {"variant": variant, "errors": errors, "failed": failed, "verdict": said}

    return run


def verdict(errors: dict[str, list[float]], failed: dict[str, str], attempted: bool) -> str:
    """EQUAL, or what is wrong with the kernels; a NaN is never equal."""
    if not attempted:
        return "no kernel takes these heads here"
    if "kernels" in failed:
        return f"failed: {failed['kernels'].splitlines()[0]}"
    plain = errors.get("plain", [0.0] * 4)
    wrong = [
        f"{name} {error:.2g}, plain XLA {other:.2g}"
        for name, error, other in zip(("output", "query", "key", "value"), errors["kernels"], plain, strict=True)
        if not error <= SLACK * other + ROUNDING
    ]
    return "WRONG: " + "; ".join(wrong) if wrong else EQUAL


def _attempt(make: Callable[[], Any]) -> Any:
    """What it makes, when that is there, or the error it raises: what else is compared goes on."""
    try:
        return jax.block_until_ready(make())
    except Exception as error:
        return error


def gradients(variant: Variant, implementation: str, interpret: str | None) -> jax.stages.Wrapped:
    """(masks, query, key, value, upstream) -> (output, gradients) of one attention."""

    def loss(query, key, value, upstream, masks):
        mask = attention.prepare(*masks, implementation=implementation, interpret=interpret)
        window = None if variant.window is None else jnp.int32(variant.window)
        output = attention.attend(
            query, key, value, mask, scale=variant.width**-0.5, softcap=variant.softcap, window=window
        )
        return (output.astype(jnp.float32) * upstream.astype(jnp.float32)).sum(), output

    def both(masks, *arrays):
        found, output = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*arrays, masks)
        return output, *found

    return jax.jit(both)


def oracle(variant: Variant, masks: list[jax.Array], arrays: list[jax.Array]) -> list[np.ndarray]:
    """The same by definition, of the same numbers, in float32 on the host."""
    host = jax.devices("cpu")[0]
    wide = lambda x: jax.device_put(x, host).astype(jnp.promote_types(x.dtype, jnp.float32))
    with jax.default_device(host), jax.default_matmul_precision("highest"):
        masks = [jax.device_put(x, host) for x in masks]
        return jax.device_get(gradients(variant, "dense", None)(masks, *map(wide, arrays)))


def _errors(found: Any, exact: list[np.ndarray]) -> list[float]:
    wide = [np.asarray(jax.device_get(x), np.float32) for x in found]
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(wide, exact, strict=True)]


def inputs(variant: Variant, rows: int) -> tuple[list[jax.Array], list[jax.Array]]:
    """([visible_until, positions], [query, key, value, upstream gradient]) of rows of random forests."""
    rng = np.random.default_rng(variant.length)
    masks = zip(*(random_forest(rng, variant.length) for _ in range(rows)), strict=True)
    shapes = [(rows, variant.length, heads, variant.width) for heads in _heads(variant)]
    arrays = [jnp.asarray(rng.standard_normal(shape), variant.dtype) for shape in shapes]
    return [jnp.asarray(np.stack(part), jnp.int32) for part in masks], arrays


def _heads(variant: Variant) -> tuple[int, ...]:
    return variant.query_heads, variant.key_heads, variant.key_heads, variant.query_heads


def random_forest(rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(visible_until, positions), each [length], of trees of random depth, and padding after them."""
    lengths: list[int] = []
    parents: list[int] = []
    path: list[int] = []  # from a root to the node before
    while (room := length - sum(lengths)) > length // 10:
        path = path[: rng.integers(len(path) + 1)]
        parents.append(path[-1] if path else -1)
        path.append(len(lengths))
        lengths.append(int(rng.integers(1, min(room, length // 4) + 1)))
    return padded(lengths, parents, length)
