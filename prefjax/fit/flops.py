"""Analytic FLOPs of a decoder on rows: what the mathematics needs, whatever the kernels do.

XLA's own count is no help: it counts the body of a scan over layers once. Two FLOPs per multiply-add; elementwise work
(norms, softmax, activations) is left out, as is usual for "model FLOPs".
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from prefjax.models.decoder import ModelConfig


class Work(NamedTuple):
    """What a forward pass is asked to do.

    tokens  positions that go through the layers
    area    (query, key) pairs the mask shows, the query itself included
    scored  positions that go through the vocabulary head
    """

    tokens: float
    area: float
    scored: float

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


def separate_work(prompt: int, responses: Int[np.ndarray, "K"]) -> Work:
    """K plain sequences, prompt and response each: what pairwise training without sharing does."""
    whole = prompt + np.asarray(responses, float)
    return Work(whole.sum(), (whole * (whole + 1) / 2).sum(), float(np.sum(responses)))


def shared_work(prompt: int, responses: Int[np.ndarray, "K"]) -> Work:
    """One tree: the prompt once, and every response below it (arXiv 2410.20305, section 3)."""
    lengths = np.asarray(responses, float)
    area = prompt * (prompt + 1) / 2 + (prompt * lengths + lengths * (lengths + 1) / 2).sum()
    return Work(prompt + lengths.sum(), area, float(lengths.sum()))


def layer_parameters(config: ModelConfig) -> int:
    """Weights of one layer that multiply every token; norms and biases are left out."""
    query, key = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
    return config.width * (2 * query + 2 * key + 3 * config.mlp_width)


def forward_flops(config: ModelConfig, work: Work) -> float:
    """FLOPs of one forward pass: dense layers, attention over the visible area, head over the scored positions."""
    dense = 2 * layer_parameters(config) * work.tokens
    attention = 4 * config.num_heads * config.head_width * work.area
    return config.num_layers * (dense + attention) + 2 * config.vocab_size * config.width * work.scored


def step_flops(config: ModelConfig, work: Work, *, live_reference: bool, frozen: bool = False) -> float:
    """FLOPs of a train step: policy forward, twice that backward, and a live reference's forward.

    With `frozen` weights under adapters, which are not counted, no product makes a gradient of a weight.

    Recomputation (remat, the head's chunks) is not counted: it is a choice, not the problem.
    """
    weights = forward_flops(config, work._replace(area=0))
    return (3 + live_reference) * forward_flops(config, work) - frozen * weights
