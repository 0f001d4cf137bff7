"""Rotary positions: the angular frequencies of a model's layers, and the rotation of query and key heads by them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from prefjax.options import REQUIRED, check_ranges, option

Rotation = tuple[Float[Array, "R T 1 h"], Float[Array, "R T 1 h"]]  # cosine and sine; h is half a head's width
KINDS = ("linear", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How a model's frequencies were stretched to serve longer texts than it was first trained on."""

    kind: str = option(
        REQUIRED,
        '"linear": every frequency divided by `factor` (arXiv 2306.15595); "llama3": only those that rotate less '
        "than `low_frequency_factor` times within `original_length` positions, none that rotate more than "
        "`high_frequency_factor` times, and a blend between (Llama 3.1, arXiv 2407.21783, section 3.4.2)",
        choices=KINDS,
    )
    factor: float = option(REQUIRED, "by how much", above=0)
    low_frequency_factor: float | None = option(None, "of llama3 only", above=0)
    high_frequency_factor: float | None = option(None, "of llama3 only", above=0)
    original_length: int | None = option(None, "of llama3 only", at_least=1)

    def __post_init__(self):
        check_ranges(self, "model.rope_scaling")
        for field in ("low_frequency_factor", "high_frequency_factor", "original_length"):
            if (getattr(self, field) is None) == (self.kind == "llama3"):
                raise ValueError(f"rope_scaling.{field}={getattr(self, field)}: set it exactly when kind is 'llama3'")


def frequencies(head_width: int, theta: float, scaling: RopeScaling | None = None) -> Float[np.ndarray, "h"]:
    """Radians per position of each of the head_width / 2 pairs (arXiv 2104.09864, section 3.2.2), scaled."""
    radians = theta ** (-np.arange(0, head_width, 2) / head_width)
    if scaling is None:
        return radians
    stretched = radians / scaling.factor
    if scaling.kind == "linear":
        return stretched
    rotations = scaling.original_length * radians / (2 * np.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = np.clip((rotations - low) / (high - low), 0, 1)
    return kept * radians + (1 - kept) * stretched


def rotation(positions: Int[Array, "R T"], frequencies: Float[np.ndarray, "h"], dtype: jnp.dtype) -> Rotation:
    """Cosine and sine of every position's angles, to be computed once for all layers."""
    angle = positions[:, :, None].astype(dtype) * jnp.asarray(frequencies, dtype)[None, None]
    return jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]


def rotate(x: Float[Array, "R T N H"], rotation: Rotation) -> Float[Array, "R T N H"]:
    """Rotates heads by their positions' angles, halves convention, in the precision of `rotation`."""
    cosine, sine = rotation
    first, second = jnp.split(x.astype(cosine.dtype), 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1).astype(x.dtype)
