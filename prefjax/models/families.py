"""Families of Hugging Face models: config.json <-> ModelConfig, and where their files keep each of our parameters."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from prefjax.models.decoder import ModelConfig
from prefjax.models.rotary import RopeScaling

# ModelConfig field -> key of config.json, in every family.
_SHAPE = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "norm_epsilon": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}
# Beyond every model: how far a file may make us count, before its sizes are held against those of its weights.
_LARGEST = {"num_hidden_layers": 10_000, "head_dim": 2**20} | dict.fromkeys(
    ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"), 2**30
)
# Keys that would change what the model computes, and the only values under which they do not.
_NEUTRAL = {
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1),
    "use_bidirectional_attention": (None, False),
    "attention_dropout": (None, 0),
    "resid_pdrop": (None, 0),
    "embd_pdrop": (None, 0),
}
# Fields that say how to compute, not what.
NUMERICS = ("dtype", "param_dtype", "remat", "attention")


class Stored(NamedTuple):
    """Where a file keeps a parameter: a tensor's name, with {} for the layer, and its rank among those fused in it."""

    name: str
    rank: int = 0


_EMBEDDINGS = {
    "embedding": Stored("model.embed_tokens.weight"),
    "head": Stored("lm_head.weight"),
    "final_norm/scale": Stored("model.norm.weight"),
}
_LINEAR = {
    "attention/query": Stored("self_attn.q_proj"),
    "attention/key": Stored("self_attn.k_proj"),
    "attention/value": Stored("self_attn.v_proj"),
    "attention/output": Stored("self_attn.o_proj"),
    "mlp/gate": Stored("mlp.gate_proj"),
    "mlp/up": Stored("mlp.up_proj"),
    "mlp/down": Stored("mlp.down_proj"),
}
_FUSED = _LINEAR | {
    "attention/query": Stored("self_attn.qkv_proj", 0),
    "attention/key": Stored("self_attn.qkv_proj", 1),
    "attention/value": Stored("self_attn.qkv_proj", 2),
    "mlp/gate": Stored("mlp.gate_up_proj", 0),
    "mlp/up": Stored("mlp.gate_up_proj", 1),
}
_QK_NORMS = {"attention/query_norm": Stored("self_attn.q_norm"), "attention/key_norm": Stored("self_attn.k_norm")}
_PRE_NORMS = {"attention_norm": Stored("input_layernorm"), "mlp_norm": Stored("post_attention_layernorm")}
_GEMMA_NORMS = {
    "attention_norm": Stored("input_layernorm"),
    "attention_post_norm": Stored("post_attention_layernorm"),
    "mlp_norm": Stored("pre_feedforward_layernorm"),
    "mlp_post_norm": Stored("post_feedforward_layernorm"),
}
_POST_NORMS = {
    "attention_post_norm": Stored("post_attention_layernorm"),
    "mlp_post_norm": Stored("post_feedforward_layernorm"),
}
_PARAMETERS = {"kernel": "weight", "scale": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture.

    parts       our modules of a block -> where they are stored, relative to a layer
    fixed       ModelConfig fields that config.json does not say, the code of the architecture does
    options     ModelConfig field -> key of config.json, where the family has that choice
    windows     how config.json says which layers have a sliding window: "none", "all" (every layer has one, or none
                does), "types" (`layer_types`), "switched" (the same behind `use_sliding_window`)
    activation  key of the activation
    """

    model_type: str
    architecture: str
    parts: Mapping[str, Stored]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    windows: str = "none"
    activation: str = "hidden_act"

    @property
    def classifier(self) -> str:
        """The architecture with a score per sequence in place of the vocabulary head."""
        text = "Text" if self.model_type.endswith("_text") else ""
        return self.architecture.replace("ForCausalLM", f"{text}ForSequenceClassification")

    def stored(self, path: str) -> Stored:
        """Where our parameter of this path ("layers/mlp/up/kernel") is kept."""
        if path in _EMBEDDINGS:
            return _EMBEDDINGS[path]
        module, parameter = path.removeprefix("layers/").rsplit("/", 1)
        name, rank = self.parts[module]
        return Stored(f"model.layers.{{}}.{name}.{_PARAMETERS[parameter]}", rank)


_BIASES = {"attention_bias": "attention_bias", "output_bias": "attention_bias"}
_GEMMA = dict(unit_offset_norm=True, post_norms=True, scale_embeddings=True)
_CAPS = {"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"}

# A model made here is exported as the first family that can say all of its config.
FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", _LINEAR | _PRE_NORMS, options=_BIASES | {"mlp_bias": "mlp_bias"}),
        Family("mistral", "MistralForCausalLM", _LINEAR | _PRE_NORMS, windows="all"),
        Family("qwen2", "Qwen2ForCausalLM", _LINEAR | _PRE_NORMS, {"attention_bias": True}, windows="switched"),
        Family("qwen3", "Qwen3ForCausalLM", _LINEAR | _PRE_NORMS | _QK_NORMS, {"qk_norm": "head"}, _BIASES, "switched"),
        Family(
            "gemma2", "Gemma2ForCausalLM", _LINEAR | _GEMMA_NORMS, _GEMMA, _BIASES | _CAPS, "types", "hidden_activation"
        ),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            _LINEAR | _GEMMA_NORMS | _QK_NORMS,
            _GEMMA | {"qk_norm": "head"},
            # transformers stores attn_logit_softcapping of a Gemma 3 and never applies it.
            _BIASES | {"logit_softcap": "final_logit_softcapping"},
            "types",
            "hidden_activation",
        ),
        Family(
            "olmo2",
            "Olmo2ForCausalLM",
            _LINEAR | _POST_NORMS | _QK_NORMS,
            {"qk_norm": "projection", "pre_norms": False, "post_norms": True},
            _BIASES,
        ),
        Family("phi3", "Phi3ForCausalLM", _FUSED | _PRE_NORMS, windows="all"),
    )
}


def read_architecture(values: Mapping[str, Any], source: str) -> tuple[Family, dict[str, Any]]:
    """The family and the ModelConfig fields that a config.json says; absent keys take transformers' defaults.

    Raises:
      ValueError: an architecture or a value that the decoder does not compute; names it and `source`.
    """
    family = next((family for family in FAMILIES.values() if family.model_type == values.get("model_type")), None)
    named = values.get("architectures") or [family and family.architecture]
    if family is None or named != [family.architecture]:
        names = ", ".join(map(str, named)) if isinstance(named, list) else named
        raise ValueError(
            f"{source}: architecture {names} (model_type {values.get('model_type')!r}) is not "
            f"supported; these are: {', '.join(f.architecture for f in FAMILIES.values())}"
        )
    for key, largest in _LARGEST.items():
        if type(size := values.get(key)) in (int, float) and not 1 <= size <= largest:
            raise ValueError(f"{source}: {key}={size!r} must be at least 1 and at most {largest}")
    for key, neutral in _NEUTRAL.items():
        if values.get(key) not in neutral:
            raise ValueError(f"{source}: {key}={values[key]!r} is not supported, only {neutral[-1]!r}")
    # transformers would advise to install torch, which prefjax has no use for.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoConfig

    try:
        read = AutoConfig.for_model(**values)
        return family, _read_fields(family, read, source)
    except _Unsupported:
        raise
    except Exception as error:  # of every kind, as the file of a stranger may hold anything
        raise ValueError(f"{source}: {type(error).__name__}: {error}") from error


class _Unsupported(ValueError):
    """What the decoder does not compute, named."""


def _read_fields(family: Family, read: Any, source: str) -> dict[str, Any]:
    activation = getattr(read, family.activation)
    if activation not in _ACTIVATIONS:
        raise _Unsupported(f"{source}: {family.activation}={activation!r} is not supported: {', '.join(_ACTIVATIONS)}")
    fields = {field: getattr(read, key) for field, key in {**_SHAPE, **family.options}.items()}
    fields |= family.fixed
    fields["head_width"] = getattr(read, "head_dim", None) or read.hidden_size // read.num_attention_heads
    fields["activation"] = _ACTIVATIONS[activation]
    if hasattr(read, "query_pre_attn_scalar"):
        fields["query_scale"] = read.query_pre_attn_scalar**-0.5
    return fields | _read_windows(family, read, source) | _read_rope(family, read, source)


def _read_windows(family: Family, read: Any, source: str) -> dict[str, Any]:
    window = getattr(read, "sliding_window", None)
    if family.windows == "none" or window is None:
        return {}
    # transformers reads a mistral with layer_types as its Ministral.
    if family.windows == "all" and not (family.model_type == "mistral" and getattr(read, "layer_types", None)):
        return {"sliding_window": window}
    types = ["sliding" if kind == "sliding_attention" else "full" for kind in read.layer_types]
    if "sliding" not in types:
        return {}
    every = types.index("full") + 1 if "full" in types else 0
    if types != _layer_types(len(types), every):
        raise _Unsupported(
            f"{source}: layer_types={read.layer_types} is not supported: full attention must come at every n-th layer"
        )
    return {"sliding_window": window, "global_every": every}


def _layer_types(layers: int, every: int) -> list[str]:
    return ["full" if every and layer % every == 0 else "sliding" for layer in range(1, layers + 1)]


def _read_rope(family: Family, read: Any, source: str) -> dict[str, Any]:
    rope = read.rope_parameters
    if family.model_type == "gemma3_text":
        local, rope = rope["sliding_attention"], rope["full_attention"]
        if local["rope_type"] != "default":
            raise _Unsupported(f"{source}: rope type {local['rope_type']!r} of sliding layers is not supported")
        if "sliding_attention" in read.layer_types:
            return {"local_rope_theta": float(local["rope_theta"])} | _read_scaling(rope, source)
    return _read_scaling(rope, source)


def _read_scaling(rope: Mapping[str, Any], source: str) -> dict[str, Any]:
    kind, theta = rope["rope_type"], float(rope["rope_theta"])
    if rope.get("partial_rotary_factor", 1) != 1:
        raise _Unsupported(
            f"{source}: partial_rotary_factor={rope['partial_rotary_factor']!r} is not supported, only 1"
        )
    if kind == "default":
        return {"rope_theta": theta}
    if kind == "linear":
        scaling = RopeScaling("linear", float(rope["factor"]))
    elif kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            float(rope["factor"]),
            low_frequency_factor=float(rope["low_freq_factor"]),
            high_frequency_factor=float(rope["high_freq_factor"]),
            original_length=rope["original_max_position_embeddings"],
        )
    else:
        raise _Unsupported(
            f"{source}: rope_scaling type {kind!r} is not supported, only default, linear and llama3 (frequencies that "
            "depend on the length of what is in the batch would make a score depend on packing)"
        )
    return {"rope_theta": theta, "rope_scaling": scaling}


def write_architecture(config: ModelConfig, family: Family) -> dict[str, Any]:
    """config.json of a model, in keys that transformers 4 and 5 read alike; see `family_of` for whether it says all."""
    values = {"model_type": family.model_type, "architectures": [family.architecture]}
    values |= {key: getattr(config, field) for field, key in {**_SHAPE, **family.options}.items()}
    values |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # else some other tokenizer's defaults
    values["head_dim"] = config.head_width
    values[family.activation] = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.activation]
    if family.model_type in ("gemma2", "gemma3_text"):
        scale = config.head_width**-0.5 if config.query_scale is None else config.query_scale
        values["query_pre_attn_scalar"] = round(scale**-2)
    return values | _write_windows(config, family) | _write_rope(config, family)


def _write_windows(config: ModelConfig, family: Family) -> dict[str, Any]:
    if family.windows == "none":
        return {}
    values = {"sliding_window": config.sliding_window}
    if family.windows == "switched":
        values["use_sliding_window"] = config.sliding_window is not None
    if family.windows != "all":
        every = 1 if config.sliding_window is None else config.global_every
        values["layer_types"] = [f"{kind}_attention" for kind in _layer_types(config.num_layers, every)]
    if family.windows == "switched" and config.sliding_window is None:
        values["sliding_window"] = 4096  # unread, yet some readers want a number
    return values


def _write_rope(config: ModelConfig, family: Family) -> dict[str, Any]:
    values = {"rope_theta": config.rope_theta, "rope_scaling": None}
    if family.model_type == "gemma3_text":
        values["rope_local_base_freq"] = config.local_rope_theta or 10_000.0
    scaling = config.rope_scaling
    if scaling is not None:
        values["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            values["rope_scaling"] |= {
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_length,
            }
    return values


def family_of(config: ModelConfig) -> Family:
    """The first family whose config.json can say this architecture: reading what is written gives it back.

    Raises:
      ValueError: no family can.
    """
    for family in FAMILIES.values():
        if says(family, config):
            return family
    raise ValueError(f"no Hugging Face architecture computes what this model does: {architecture(config)}")


def says(family: Family, config: ModelConfig) -> bool:
    """Whether a family's config.json can say the whole architecture."""
    try:
        _, fields = read_architecture(write_architecture(config, family), family.model_type)
    except ValueError:
        return False
    return architecture(ModelConfig(**fields)) == architecture(config)


def architecture(config: ModelConfig) -> dict[str, Any]:
    """The fields that say what is computed, `query_scale` resolved."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in NUMERICS}
    fields["query_scale"] = config.head_width**-0.5 if config.query_scale is None else config.query_scale
    return fields
