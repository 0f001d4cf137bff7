"""What the forms of attention take and give, in one shape for all of them."""

from typing import NamedTuple

from jaxtyping import Array, Float


class Heads(NamedTuple):
    """Heads of all tokens, or the gradients of them; N query heads, M key heads, N a multiple of M."""

    query: Float[Array, "R N T H"]
    key: Float[Array, "R M T H"]
    value: Float[Array, "R M T H"]


class Attended(NamedTuple):
    """What a forward pass leaves for the backward one: the output, and the log-sum-exp of every query's logits."""

    output: Float[Array, "R N T H"]
    log_total: Float[Array, "R N T"]


class Options(NamedTuple):
    """What logits are made of; constants of a program.

    scale    factor on query . key
    softcap  logits become softcap * tanh(logits / softcap) (Gemma 2, arXiv 2408.00118 section 2); None is off
    """

    scale: float
    softcap: float | None = None
