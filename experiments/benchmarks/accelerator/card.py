"""What is here: packages, card, ceilings, what attention is lowered to; and a quickstart step equal to the CPU's.

A step is two updates by plain gradient descent on rows of the embedded world, so that the second loss and the way the
parameters went hold everything: forward, backward, reference, packing. Its rows are long enough for the kernels.
"""

import dataclasses
import functools
import importlib.metadata
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from experiments.benchmarks.accelerator.findings import EQUAL

ROOT = Path(__file__).resolve().parents[3]
# Largest relative difference from the CPU's float32; a GPU's default for float32 is tf32.
BOUNDS = {("float32", "highest"): 1e-3, ("float32", "default"): 2e-2, ("bfloat16", "default"): 6e-2}
KERNEL = "prefix_attention"  # how the kernels' names begin


@dataclasses.dataclass(frozen=True)
class Size:
    """tokens of a step; numerics that it runs in; length of the attention that is lowered; side of the matmul."""

    tokens: int = 4096
    numerics: tuple[tuple[str, str], ...] = tuple(BOUNDS)
    length: int = 2048
    side: int = 8192


TINY = Size(tokens=256, numerics=(("float32", "highest"),), length=64, side=64)


def cases(size: Size, folder: Path) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    steps = {
        f"step in {dtype}, {precision} precision": functools.partial(step, size, dtype, precision)
        for dtype, precision in size.numerics
    }
    return {
        "packages": packages,
        "card": card,
        "lowering": functools.partial(lowering, size),
        **steps,
        "ceilings": functools.partial(ceilings, size),
    }


def packages(required: Path = ROOT / "requirements.txt") -> Iterator[dict[str, Any]]:
    """Of requirements.txt, what is missing or out of its bounds. Needs nothing of prefjax."""
    lines = [line.partition("#")[0].strip() for line in required.read_text().splitlines()]
    found, wrong = {}, {}
    for requirement in map(Requirement, filter(None, lines)):
        try:
            found[requirement.name] = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong[requirement.name] = f"{requirement} is missing"
            continue
        if not requirement.specifier.contains(found[requirement.name], prereleases=True):
            wrong[requirement.name] = f"{requirement} is required, {found[requirement.name]} is here"
    for name in ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "torch", "trl"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    yield {"missing": wrong, "packages": found}


def card() -> Iterator[dict[str, Any]]:
    """Device, driver and versions, by JAX and by nvidia-smi where that is here."""
    import jax

    from prefjax.models.attention import kernel_tiles
    from prefjax.training.provenance import machine

    platform = kernel_tiles.platform_of(None)
    kind = kernel_tiles.kind_of(platform, None)
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    yield {"machine": machine(), "platform": platform, "kind": kind, "devices": len(jax.devices()), "bytes": memory}
    asked = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"
    try:
        told = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"], capture_output=True, text=True, timeout=15
        )
    except FileNotFoundError:
        return
    yield {"nvidia_smi": dict(zip(asked.split(","), told.stdout.strip().splitlines()[0].split(", "), strict=True))}


def lowering(size: Size) -> Iterator[dict[str, Any]]:
    """Kernels that "auto" attention has in a program compiled for this device, forward and backward."""
    import jax
    import jax.numpy as jnp

    from experiments.benchmarks.attention import drawn
    from prefjax.models import attention
    from prefjax.models.attention import kernel_tiles

    masks, arrays = drawn(1, size.length, 8, 2, 128, "bfloat16")

    def loss(query, key, value):
        output = attention.attend(query, key, value, attention.prepare(*masks), scale=0.1)
        return (output * arrays[3]).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays[:3]).compile().as_text()
    calls = [line for line in text.splitlines() if "custom-call(" in line or "__triton" in line]
    platform = kernel_tiles.platform_of(None)
    listed = kernel_tiles.listed_kind(platform, kernel_tiles.kind_of(platform, None))
    kernels = sum(KERNEL in line for line in calls)
    yield {"kernels": kernels, "listed": listed, "blocks": kernel_tiles.BLOCKS.get(listed)}


