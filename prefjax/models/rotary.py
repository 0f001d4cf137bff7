"""Rotary positions: the angular frequencies of a model's layers, and the turning of query and key heads by them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Turns = tuple[Float[Array, "R T 1 h"], Float[Array, "R T 1 h"]]  # cosine and sine; h is half a head's width
KINDS = ("linear", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How a model's frequencies were stretched to serve longer texts than it was first trained on.

    kind             "linear": every frequency divided by `factor` (arXiv 2306.15595); "llama3": only those that turn
                     less than `low_turns` times within `original_length` positions, none that turn more than
                     `high_turns` times, and a blend between (Llama 3.1, arXiv 2407.21783, section 3.4.2)
    factor           by how much
    low_turns, high_turns, original_length   of "llama3" only
    """

    kind: str
    factor: float
    low_turns: float | None = None
    high_turns: float | None = None
    original_length: int | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"rope_scaling.kind={self.kind!r}: choose one of {KINDS}")
        for field in ("low_turns", "high_turns", "original_length"):
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
    turns = scaling.original_length * radians / (2 * np.pi)
    kept = np.clip((turns - scaling.low_turns) / (scaling.high_turns - scaling.low_turns), 0, 1)
    return kept * radians + (1 - kept) * stretched


def turns(positions: Int[Array, "R T"], frequencies: Float[np.ndarray, "h"], dtype: jnp.dtype) -> Turns:
    """Cosine and sine of every position's angles, to be computed once for all layers."""
    angle = positions[:, :, None].astype(dtype) * jnp.asarray(frequencies, dtype)[None, None]
    return jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]


def rotate(x: Float[Array, "R T N H"], turns: Turns) -> Float[Array, "R T N H"]:
    """Turns heads by their positions' angles, halves convention, in the precision of `turns`."""
    cosine, sine = turns
    first, second = jnp.split(x.astype(cosine.dtype), 2, axis=-1)
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], -1).astype(x.dtype)
