"""Reducers: from `Responses` to the few numbers an objective is a function of. An objective is reducer, link, target.

`pairs`, `token_pairs`, `singles` and `groups` check what an objective reads and put zeros into invalid slots (the inner
half of the "double where" of `Responses.masked`); `of_pairs`, `prompt_mean` and `of_groups` are the outer half, exactly
0 where nothing counts. In between:

    a(y) = logp(y) - reference_logp(y)      `log_ratio`, 0 when policy == reference
    h    = a(chosen) - a(rejected)          `gap(log_ratio(r))`, the margin of a pair
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prefjax.losses.responses import Responses


def pairs(r: Responses, *needs: str) -> Responses:
    """Pairs, chosen in slot 0 and rejected in slot 1, with `needs`; half a pair is none."""
    r.require(*needs, group_size=2)
    return r.masked(whole_groups=True)


def token_pairs(r: Responses, *needs: str) -> Responses:
    """Pairs with the token arrays of `needs`, which are 0 behind the last token of each response."""
    r = pairs(r, "length", *needs)
    arrays = {name: getattr(r, name) for name in needs if name.startswith("token_")}
    kept: dict[str, Any] = {name: jnp.where(token_numbers(x) < r.length[..., None], x, 0) for name, x in arrays.items()}
    return dataclasses.replace(r, **kept)


def singles(r: Responses, *needs: str) -> Responses:
    """Any number of responses, each judged alone."""
    r.require(*needs)
    return r.masked()


def groups(r: Responses, *needs: str, least: int = 2) -> Responses:
    """At least two (`least`) responses to compare; a prompt with fewer valid ones does not count."""
    r.require(*needs, min_responses=least)
    return r.masked(min_responses=least)


def log_ratio(r: Responses) -> Float[Array, "B K"]:
    """log pi(y|x) - log reference(y|x), summed over tokens, nats."""
    return r.logp - r.reference_logp


def per_token(r: Responses, x: Float[Array, "B K"]) -> Float[Array, "B K"]:
    """A sum over the tokens of each response as their mean (only masked slots have length 0)."""
    return x / jnp.maximum(r.length, 1)


def token_numbers(x: Float[Array, "B K L"]) -> Int[Array, "1 1 L"]:
    """t of every entry of a token array; it is about a token where t < length."""
    return jnp.arange(x.shape[-1])[None, None]


def token_log_ratio(r: Responses) -> Float[Array, "B K L"]:
    """log pi - log reference of every token, nats."""
    return r.token_logp - r.token_reference_logp


def gap(x: Float[Array, "B 2"]) -> Float[Array, "B"]:
    """Chosen minus rejected."""
    return x[:, 0] - x[:, 1]


def sides(x: Float[Array, "B 2"]) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """(chosen, rejected)."""
    return x[:, 0], x[:, 1]


def of_pairs(r: Responses, losses: Float[Array, "B"]) -> Float[Array, "B"]:
    """The losses of the pairs that count."""
    return jnp.where(r.valid[:, 0], losses, 0)


def of_groups(r: Responses, losses: Float[Array, "B"]) -> Float[Array, "B"]:
    """The losses of the prompts that count."""
    return jnp.where(jnp.any(r.valid, axis=-1), losses, 0)


def batch_mean(x: Float[Array, "*n"], where: Bool[Array, "*n"]) -> Float[Array, ""]:
    """Mean of `x` over the whole batch where `where`; 0 of none. What reads it is coupled."""
    return jnp.sum(jnp.where(where, x, 0)) / jnp.maximum(jnp.sum(where), 1)


def from_zero(*names: str) -> Callable[..., dict[str, float]]:
    """(momentum, other options) -> what `moving_mean` reads in the first step; nothing with momentum 0."""
    return lambda *, momentum, **_: dict.fromkeys(names, 0.0) if momentum else {}


def moving_mean(
    r: Responses, name: str, x: Float[Array, "*n"], where: Bool[Array, "*n"], momentum: float
) -> Float[Array, ""]:
    """What the batch moves the carried mean of this name to: momentum * carried + (1 - momentum) * the batch's own.

    A batch without a sample leaves it where it was. With momentum 0 nothing is carried: the batch's own mean.
    """
    own = batch_mean(x, where)
    if not momentum:
        return own
    r.require("carried")
    return jnp.where(jnp.any(where), momentum * r.carried[name] + (1 - momentum) * own, r.carried[name])