def step(size: Size, dtype: str, precision: str) -> Iterator[dict[str, Any]]:
    """Largest relative differences of two updates here from the same two in float32 on the CPU."""
    import jax
    import numpy as np

    expected = updates(size, jax.devices("cpu")[0], "float32", "highest")
    found = updates(size, jax.devices()[0], dtype, precision)
    away = {name: float(np.linalg.norm(found[name] - x) / np.linalg.norm(x)) for name, x in expected.items()}
    bound = BOUNDS[dtype, precision]
    verdict = EQUAL if all(value <= bound for value in away.values()) else f"more than {bound:g} away"
    yield {"dtype": dtype, "precision": precision, "bound": bound, "away": away, "verdict": verdict}


@functools.cache  # the CPU's are the same for all numerics
def updates(size: Size, device: Any, dtype: str, precision: str) -> dict[str, Any]:
    """Loss and gradient norm of two updates of the quickstart's model on one device, and how far parameters went."""
    import jax
    import numpy as np
    import optax

    import prefjax as px

    tokenizer, objective = px.ByteTokenizer(), px.objective("dpo", beta=2.0)
    trees, _ = px.encode(px.synthetic.World(0).pairs(256), tokenizer, objective)
    rows = next(px.pack(trees, objective, tokens_per_step=size.tokens, seed=0))
    sizes = dict(num_layers=3, width=96, num_heads=4, num_kv_heads=2, head_width=24, mlp_width=256)
    model = px.ModelConfig(vocab_size=tokenizer.vocab_size, dtype=dtype, **sizes)
    with jax.default_device(device), jax.default_matmul_precision(precision):
        setup = px.Setup(model, objective, mesh=px.make_mesh(px.MeshConfig(), [device]))
        with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
            start = jax.device_get(px.init(model, seed=0))  # the same numbers wherever they go
        state = px.init_state(setup, start, optax.sgd(0.3))
        step, found = px.make_train_step(setup), {}
        for name in ("first", "second"):
            state, metrics = step(state, rows)
            found |= {f"{name} loss": np.float64(metrics["loss"]), f"{name} gradient": np.float64(metrics["grad_norm"])}
    went = jax.tree.map(lambda a, b: np.ravel(np.asarray(a, np.float64) - b), state.params["policy"], start)
    return found | {"parameters": np.concatenate(jax.tree.leaves(went))}


def ceilings(size: Size) -> Iterator[dict[str, Any]]:
    """What a large matmul and a large copy reach here: the ceilings of everything after it."""
    import jax
    import jax.numpy as jnp

    a, b = (jax.random.normal(jax.random.key(n), (size.side, size.side), jnp.bfloat16) for n in (0, 1))
    matmul = jax.jit(lambda a, b: a @ b).lower(a, b).compile()
    yield {"matmul_tflops": 2 * size.side**3 / seconds_of(lambda: matmul(a, b)) / 1e12}
    long = jax.random.normal(jax.random.key(2), (4 * size.side, size.side), jnp.float32)
    copy = jax.jit(lambda x: x + 1).lower(long).compile()
    yield {"copy_gigabytes_per_second": 2 * long.nbytes / seconds_of(lambda: copy(long)) / 1e9}


def seconds_of(call: Callable[[], Any], repeats: int = 5, at_least: float = 0.02) -> float:
    """Median of one call, of `repeats` batches of calls in flight that take `at_least` so long together."""
    import jax

    from experiments.benchmarks.sweep import Times

    def batch(count: int) -> float:
        began = time.perf_counter()
        results = [call() for _ in range(count)]
        jax.block_until_ready(results)
        return (time.perf_counter() - began) / count

    batch(1)  # warms up
    count = max(1, min(20, round(at_least / batch(1))))
    return Times(batch(count) for _ in range(repeats)).median
