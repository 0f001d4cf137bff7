"""Sampling responses with a key/value cache: one prefill of the prompts, then one token of every sequence at a time."""

import dataclasses
import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from prefjax.models import attention, decoder, vocabulary
from prefjax.models.attention.dense import attend_to
from prefjax.models.attention.types import Options
from prefjax.models.decoder import ModelConfig
from prefjax.models.parameters import Params
from prefjax.models.vocabulary import ROW_AXES


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How a token is drawn: logits / temperature, cut to the top k, cut to the nucleus of what is left.

    temperature     0 takes the most likely token, whatever the cuts
    top_k           keep the k most likely tokens (arXiv 1805.04833, section 5.1); 0 keeps all
    top_p           keep the most likely tokens until their probabilities add up to p, the one that reaches it included
                    (nucleus, arXiv 1904.09751, section 3.1); 1 keeps all
    max_new_tokens  a response that has not ended by then is cut off, and has no end token
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 256

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must be 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be 1 or more")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError("temperature=0 takes the most likely token: top_k and top_p have no effect, drop them")


class Prompts(NamedTuple):
    """What to answer, one sequence a row.

    tokens   [B, P] right-padded token ids
    lengths  [B] where each ends; 0 marks a row that is padding: it comes back empty and ended, and nothing waits for it
    keys     [B] one random key per sequence; its token t is drawn with fold_in(key, t)
    """

    tokens: Int[Array, "B P"]
    lengths: Int[Array, "B"]
    keys: Key[Array, "B"]


class Samples(NamedTuple):
    """Sampled responses, right-padded.

    tokens   [B, L] with the stop token kept, `pad_id` after it
    logps    [B, L] log pi(token | everything before it) of the model itself (temperature 1, no cuts), nats; 0 after
             the stop token
    lengths  [B] tokens, the stop token included
    ended    [B] False where `max_new_tokens` cut the response off
    """

    tokens: Int[Array, "B L"]
    logps: Float[Array, "B L"]
    lengths: Int[Array, "B"]
    ended: Bool[Array, "B"]


@flax.struct.dataclass
class Prefill:
    """The decoder's view of the prompts: the training's own attention, whose keys and values are kept."""

    mask: attention.Mask

    @property
    def positions(self):
        return self.mask.positions

    @property
    def mesh(self):
        return self.mask.mesh

    def pin_to_rows(self, activations):
        return self.mask.pin_to_rows(activations)

    def attend(self, query, key, value, cache, **options):
        """Fills the front of the cache, and attends over the prompts alone; returns (output, cache)."""
        cache = tuple(
            jax.lax.dynamic_update_slice(kept, new, (0,) * kept.ndim)
            for kept, new in zip(cache, (key, value), strict=True)
        )
        return attention.attend(query, key, value, self.mask, **options), cache


@flax.struct.dataclass
class DecodingStep:
    """What the tokens at `positions` see: every cached key at or before them. The decoder's view while sampling."""

    positions: Int[Array, "B L"]
    mesh: Mesh | None = flax.struct.field(default=None, pytree_node=False)

    def pin_to_rows(self, activations):
        return vocabulary.pin(activations, self.mesh, ROW_AXES)

    def attend(self, query, key, value, cache, *, scale, softcap, window):
        """Writes keys and values into the cache at `positions`, then attends over it; returns (output, cache)."""
        keys, values = cache
        example = jnp.arange(query.shape[0])[:, None]
        keys, values = keys.at[example, self.positions].set(key), values.at[example, self.positions].set(value)
        back = self.positions[:, :, None] - jnp.arange(keys.shape[1])[None, None]
        seen = back >= 0
        if window is not None:
            seen &= back < window
        return attend_to(query, keys, values, seen, Options(scale, softcap)), (keys, values)


def sample(
    config: ModelConfig,
    params: Params,
    prompts: Prompts,
    options: SamplingOptions = SamplingOptions(),
    *,
    stop_ids: tuple[int, ...],
    pad_id: int,
    mesh: Mesh | None = None,
) -> Samples:
    """Samples one response per prompt from pi(. | prompt).

    A response depends on its own prompt, length and key: not on the prompts beside it, nor on padding or the mesh (up
    to rounding). Compiled once per shape, `stop_ids`, `max_new_tokens` and `top_k`, and whether `top_p` cuts.

    Args:
      stop_ids: any of these ends a response; none: all are `max_new_tokens` long.
      mesh: where rows lie over ("data", "fsdp"), heads and cache over "tensor", the vocabulary head over both; B must
        be a multiple of the row shards. None on one device.
    """
    constants = _Constants(options.max_new_tokens, tuple(stop_ids), pad_id, options.top_k, mesh)
    top_p = float(options.top_p) if options.top_p < 1 else None  # None skips sorting the vocabulary
    return _sample(config, params, prompts, float(options.temperature), top_p, constants)


