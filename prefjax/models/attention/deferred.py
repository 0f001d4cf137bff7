"""Calls that are traced when a program is lowered for their platform, and not at all in programs for other platforms.

Every program with "auto" attention holds the kernels of all platforms until it is lowered for one of them. Traced only
then, the others take no time, and what they import need not be installed.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir

_FALLBACK_CARD = "NVIDIA H100"

_call = Primitive("call_when_lowered")
_call.multiple_results = True


def call(function: Callable, arguments: Any, outputs: tuple[jax.ShapeDtypeStruct, ...], *, kind: str) -> tuple:
    """`function(*arguments)`, traced when a program is lowered for TPU or CUDA; there is no other platform for it.

    Args:
      arguments: pytree of arrays.
      outputs: shapes and dtypes of the arrays that it returns.
      kind: of chip that the program will run on.
    """
    leaves, tree = jax.tree.flatten(arguments)
    avals = tuple(jax.core.ShapedArray(x.shape, x.dtype) for x in outputs)
    return tuple(_call.bind(*leaves, function=function, tree=tree, outputs=avals, kind=kind))


@_call.def_impl
def _(*leaves, **options):
    return jax.jit(lambda *leaves: _call.bind(*leaves, **options))(*leaves)


@_call.def_abstract_eval
def _(*_, outputs, **__):
    return outputs


def _traced(*leaves, function, tree, **_):
    return tuple(function(*jax.tree.unflatten(tree, leaves)))


def _lower_cuda(context, *operands, **options):
    lower = mlir.lower_fun(_traced)
    if jax.default_backend() == "gpu":
        return lower(context, *operands, **options)
    # Without a card here JAX must be told which one the kernels are for (since jax 0.11; harmless before). That is part
    # of a mesh, so the kernel is traced as the program of one device, which it is.
    card = options["kind"] if options["kind"].startswith("NVIDIA") else _FALLBACK_CARD
    device = jax.sharding.AbstractDevice(device_kind=card, num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        avals = [jax.core.ShapedArray(x.shape, x.dtype) for x in context.avals_in]
        return lower(context.replace(avals_in=avals), *operands, **options)


mlir.register_lowering(_call, mlir.lower_fun(_traced), platform="tpu")
mlir.register_lowering(_call, _lower_cuda, platform="cuda")
