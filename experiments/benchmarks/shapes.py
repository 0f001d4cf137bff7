"""Whose shape a benchmark runs: models by name, with random weights, chosen by flags."""

import dataclasses
from typing import Any

from absl import flags

from experiments.benchmarks.sweep import TOLERANCE
from prefjax.models import ModelConfig
from prefjax.models.decoder import REMAT

_FIELDS = "vocab_size num_layers width num_heads num_kv_heads head_width mlp_width rope_theta tie_embeddings".split()
_SHAPES = {
    "tiny": (512, 2, 64, 4, 2, 16, 192, 10_000.0, True),
    "smollm2_135m": (49_152, 30, 576, 9, 3, 64, 1536, 100_000.0, True),
    "llama3_1b": (128_256, 16, 2048, 32, 8, 64, 8192, 500_000.0, True),
    "llama3_8b": (128_256, 32, 4096, 32, 8, 128, 14_336, 500_000.0, False),
}
MODELS = {name: ModelConfig(**dict(zip(_FIELDS, shape, strict=True))) for name, shape in _SHAPES.items()}


def define_flags(*, remat: bool = True) -> None:
    """Of the commands that run a model; remat=False leaves that choice to the command."""
    flags.DEFINE_enum("model", "smollm2_135m", sorted(MODELS), "Whose shape; the weights are random.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of activations and matmuls.")
    if remat:
        flags.DEFINE_enum("remat", "none", list(REMAT), "What the backward pass computes again.")


def chosen(options: flags.FlagValues) -> ModelConfig:
    """The model that the flags ask for."""
    numerics = {name: options[name].value for name in ("dtype", "remat") if name in options}
    return dataclasses.replace(MODELS[options.model], **numerics)


def shown(options: flags.FlagValues, text: str = "", **facts: Any) -> dict[str, Any]:
    """What a sweep of the chosen model says and keeps: `text`, shape and numerics, and what they may differ by."""
    remat = f", remat {options.remat}" if "remat" in options else ""
    line = f"{options.model} shape, {options.dtype}{remat}."
    return {"text": text + line, "facts": {"model": chosen(options), **facts}, "tolerance": TOLERANCE[options.dtype]}
