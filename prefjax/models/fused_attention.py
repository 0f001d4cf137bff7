"""Flash attention with one derivative: forward and backward each run the kernels of the platform the program is lowered
for, or live tiles in plain XLA where there are none.

The choice is made inside the forward and inside the backward. Were it differentiated instead, every program would keep
between the two what the backward of every platform needs.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from prefjax.models import pallas_attention, tiled_attention
from prefjax.models.pallas_tiles import KernelPlan

SAVED = "attention"  # the name of what a rematerialisation policy may keep, so as not to run the forward kernel again


def attention(
    query: Float[Array, "R T N H"],
    key: Float[Array, "R T M H"],
    value: Float[Array, "R T M H"],
    visible_until: Int[Array, "R T"],
    positions: Int[Array, "R T"],
    tiles: tiled_attention.Tiles | None,
    kernels: dict[str, KernelPlan],
    window: Int[Array, ""] | None,
    *,
    scale: float,
    softcap: float | None,
    interpret: bool,
) -> Float[Array, "R T N H"]:
    """`attention.attend` by the kernels of whichever platform in `kernels` the program is lowered for, else by `tiles`.

    Without tiles there is one platform in `kernels`, and its kernels run wherever they can; `interpret` emulates them.
    """
    heads_first = (x.swapaxes(1, 2) for x in (query, key, value))
    mask = (visible_until, positions, tiles, kernels, window)
    return _attention(*heads_first, mask, scale, softcap, interpret).swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attention(query, key, value, mask, scale, softcap, interpret):
    return _forward(query, key, value, mask, scale, softcap, interpret)[0]


def _forward(query, key, value, mask, scale, softcap, interpret):
    options = dict(scale=scale, softcap=softcap)
    arrays = (query, key, value)
    output, log_total = _lower(pallas_attention.forward, _tiled_forward, arrays, mask, options, interpret)
    output, log_total = (checkpoint_name(x, SAVED) for x in (output, log_total))
    return output, (*arrays, output, log_total, mask)


def _backward(scale, softcap, interpret, residuals, upstream):
    *arrays, mask = residuals
    options = dict(scale=scale, softcap=softcap)
    gradients = _lower(pallas_attention.backward, _tiled_backward, (*arrays, upstream), mask, options, interpret)
    return *gradients, None


_attention.defvjp(_forward, _backward)


def _lower(kernel, tiled, arrays, mask, options, interpret: bool):
    _, _, tiles, kernels, _ = mask

    def on(platform, arrays, mask):
        *_, kernels, window = mask
        return kernel(*arrays, kernels[platform], window, platform=platform, interpret=interpret, **options)

    branches = {platform: functools.partial(on, platform) for platform in kernels}
    if tiles is None:
        (only,) = branches.values()
        return only(arrays, mask)
    return jax.lax.platform_dependent(arrays, mask, **branches, default=functools.partial(tiled, **options))


def _tiled_forward(arrays, mask, *, scale, softcap):
    length = arrays[0].shape[2]
    arrays, tiled_mask, tiles = _whole_blocks(arrays, mask)
    output, (*_, log_total) = tiled_attention.forward(*arrays, tiled_mask, tiles, scale, softcap)
    return output[:, :, :length], log_total[:, :, :length]


def _tiled_backward(arrays, mask, *, scale, softcap):
    length = arrays[0].shape[2]
    (*inputs, output, log_total, upstream), tiled_mask, tiles = _whole_blocks(arrays, mask)
    residuals = (*inputs, tiled_mask, tiles, output, log_total)
    *gradients, _, _ = tiled_attention.backward(scale, softcap, residuals, upstream)
    return tuple(x[:, :, :length] for x in gradients)


def _whole_blocks(arrays, mask):
    visible_until, positions, tiles, _, window = mask
    pad = -positions.shape[1] % tiled_attention.BLOCK
    arrays = tuple(jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, 0))[: x.ndim]) for x in arrays)
    positions = jnp.pad(positions, ((0, 0), (0, pad)))
    return arrays, (tiled_attention.pad_visible_until(visible_until), positions, window), tiles
