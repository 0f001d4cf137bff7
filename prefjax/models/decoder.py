"""One decoder-only transformer for every family, behind pure functions over a plain dict of parameters.

    init(config, key) -> params          apply(config, params, tokens, positions, visible_until) -> hidden

RMSNorm, rotary positions, grouped-query attention, gated MLP; layers are scanned, so every block parameter has a
leading layer axis. The vocabulary head is applied in `logprobs.py`, to response tokens only.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from prefjax.models import attention, fused_attention, quantized, rotary
from prefjax.models.rotary import RopeScaling

Params = Any
_ACTIVATIONS = {"silu": nn.silu, "gelu": lambda x: nn.gelu(x, approximate=True)}
_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(fused_attention.SAVED),
    ),
}
REMAT = ("none", *_REMAT_POLICIES)
QK_NORMS = ("none", "head", "projection")
_NEVER = 2**30  # a window no row can reach


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture and numerics. The defaults are Llama's; the comments name the family a field is for."""

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    mlp_width: int
    activation: str = "silu"  # gate of the MLP; "gelu" (tanh form): Gemma
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None  # of layers that see everything, if local_rope_theta is set: Llama 3.1
    local_rope_theta: float | None = None  # of layers with a sliding window; None is rope_theta. Gemma 3
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    attention_bias: bool = False  # on query, key, value: Qwen 2
    output_bias: bool = False  # on the attention's output projection
    mlp_bias: bool = False  # on gate, up, down
    qk_norm: str = "none"  # RMSNorm of queries and keys. "head": each head, Qwen 3, Gemma 3; "projection": all, OLMo 2
    unit_offset_norm: bool = False  # scale is 1 + weight: Gemma
    pre_norms: bool = True  # RMSNorm on the inputs of attention and MLP: all but OLMo 2
    post_norms: bool = False  # RMSNorm on their outputs: Gemma 2, 3, OLMo 2
    scale_embeddings: bool = False  # by sqrt(width): Gemma
    query_scale: float | None = None  # on query . key; None is head_width ** -0.5
    attention_softcap: float | None = None  # Gemma 2
    logit_softcap: float | None = None  # Gemma 2
    sliding_window: int | None = None  # positions a local layer sees back: Mistral, Gemma
    global_every: int = 0  # with a window, every n-th layer sees everything; 0: none does. Gemma 2: 2, Gemma 3: 6
    dtype: str = "float32"  # of activations and matmuls; logits and softmax stay at least float32
    param_dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} must be even: rotary positions turn pairs")
        choices = {
            "activation": _ACTIVATIONS,
            "qk_norm": QK_NORMS,
            "remat": REMAT,
            "attention": attention.IMPLEMENTATIONS,
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}={getattr(self, field)!r}: choose one of {tuple(allowed)}")
        for field in ("global_every", "local_rope_theta"):
            if getattr(self, field) and self.sliding_window is None:
                raise ValueError(f"{field} has no effect without sliding_window: set both or neither")
        if not self.pre_norms and not self.post_norms:
            raise ValueError("pre_norms=False leaves no norm in a block: set post_norms=True")


@functools.partial(jax.jit, static_argnums=0)
def init(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh parameters, a plain nested dict of arrays of `param_dtype`."""
    one = jnp.zeros((1, 1), jnp.int32)
    return Decoder(config).init(key, one, attention.prepare(one + 1, one, implementation="dense"))["params"]


def shapes(config: ModelConfig) -> Params:
    """Shapes and dtypes of `init`'s parameters; nothing is computed."""
    return jax.eval_shape(functools.partial(init, config), jax.random.key(0))


def apply(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "R T"],
    positions: Int[Array, "R T"],
    visible_until: Int[Array, "R T"],
    *,
    mesh: Mesh | None = None,
) -> Float[Array, "R T D"]:
    """Final-normed hidden states under the mask `j <= i < visible_until[j]`.

    Args:
      mesh: where rows lie over ("data", "fsdp") and heads over "tensor"; None on one device.
    """
    plan = attention.prepare(visible_until, positions, implementation=config.attention, mesh=mesh)
    return Decoder(config).apply({"params": params}, tokens, plan)


def vocabulary_head(config: ModelConfig, params: Params, *, mesh: Mesh | None = None) -> Float[Array, "V D"]:
    """The output projection, one row per vocabulary entry; the embedding table itself when tied."""
    return attention.cut_vocabulary(params["embedding" if config.tie_embeddings else "head"], mesh)


def init_value_head(config: ModelConfig) -> Params:
    """Parameters of a scalar head, to merge into a decoder's: V(x) = 0 everywhere at first."""
    dtype = jnp.dtype(config.param_dtype)
    return {"value_head": jnp.zeros(config.width, dtype), "value_bias": jnp.zeros((), dtype)}


def prompt_values(params: Params, hidden: Float[Array, "B T D"], prompt_ends: Int[Array, "B G"]) -> Float[Array, "B G"]:
    """V(x): the scalar head on the hidden state of each prompt's last token, float32."""
    last = jnp.take_along_axis(hidden, prompt_ends[:, :, None], axis=1)
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return jnp.einsum("bgd,d->bg", last.astype(wide), params["value_head"].astype(wide)) + params["value_bias"]


