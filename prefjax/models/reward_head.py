"""The reward head: what a reward model says of a response, read from the hidden state of its last token."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prefjax.models.decoder import ModelConfig
from prefjax.models.parameters import Params
from prefjax.options import check_ranges, option


@dataclasses.dataclass(frozen=True)
class RewardHead:
    """What a reward model says of a response: a scalar, or an embedding."""

    width: int = option(
        1,
        "m: 1 is a scalar reward; an even one an embedding for the general preference model (arXiv 2410.02197)",
        at_least=1,
    )
    normalize: bool = option(False, "embeddings have length 1")
    gate: bool = option(
        False,
        "blocks of an embedding are weighted by softmax(W h), h the hidden state of the last prompt token: the "
        "eigenvalues of the preference operator depend on the prompt, and sum to 1",
    )

    def __post_init__(self):
        check_ranges(self, "reward_head")
        if self.width != 1 and self.width % 2:
            raise ValueError(f"reward_head.width={self.width}: 1 for a scalar reward, or even for an embedding")
        for field in ("normalize", "gate"):
            if self.width == 1 and getattr(self, field):
                raise ValueError(f"reward_head.{field} is of embeddings: set reward_head.width to an even number")


def init(head: RewardHead, config: ModelConfig, key: jax.Array) -> Params:
    """Parameters of the head, to merge into a decoder's. It has no bias, as Hugging Face's have none.

    Scalar rewards are 0 at first. Embeddings are not, as 0 is a saddle point of their scores: N(0, 1 / (D + 1)^2) as in
    the authors' code.
    """
    dtype = jnp.dtype(config.param_dtype)
    drawn = lambda key, width: jax.random.normal(key, (config.width, width), dtype) / (config.width + 1)
    if head.width == 1:
        return {"reward_head": jnp.zeros((config.width, 1), dtype)}
    first, second = jax.random.split(key)
    params = {"reward_head": drawn(first, head.width)}
    return params | {"reward_gate": drawn(second, head.width // 2)} if head.gate else params


def last_states(
    hidden: Float[Array, "R T D"], response_ends: Int[Array, "B G N"], responses: int
) -> Float[Array, "B G K D"]:
    """Hidden states of the last token of the first `responses` branches; one gather, whatever the layout.

    R = B, or B * N where branch n of a group has row b * N + n (layout `pairs`).
    """
    groups, branches = response_ends.shape[1:]
    rows, length, width = hidden.shape
    copies = rows // len(response_ends)
    row = jnp.arange(branches) % copies  # all 0 where the branches share their row
    places = (response_ends + length * row[None, None])[..., :responses]
    states = hidden.reshape(-1, copies * length, width)
    found = jnp.take_along_axis(states, places.reshape(len(places), -1, 1), axis=1)
    return found.reshape(-1, groups, responses, width)


def features(
    head: RewardHead,
    params: Params,
    states: Float[Array, "B G K D"],
    prompt_states: Float[Array, "B G D"] | None = None,
) -> Float[Array, "B G K m"]:
    """What the head reads, at least float32.

    Args:
      states: of the last token of every response.
      prompt_states: of the last token of every prompt; read by the gate.
    """
    wide = jnp.promote_types(states.dtype, jnp.float32)
    v = jnp.einsum("bgkd,dm->bgkm", states.astype(wide), params["reward_head"].astype(wide))
    if head.normalize:
        v *= jax.lax.rsqrt(jnp.sum(v**2, axis=-1, keepdims=True) + 1e-12)
    if head.gate:
        # A block's score is a product of two embeddings, so its weight goes into each of them as a square root.
        logits = jnp.einsum("bgd,dm->bgm", prompt_states.astype(wide), params["reward_gate"].astype(wide))
        root = jnp.exp(jax.nn.log_softmax(logits, axis=-1) / 2)
        v *= jnp.repeat(root, 2, axis=-1)[:, :, None, :]
    return v
