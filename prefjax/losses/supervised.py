"""The supervised objective: imitate every valid response. No reference, no preference."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.losses.types import Responses


def sft(r: Responses, *, normalize: Literal["length", "none"] = "length") -> Float[Array, "B"]:
    """Negative log-likelihood of the responses in nats, mean over each prompt's valid responses (any K >= 1).

    normalize  "length": per token, -logp / length (needs length). "none": per response, -logp, the sum over tokens.

    Every valid response is imitated, rejected ones too: choose the responses when preparing the data. Most SFT
    trainers (TRL's among them) instead average over all tokens of the batch, so that long responses weigh more; here
    every prompt weighs the same.

    Raises:
        ValueError: normalize is neither.

    >>> batch = Responses(logp=jnp.array([[-12.0, -3.0]]), length=jnp.array([[6.0, 2.0]]))
    >>> print(sft(batch)[0], sft(batch, normalize="none")[0])
    1.75 7.5
    """
    if normalize not in ("length", "none"):
        raise ValueError(f"sft takes normalize='length' or 'none', got {normalize!r}")
    if normalize == "length":
        r.require("length")
    r = r.masked()
    return r.prompt_mean(-r.logp / jnp.maximum(r.length, 1) if normalize == "length" else -r.logp)
