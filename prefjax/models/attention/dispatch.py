"""Attention of one layer: by the definition, by live tiles, or by the kernels of a platform, as its mask says."""

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from prefjax.models.attention import dense, fused, kernels
from prefjax.models.attention.mask import Mask, over_shards
from prefjax.models.attention.types import Options
from prefjax.models.vocabulary import ROW_AXES


def attend(
    query: Float[Array, "R T N H"],
    key: Float[Array, "R T M H"],
    value: Float[Array, "R T M H"],
    mask: Mask,
    *,
    scale: float,
    softcap: float | None = None,
    window: Int[Array, ""] | None = None,
) -> Float[Array, "R T N H"]:
    """Softmax attention of N query heads over M key heads (N a multiple of M) under the mask.

    Args:
      scale: factor on query . key.
      softcap: logits become softcap * tanh(logits / softcap) (Gemma 2, arXiv 2408.00118 section 2); None is off.
      window: a key farther back than this many positions is hidden (sliding window); None is off.

    Raises:
      ValueError: the mask was made for kernels alone, and they do not take these heads.
    """
    options = Options(scale, softcap)
    window = None if window is None else window.astype(jnp.int32)
    if mask.tiles is None and not mask.kernel_tiles:
        return dense.attention(query, key, value, mask._replace(window=window), options)
    usable = {name: listed for name, listed in mask.kernel_tiles.items() if kernels.supports(query, name)}
    if mask.tiles is None and not usable:
        raise ValueError(
            f"attention='pallas' has no {', '.join(mask.kernel_tiles)} kernel for {query.dtype.name} heads "
            f"{query.shape[-1]} wide: set attention='auto' or 'tiled'"
        )

    def on_device(query, key, value, mask, window):
        return fused.attention(query, key, value, mask._replace(window=window), options)

    heads = P(ROW_AXES, None, "tensor", None)
    specs = (heads, heads, heads, P(ROW_AXES), P())
    mask = mask._replace(kernel_tiles=usable)
    return over_shards(on_device, mask.mesh, in_specs=specs, out_specs=heads)(query, key, value, mask, window)
