"""Flash attention with one derivative: forward and backward each run the kernels of the platform the program is lowered
for, or live tiles in plain XLA where there are none.

The choice is made inside the forward and inside the backward. Were it differentiated instead, every program would keep
between the two what the backward of every platform needs.
"""

import functools
from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from prefjax.models.attention import kernels, tiled
from prefjax.models.attention.mask import Mask
from prefjax.models.attention.types import Heads, Options

SAVED = "attention"  # the name of what a rematerialisation policy may keep, so as not to run the forward again


def attention(
    query: Float[Array, "R T N H"],
    key: Float[Array, "R T M H"],
    value: Float[Array, "R T M H"],
    mask: Mask,
    options: Options,
) -> Float[Array, "R T N H"]:
    """Attention by the kernels of whichever platform the program is lowered for, else by the mask's tiles.

    Without tiles the mask has the kernels of one platform, and they run wherever they can.
    """
    heads = Heads(*(x.swapaxes(1, 2) for x in (query, key, value)))
    return _attention(heads, mask, options).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attention(heads: Heads, mask: Mask, options: Options):
    return _forward(heads, mask, options)[0]


def _forward(heads: Heads, mask: Mask, options: Options):
    attended = _run(kernels.forward, tiled.forward, (heads,), mask, options)
    attended = jax.tree.map(lambda x: checkpoint_name(x, SAVED), attended)
    return attended.output, (heads, attended, mask)


def _backward(options: Options, residuals, upstream):
    heads, attended, mask = residuals
    return _run(kernels.backward, tiled.backward, (heads, attended, upstream), mask, options), None


_attention.defvjp(_forward, _backward)


def _run(kernel: Callable, loop: Callable, arrays: tuple, mask: Mask, options: Options):
    branches = {name: functools.partial(kernel, options=options, platform=name) for name in mask.kernel_tiles}
    loop = functools.partial(loop, options=options)
    if mask.tiles is None:
        (only,) = branches.values()
        return only(*arrays, mask)
    return jax.lax.platform_dependent(*arrays, mask, **branches, default=loop) if branches else loop(*arrays, mask)
