"""One decoder-only transformer for every family, behind pure functions over a plain dict of parameters.

    init(config, key) -> params          apply(config, params, tokens, positions, visible_until) -> hidden

RMSNorm, rotary positions, grouped-query attention, gated MLP; layers are scanned, so every block parameter has a
leading layer axis. The vocabulary head is applied in `logprobs.py`, to response tokens only.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from prefjax.models import attention, quantized, rotary, vocabulary
from prefjax.models.parameters import Params
from prefjax.models.rotary import RopeScaling
from prefjax.options import REQUIRED, check_ranges, option

_ACTIVATIONS = {"silu": nn.silu, "gelu": lambda x: nn.gelu(x, approximate=True)}
_REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(attention.SAVED),
    ),
}
REMAT = ("none", *_REMAT_POLICIES)
QK_NORMS = ("none", "head", "projection")
DTYPES = ("float32", "bfloat16", "float16", "float64")
_NEVER = 2**30  # a window no row can reach


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture and numerics. The defaults are Llama's; a meaning ends with the family a field is for."""

    vocab_size: int = option(REQUIRED, "rows of the embedding table; 0: the tokenizer's vocabulary", at_least=0)
    num_layers: int = option(REQUIRED, "blocks", at_least=1)
    width: int = option(REQUIRED, "D, of the hidden states", at_least=1)
    num_heads: int = option(REQUIRED, "heads of queries", at_least=1)
    num_kv_heads: int = option(REQUIRED, "heads of keys and values; divides num_heads", at_least=1)
    head_width: int = option(REQUIRED, "of one head; even", at_least=2)
    mlp_width: int = option(REQUIRED, "of the gated MLP", at_least=1)
    activation: str = option("silu", "gate of the MLP; gelu in its tanh form: Gemma", choices=_ACTIVATIONS)
    rope_theta: float = option(10_000.0, "base of the rotary frequencies", above=0)
    rope_scaling: RopeScaling | None = option(
        None, "of layers that see everything, if local_rope_theta is set; None: not scaled. Llama 3.1"
    )
    local_rope_theta: float | None = option(None, "of layers with a sliding window; None: rope_theta. Gemma 3", above=0)
    norm_epsilon: float = option(1e-5, "of RMSNorm", above=0)
    tie_embeddings: bool = option(True, "the output projection is the embedding table")
    attention_bias: bool = option(False, "on query, key, value. Qwen 2")
    output_bias: bool = option(False, "on the attention's output projection")
    mlp_bias: bool = option(False, "on gate, up, down")
    qk_norm: str = option(
        "none",
        "RMSNorm of queries and keys: of each head, Qwen 3, Gemma 3; of the whole projection, OLMo 2",
        choices=QK_NORMS,
    )
    unit_offset_norm: bool = option(False, "RMSNorm's scale is 1 + weight. Gemma")
    pre_norms: bool = option(True, "RMSNorm on the inputs of attention and MLP. All but OLMo 2")
    post_norms: bool = option(False, "RMSNorm on their outputs. Gemma 2, 3, OLMo 2")
    scale_embeddings: bool = option(False, "by sqrt(width). Gemma")
    query_scale: float | None = option(None, "factor of query . key; None: head_width ** -0.5", above=0)
    attention_softcap: float | None = option(None, "bound of attention logits; None: none. Gemma 2", above=0)
    logit_softcap: float | None = option(None, "bound of output logits; None: none. Gemma 2", above=0)
    sliding_window: int | None = option(
        None, "positions a local layer sees back; None: all layers see everything. Mistral, Gemma", at_least=1
    )
    global_every: int = option(
        0, "with a window, every n-th layer sees everything; 0: none does. Gemma 2: 2, Gemma 3: 6", at_least=0
    )
    dtype: str = option(
        "float32", "of activations and matmuls; logits and softmax stay at least float32", choices=DTYPES
    )
    param_dtype: str = option("float32", "of parameters", choices=DTYPES)
    remat: str = option(
        "none",
        'what the backward pass computes again: "none", nothing; "dots", all but matmuls; "full", everything',
        choices=REMAT,
        decides=False,
    )
    attention: str = option(
        "auto",
        '"auto": dense for short rows, else kernels on TPU and NVIDIA GPUs and live tiles elsewhere',
        choices=attention.IMPLEMENTATIONS,
        decides=False,
    )

    def __post_init__(self):
        check_ranges(self, "model")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} must be even: rotary positions rotate pairs")
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
    mask = attention.prepare(visible_until, positions, implementation=config.attention, mesh=mesh)
    return Decoder(config).apply({"params": params}, tokens, mask)