class RMSNorm(nn.Module):
    """x / rms(x) * scale, statistics in at least float32 (arXiv 1910.07467, equation 4)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        offset = self.config.unit_offset_norm
        initial = nn.initializers.zeros if offset else nn.initializers.ones
        scale = self.param("scale", initial, (x.shape[-1],), jnp.dtype(self.config.param_dtype))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + self.config.norm_epsilon)
        scale = (scale.astype(wide.dtype) + float(offset)).reshape((1,) * (x.ndim - 1) + (-1,))
        return (wide * scale).astype(x.dtype)


class Linear(nn.Module):
    """x @ kernel (+ bias) with a flat [inputs, outputs] kernel, so that sharding rules see two axes only."""

    config: ModelConfig
    outputs: int
    bias: bool = False
    gain: float = 1.0

    @nn.compact
    def __call__(self, x):
        dtype, param_dtype = jnp.dtype(self.config.dtype), jnp.dtype(self.config.param_dtype)
        initial = nn.initializers.variance_scaling(self.gain, "fan_in", "normal")
        # Two axes: with rows kept apart, XLA on CPU writes out a transposed copy for the gradient of every kernel.
        leading, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
        if self.has_variable("params", "kernel_codes"):
            y = quantized.matmul(x, *(self.get_variable("params", f"kernel_{part}") for part in ("codes", "scale")))
        else:
            y = x @ self.param("kernel", initial, (x.shape[-1], self.outputs), param_dtype).astype(dtype)
        if self.has_variable("params", "lora_a"):
            down, up = (self.get_variable("params", name).astype(dtype) for name in ("lora_a", "lora_b"))
            y += (x @ down) @ up
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.outputs,), param_dtype)
            y += bias.astype(dtype)[None]
        return y.reshape(*leading, self.outputs)


class Attention(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x, look, turns, window, cache):
        c = self.config
        heads = lambda y: y.reshape(*y.shape[:2], -1, c.head_width)
        norm = lambda name, kind, y: RMSNorm(c, name=name)(y) if kind == c.qk_norm else y
        query = norm("query_norm", "projection", self._project("query", c.num_heads, x))
        key = norm("key_norm", "projection", self._project("key", c.num_kv_heads, x))
        value = heads(self._project("value", c.num_kv_heads, x))
        query = rotary.rotate(norm("query_norm", "head", heads(query)), turns)
        key = rotary.rotate(norm("key_norm", "head", heads(key)), turns)
        scale = c.head_width**-0.5 if c.query_scale is None else c.query_scale
        options = dict(scale=scale, softcap=c.attention_softcap, window=window)
        if cache is None:
            output = attention.attend(query, key, value, look, **options)
        else:
            output, cache = look.attend(query, key, value, cache, **options)
        output = output.reshape(*x.shape[:2], -1)
        return Linear(c, c.width, c.output_bias, gain=0.5 / c.num_layers, name="output")(output), cache

    def _project(self, name, heads, x):
        c = self.config
        return Linear(c, heads * c.head_width, c.attention_bias, name=name)(x)


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x)) (GLU variants, arXiv 2002.05202, equation 6)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        gate = _ACTIVATIONS[c.activation](Linear(c, c.mlp_width, c.mlp_bias, name="gate")(x))
        up = Linear(c, c.mlp_width, c.mlp_bias, name="up")(x)
        return Linear(c, c.width, c.mlp_bias, gain=0.5 / c.num_layers, name="down")(gate * up)


class Block(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x, look, turns, layer):
        c = self.config
        window, cache = layer
        if c.local_rope_theta is not None:
            turns = jax.tree.map(functools.partial(jnp.where, window < _NEVER), turns["local"], turns["global"])
        norm = lambda name, wanted, y: RMSNorm(c, name=name)(y) if wanted else y
        y = norm("attention_norm", c.pre_norms, x)
        y, cache = Attention(c, name="attention")(y, look, turns, window, cache)
        x += norm("attention_post_norm", c.post_norms, y)
        y = MLP(c, name="mlp")(norm("mlp_norm", c.pre_norms, x))
        x += norm("mlp_post_norm", c.post_norms, y)
        return look.spread(x), cache


class Decoder(nn.Module):
    """tokens -> final-normed hidden states. `look` says what each position sees: a `MaskPlan`, or a decoding step."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens, look, cache=None):
        c = self.config
        param_dtype = jnp.dtype(c.param_dtype)
        table = (c.vocab_size, c.width)
        embedding = self.param("embedding", nn.initializers.normal(0.02), table, param_dtype)
        if not c.tie_embeddings:
            self.param("head", nn.initializers.normal(0.02), table, param_dtype)
        x = attention.embed(embedding, tokens, look.mesh).astype(c.dtype)
        if c.scale_embeddings:
            x *= jnp.asarray(c.width**0.5, x.dtype)
        x = look.spread(x)
        block = Block
        if c.remat != "none":
            block = nn.remat(Block, policy=_REMAT_POLICIES[c.remat], prevent_cse=False)
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0),
            length=c.num_layers,
        )
        x, cache = layers(c, name="layers")(x, look, _turns(c, look.positions), (_layer_windows(c), cache))
        x = RMSNorm(c, name="final_norm")(x)
        return x if cache is None else (x, cache)


def _turns(config: ModelConfig, positions):
    """Rotary turns of all layers, or of "global" and "local" ones where these differ. In at least float32."""
    make = functools.partial(rotary.turns, positions, dtype=jnp.promote_types(config.dtype, jnp.float32))
    everywhere = make(rotary.frequencies(config.head_width, config.rope_theta, config.rope_scaling))
    if config.local_rope_theta is None:
        return everywhere
    return {"global": everywhere, "local": make(rotary.frequencies(config.head_width, config.local_rope_theta))}


def _layer_windows(config: ModelConfig):
    """[layers] window of each layer in positions, or None when every layer sees everything."""
    if config.sliding_window is None:
        return None
    layer = jnp.arange(1, config.num_layers + 1)
    is_global = (layer % config.global_every == 0) if config.global_every else jnp.zeros(layer.shape, bool)
    return jnp.where(is_global, _NEVER, config.sliding_window)
