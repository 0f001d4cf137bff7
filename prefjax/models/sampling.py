"""Sampling responses with a key/value cache: one prefill of the prompts, then one token of every sequence at a time."""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from prefjax.models import decoder
from prefjax.models.decoder import ModelConfig, Params


class Samples(NamedTuple):
    """Sampled responses: `tokens` [B, L] with the end token kept, `pad_id` after it; `lengths` [B]; `ended` [B]."""

    tokens: Int[Array, "B L"]
    lengths: Int[Array, "B"]
    ended: Array


@flax.struct.dataclass
class DecodingStep:
    """What the tokens at `positions` see: every cached key at or before them. The decoder's view while sampling."""

    positions: Int[Array, "B L"]
    mesh: None = flax.struct.field(default=None, pytree_node=False)

    def spread(self, activations):
        """Sampling leaves the placement of activations to the partitioner."""
        return activations

    def attend(self, query, key, value, cache, *, scale, softcap, window):
        """Writes keys and values into the cache at `positions`, then attends over it; returns (output, cache)."""
        keys, values = cache
        example = jnp.arange(query.shape[0])[:, None]
        keys, values = keys.at[example, self.positions].set(key), values.at[example, self.positions].set(value)
        rows, length, heads, width = query.shape
        grouped = query.reshape(rows, length, keys.shape[2], -1, width)
        wide = jnp.promote_types(query.dtype, jnp.float32)
        logits = jnp.einsum("rimgh,rjmh->rmgij", grouped, keys, preferred_element_type=wide) * scale
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        back = self.positions[:, :, None] - jnp.arange(keys.shape[1])[None, None]
        mask = back >= 0
        if window is not None:
            mask &= back < window
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], logits, jnp.finfo(wide).min), axis=-1)
        output = jnp.einsum("rmgij,rjmh->rimgh", weights.astype(values.dtype), values, preferred_element_type=wide)
        return output.reshape(rows, length, heads, width).astype(query.dtype), (keys, values)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("max_new_tokens", "top_k", "eos_id", "pad_id"))
def sample(
    config: ModelConfig,
    params: Params,
    prompts: Int[Array, "B P"],
    prompt_lengths: Int[Array, "B"],
    key: jax.Array,
    *,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    temperature: Float[Array, ""] | float = 1.0,
    top_k: int = 0,
) -> Samples:
    """Samples one response per prompt from pi(. | prompt).

    Args:
      prompts: right-padded token ids; `prompt_lengths` [B] >= 1 says where each ends.
      temperature: logits are divided by it; 0 takes the most likely token.
      top_k: keep the k most likely tokens only; 0 keeps all.

    Returns:
      Responses of at most `max_new_tokens` tokens. `ended` is False where that limit cut a response off: such a
      response has no end token.
    """
    batch, prompt_length = prompts.shape
    head = decoder.vocabulary_head(config, params)
    cache_shape = (config.num_layers, batch, prompt_length + max_new_tokens, config.num_kv_heads, config.head_width)
    cache = (jnp.zeros(cache_shape, config.dtype),) * 2

    def forward(tokens, positions, cache):
        return decoder.Decoder(config).apply({"params": params}, tokens, DecodingStep(positions=positions), cache)

    def choose(hidden, key):
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        logits = jnp.einsum("bd,vd->bv", hidden, head.astype(hidden.dtype), preferred_element_type=wide)
        if config.logit_softcap is not None:
            logits = config.logit_softcap * jnp.tanh(logits / config.logit_softcap)
        if top_k:
            logits = jnp.where(logits < jax.lax.top_k(logits, top_k)[0][:, -1:], -jnp.inf, logits)
        drawn = jax.random.categorical(key, logits / jnp.where(temperature > 0, temperature, 1))
        return jnp.where(temperature > 0, drawn, logits.argmax(-1)).astype(prompts.dtype)

    # Positions after a prompt's end hold padding now; decoding overwrites each before any query can see it.
    positions = jnp.broadcast_to(jnp.arange(prompt_length)[None], prompts.shape)
    hidden, cache = forward(prompts, positions, cache)
    last = jnp.take_along_axis(hidden, (prompt_lengths - 1)[:, None, None], axis=1)[:, 0]

    def unfinished(carry):
        step, ended = carry[0], carry[3]
        return (step < max_new_tokens) & ~ended.all()

    def advance(carry):
        step, tokens, lengths, ended, last, cache, key = carry
        key, draw = jax.random.split(key)
        token = jnp.where(ended, pad_id, choose(last, draw))
        tokens = tokens.at[:, step].set(token)
        lengths += ~ended
        ended |= token == eos_id
        hidden, cache = forward(token[:, None], (prompt_lengths + step)[:, None], cache)
        return step + 1, tokens, lengths, ended, hidden[:, 0], cache, key

    tokens = jnp.full((batch, max_new_tokens), pad_id, prompts.dtype)
    start = (0, tokens, jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool), last, cache, key)
    _, tokens, lengths, ended, *_ = jax.lax.while_loop(unfinished, advance, start)
    return Samples(tokens=tokens, lengths=lengths, ended=ended)
