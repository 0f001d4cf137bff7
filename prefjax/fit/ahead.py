"""The real train step compiled for chips that are not here: what it needs of each of them, known before renting any."""

import dataclasses
import functools
import importlib.util
import math
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from prefjax.models import decoder, init, lora
from prefjax.rows.arrays import Rows, RowShape
from prefjax.rows.layout import build_rows
from prefjax.training.mesh import parameter_shardings, row_sharding
from prefjax.training.optimizers import OptimizerConfig, make_optimizer
from prefjax.training.scoring import Setup
from prefjax.training.step import TrainState, init_params, initial_carried, jit_train_step, state_shardings

COMPILERS = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}  # platform -> the package that compiles for it


class CompilerMissing(RuntimeError):
    """The compiler for absent chips is not installed."""


class DoesNotFit(RuntimeError):
    """The compiler found no way to hold the step in a device's memory; the message says what it said."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    parameters, optimizer, reference, batch  the step's arguments, by their shapes and shardings
    arguments    the same by the compiler, which pads small arrays to its tiles
    temporaries  gradients, activations and workspace, as if nothing shared a place
    peak         most at any time, arguments included: what must fit
    """

    parameters: int
    optimizer: int
    reference: int
    batch: int
    arguments: int
    temporaries: int
    peak: int


def absent_devices(
    platform: str, shape: str, *, chip: str = "", megacore: bool = False, target: str = ""
) -> list[jax.Device]:
    """Devices to build a mesh of and compile for, with no such hardware here. Start Python with JAX_PLATFORMS=cpu.

    Args:
      platform: "tpu" or "cuda".
      shape: of the slice, "4x4"; for GPUs "1x8x1", one node of eight.
      chip: TPU: "v4", "v5e", "v5p", "v6e" or "tpu7x".
      megacore: TPU: the two cores of a chip are one device.
      target: CUDA: the card, as text of an xla.GpuTargetConfigProto.

    Raises:
      CompilerMissing: names the package and how to get it.
    """
    if importlib.util.find_spec(COMPILERS[platform]) is None:
        raise CompilerMissing(
            f"{COMPILERS[platform]}, the compiler for {platform}, is not installed. In an environment of its own: "
            "pip install -r requirements.txt -r requirements-aot.txt"
        )
    if platform == "cuda":
        return topologies.get_topology_desc(platform="cuda", target_config=target, topology=shape).devices
    # libtpu looks for a machine with TPUs around it, and for other processes that use them.
    for name, value in (
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "true"),
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "none"),
    ):
        os.environ.setdefault(name, value)
    options = {"chip_config_name": "megacore"} if megacore else {}
    if math.prod(map(int, shape.split("x"))) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    return topologies.get_topology_desc(f"{chip}:{shape}", platform="tpu", **options).devices


def abstract_state(setup: Setup, config: OptimizerConfig) -> TrainState:
    """The state that `init_state` makes on the setup's mesh, as shapes with shardings; without what is frozen."""
    tx = make_optimizer(config, steps=2 * config.warmup_steps + 1)  # the schedule's constants; no shape depends on them

    def make(key):
        params = init_params(setup, init(setup.model, key))
        follows = init(setup.model, key) if setup.update_every else None
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, tx.init(params), follows, skipped=zero, carried=initial_carried(setup), tx=tx)

    shapes = jax.eval_shape(make, jax.random.key(0))
    return _placed(shapes.changing(), state_shardings(setup, shapes)).replace(tx=tx)


def abstract_frozen(setup: Setup) -> Any:
    """A live reference or the adapters' base, as shapes with shardings; None where a step takes neither."""
    if setup.reference != "live" and not setup.lora.rank:
        return None
    shapes = _frozen_shapes(setup)
    return _placed(shapes, parameter_shardings(setup.mesh, shapes))


def _frozen_shapes(setup: Setup) -> Any:
    return jax.eval_shape(functools.partial(lora.freeze, setup.lora), decoder.shapes(setup.model))


def abstract_rows(setup: Setup, shape: RowShape) -> Rows:
    """The rows of all hosts that a step receives, as shapes with shardings; `shape` is that of all hosts together."""
    rows = build_rows([], shape)
    if setup.reference == "precomputed":
        rows = rows._replace(reference_logp=rows.response_ends.astype(np.float32))
    sharding = row_sharding(setup.mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), rows)


def compile_train_step(setup: Setup, config: OptimizerConfig, shape: RowShape) -> tuple[jax.stages.Compiled, Memory]:
    """Compiles what `make_train_step` makes for the setup's mesh, whose devices need not exist.

    Raises:
      DoesNotFit: the compiler ran out of the devices' memory.
    """
    state, rows = abstract_state(setup, config), abstract_rows(setup, shape)
    frozen = abstract_frozen(setup)
    lowered = jit_train_step(setup, state.replace(frozen=frozen)).lower(state.changing(), frozen, rows)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_reason(str(error))) from error
    found = compiled.memory_analysis()
    memory = Memory(
        parameters=device_bytes(state.params),
        optimizer=device_bytes(state.opt_state),
        reference=device_bytes(frozen),
        batch=device_bytes(rows),
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        peak=found.peak_memory_in_bytes,
    )
    return compiled, memory


def device_bytes(tree: Any) -> int:
    """Bytes of one device's shards of a tree of arrays or of their shapes with shardings."""
    bits = lambda dtype: jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else 8 * np.dtype(dtype).itemsize
    size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * bits(x.dtype) // 8  # two 4-bit codes in a byte
    return sum(map(size, jax.tree.leaves(tree)))


def _placed(shapes: Any, shardings: Any) -> Any:
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(place, shapes, shardings)


def _reason(message: str) -> str:
    """The first sentence of the compiler's out-of-memory message."""
    told = re.search(r"Ran out of memory.*?(?:\.\s|\.$|\n|$)", message, re.DOTALL)
    return " ".join((told[0] if told else message[:300]).split())