def vocabulary_head(config: ModelConfig, params: Params, *, mesh: Mesh | None = None) -> Float[Array, "V D"]:
    """The output projection, one row per vocabulary entry; the embedding table itself when tied."""
    return vocabulary.cut(params["embedding" if config.tie_embeddings else "head"], mesh)


@functools.partial(jax.jit, static_argnums=0)
def plain_logits(config: ModelConfig, params: Params, tokens: Int[Array, "R T"]) -> Float[Array, "R T V"]:
    """Logits of plain sequences, each a row of its own, for comparisons; training never holds such an array."""
    rows, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length)[None], tokens.shape)
    hidden = apply(config, params, tokens, positions, jnp.full((rows, length), length))
    return vocabulary.logits(hidden, vocabulary_head(config, params), config.logit_softcap)


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
    def __call__(self, x, view, rotation, window, cache):
        c = self.config
        heads = lambda y: y.reshape(*y.shape[:2], -1, c.head_width)
        norm = lambda name, kind, y: RMSNorm(c, name=name)(y) if kind == c.qk_norm else y
        query = norm("query_norm", "projection", self._project("query", c.num_heads, x))
        key = norm("key_norm", "projection", self._project("key", c.num_kv_heads, x))
        value = heads(self._project("value", c.num_kv_heads, x))
        query = rotary.rotate(norm("query_norm", "head", heads(query)), rotation)
        key = rotary.rotate(norm("key_norm", "head", heads(key)), rotation)
        scale = c.head_width**-0.5 if c.query_scale is None else c.query_scale
        options = dict(scale=scale, softcap=c.attention_softcap, window=window)
        if cache is None:
            output = attention.attend(query, key, value, view, **options)
        else:
            output, cache = view.attend(query, key, value, cache, **options)
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
    def __call__(self, x, view, rotation, layer):
        c = self.config
        window, cache = layer
        if c.local_rope_theta is not None:
            choose = functools.partial(jnp.where, window < _NEVER)
            rotation = jax.tree.map(choose, rotation["local"], rotation["global"])
        norm = lambda name, wanted, y: RMSNorm(c, name=name)(y) if wanted else y
        y = norm("attention_norm", c.pre_norms, x)
        y, cache = Attention(c, name="attention")(y, view, rotation, window, cache)
        x += norm("attention_post_norm", c.post_norms, y)
        y = MLP(c, name="mlp")(norm("mlp_norm", c.pre_norms, x))
        x += norm("mlp_post_norm", c.post_norms, y)
        return view.pin_to_rows(x), cache


class Decoder(nn.Module):
    """tokens -> final-normed hidden states. `view` says what each position sees: a `Mask`, or a decoding step."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens, view, cache=None):
        c = self.config
        param_dtype = jnp.dtype(c.param_dtype)
        table = (c.vocab_size, c.width)
        embedding = self.param("embedding", nn.initializers.normal(0.02), table, param_dtype)
        if not c.tie_embeddings:
            self.param("head", nn.initializers.normal(0.02), table, param_dtype)
        x = vocabulary.embed(embedding, tokens, view.mesh).astype(c.dtype)
        if c.scale_embeddings:
            x *= jnp.asarray(c.width**0.5, x.dtype)
        x = view.pin_to_rows(x)
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
        x, cache = layers(c, name="layers")(x, view, _rotations(c, view.positions), (_layer_windows(c), cache))
        x = RMSNorm(c, name="final_norm")(x)
        return x if cache is None else (x, cache)


def _rotations(config: ModelConfig, positions):
    """Rotations of all layers, or of "global" and "local" ones where these differ. In at least float32."""
    make = functools.partial(rotary.rotation, positions, dtype=jnp.promote_types(config.dtype, jnp.float32))
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