class _Constants(NamedTuple):
    """What a program is compiled for, beside shapes."""

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    pad_id: int
    top_k: int
    mesh: Mesh | None


@functools.partial(jax.jit, static_argnames=("config", "constants"))
def _sample(
    config: ModelConfig, params: Params, prompts: Prompts, temperature, top_p, constants: _Constants
) -> Samples:
    max_new_tokens, stop_ids, pad_id, top_k, mesh = constants
    batch, prompt_length = prompts.tokens.shape
    head = decoder.vocabulary_head(config, params, mesh=mesh)
    cache_shape = (config.num_layers, batch, prompt_length + max_new_tokens, config.num_kv_heads, config.head_width)
    empty = vocabulary.pin(jnp.zeros(cache_shape, config.dtype), mesh, None, ROW_AXES, None, "tensor")
    stops = jnp.asarray(stop_ids, prompts.tokens.dtype)
    forward = functools.partial(decoder.Decoder(config).apply, {"params": params})

    def unfinished(carry):
        step, samples = carry[:2]
        return (step < max_new_tokens) & ~samples.ended.all()

    def advance(carry):
        step, (tokens, logps, lengths, ended), last, cache = carry
        logits = _next_logits(config, head, last, mesh)
        token = _draw(logits, jax.vmap(jax.random.fold_in, (0, None))(prompts.keys, step), temperature, top_k, top_p)
        logp = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
        token = jnp.where(ended, pad_id, token.astype(tokens.dtype))
        tokens, logps = tokens.at[:, step].set(token), logps.at[:, step].set(jnp.where(ended, 0, logp))
        lengths += ~ended
        ended |= (token[:, None] == stops[None]).any(-1)
        hidden, cache = forward(token[:, None], DecodingStep((prompts.lengths + step)[:, None], mesh), cache)
        return step + 1, Samples(tokens, logps, lengths, ended), hidden[:, 0], cache

    start = Samples(
        tokens=jnp.full((batch, max_new_tokens), pad_id, prompts.tokens.dtype),
        logps=jnp.zeros((batch, max_new_tokens), jnp.promote_types(config.dtype, jnp.float32)),
        lengths=jnp.zeros(batch, jnp.int32),
        ended=prompts.lengths == 0,
    )
    hidden, cache = forward(prompts.tokens, _prefill(config, prompts, mesh), (empty, empty))
    last = jnp.take_along_axis(hidden, jnp.maximum(prompts.lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    return jax.lax.while_loop(unfinished, advance, (0, start, last, cache))[1]


def _prefill(config: ModelConfig, prompts: Prompts, mesh: Mesh | None) -> Prefill:
    # Positions after a prompt's end hold padding, which no prompt token sees; decoding overwrites each before a query
    # can see it.
    positions = jnp.broadcast_to(jnp.arange(prompts.tokens.shape[1])[None], prompts.tokens.shape)
    ends = jnp.where(positions < prompts.lengths[:, None], prompts.lengths[:, None], positions + 1)
    return Prefill(attention.prepare(ends, positions, implementation=config.attention, mesh=mesh))


def _next_logits(config: ModelConfig, head, hidden, mesh: Mesh | None) -> Float[Array, "B V"]:
    """Logits of the token after each of a batch of hidden states [B, D]."""
    axes = () if mesh is None else vocabulary.axes(head.shape[0], mesh)
    # Every device multiplies its part of the vocabulary for all rows that share it, then gets its own rows whole.
    hidden = vocabulary.pin(hidden, mesh, "data" if "fsdp" in axes else ROW_AXES)
    return vocabulary.pin(vocabulary.logits(hidden, head, config.logit_softcap), mesh, ROW_AXES)


def _draw(logits: Float[Array, "B V"], keys: Key[Array, "B"], temperature, top_k: int, top_p) -> Int[Array, "B"]:
    """One token of each sequence, options as in `SamplingOptions`."""
    scaled = logits / jnp.where(temperature > 0, temperature, 1).astype(logits.dtype)
    drawn = jax.vmap(jax.random.categorical)(keys, restrict(scaled, top_k=top_k, top_p=top_p))
    return jnp.where(temperature > 0, drawn, logits.argmax(-1))


def restrict(
    logits: Float[Array, "B V"], *, top_k: int = 0, top_p: Float[Array, ""] | float | None = None
) -> Float[Array, "B V"]:
    """-inf for tokens outside the top k, and outside the nucleus of those inside it. Tokens as likely as the least
    likely that is kept are kept too, so the result does not depend on the order of the vocabulary."""
    vocabulary = logits.shape[-1]
    if top_p is None and not 0 < top_k < vocabulary:
        return logits
    ranked = jax.lax.top_k(logits, min(top_k or vocabulary, vocabulary))[0]
    least = ranked[:, -1]
    if top_p is not None:
        shares = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        least = jnp.where(before < top_p, ranked, jnp.inf).min(-1)
    return jnp.where(logits < least[:, None], -jnp.inf, logits)
