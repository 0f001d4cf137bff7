"""The supervised objective: imitate every valid response. No reference, no preference."""

from typing import Literal

from jaxtyping import Array, Float

from prefjax.losses.reducers import per_token
from prefjax.losses.registry import LENGTH, for_singles
from prefjax.losses.responses import Responses


@for_singles(LENGTH, imitates=True)
def sft(r: Responses, *, normalize: Literal["length", "none"] = "length") -> Float[Array, "B"]:
    """Supervised fine-tuning: -logp / n, n the response's tokens; mean over each prompt's valid responses, nats.

    Source: maximum likelihood.
    Tokens: mean (normalize="length") or summed ("none").
    Start: depends on the model.
    Elsewhere: TRL and EasyDeL have it as a trainer; TRL's averages over all tokens of the batch.

    normalize  "length": per token, -logp / length (needs length). "none": per response, -logp, the sum over tokens.

    Every valid response is imitated, rejected ones too: choose the responses when preparing the data. Most SFT
    trainers average over all tokens of the batch, so that long responses weigh more; here every prompt weighs the same.

    Raises:
        ValueError: normalize is neither.

    >>> import jax.numpy as jnp
    >>> batch = Responses(logp=jnp.array([[-12.0, -3.0]]), length=jnp.array([[6.0, 2.0]]))
    >>> print(sft(batch)[0], sft(batch, normalize="none")[0])
    1.75 7.5
    """
    if normalize not in ("length", "none"):
        raise ValueError(f"sft takes normalize='length' or 'none', got {normalize!r}")
    if normalize == "length":
        r.require("length")
    r = r.masked()
    return r.prompt_mean(-per_token(r, r.logp) if normalize == "length" else -r.logp)
