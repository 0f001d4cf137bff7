"""The supervised objectives: imitate every valid response. No reference, no preference."""

from typing import Literal

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from prefjax.losses.reducers import per_token, singles, token_numbers
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


@for_singles(LENGTH | {"token_logp"}, imitates=True)
def dft(r: Responses) -> Float[Array, "B"]:
    """Dynamic fine-tuning (DFT): -1/n sum_t stop_gradient(e^logp_t) logp_t, n the response's tokens; mean over each
    prompt's valid responses, nats.

    Source: arXiv 2508.05629, as TRL's `dft` has it.
    Tokens: mean.
    Start: depends on the model.
    Elsewhere: TRL's SFT with `dft`, a mean over all tokens of the batch; not in EasyDeL.

    `sft` with every token's gradient times its own probability: what the policy finds unlikely is hardly imitated. For
    the stage before: --config.sft.objective=dft.

    >>> import jax.numpy as jnp
    >>> likely = jnp.log(jnp.array([[[0.5, 1.0]]]))
    >>> batch = Responses(logp=jnp.array([[-0.69]]), length=jnp.array([[2.0]]), token_logp=likely)
    >>> print(f"{dft(batch)[0]:.4f}")  # half of half of log 2
    0.1733
    """
    r = singles(r, "length", "token_logp")
    logp = jnp.where(token_numbers(r.token_logp) < r.length[..., None], r.token_logp, 0)
    probability = stop_gradient(jnp.exp(jnp.minimum(logp, 0)))
    return r.prompt_mean(-per_token(r, jnp.sum(probability * logp, axis=-1)))
