"""Responses sampled from a policy, and the exact log-prob of whole sequences through the step's own path."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32
from tqdm import tqdm

from prefjax.data.packing import suggest_shape, tree_sizes
from prefjax.data.pipeline import row_dataset
from prefjax.data.planning import InOrder
from prefjax.data.rows import Branches
from prefjax.data.store import MemoryTrees
from prefjax.data.trees import TokenTree
from prefjax.losses import OBJECTIVES
from prefjax.models import ModelConfig, sample
from prefjax.training.feed import to_devices
from prefjax.training.mesh import row_shards
from prefjax.training.scoring import Setup, branch_logps

_PREFILL_BYTES = 2**29  # of attention weights, [rows, heads, width, cache]; the prefill holds a few such arrays
_SHORT_BITS = 6  # prompts of up to 64 tokens count as similar


def sample_responses(
    model: ModelConfig,
    params: Any,
    prompts: Sequence[np.ndarray],
    *,
    end_id: int,
    pad_id: int,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch: int = 128,
) -> list[np.ndarray]:
    """One response per prompt, token ids with the end token where the policy ended it.

    Prompts of similar length are sampled together, at most `batch` of them and as many as their prefill's attention
    weights fit into `_PREFILL_BYTES`.
    """
    similar: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        similar.setdefault(max(_SHORT_BITS, (len(prompt) - 1).bit_length()), []).append(index)
    parts = []
    for _, indices in sorted(similar.items()):
        width = max(len(prompts[index]) for index in indices)
        weights = 4 * model.num_heads * width * (width + max_new_tokens)
        rows = max(1, min(batch, _PREFILL_BYTES // weights))
        parts += [(indices[i : i + rows], rows, width) for i in range(0, len(indices), rows)]
    responses: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    for number, (indices, rows, width) in enumerate(tqdm(parts, desc="sampling", unit="batch", disable=None)):
        padded = np.full((rows, width), pad_id, np.int32)
        lengths = np.ones(rows, np.int32)
        for row, index in enumerate(indices):
            padded[row, : len(prompts[index])], lengths[row] = prompts[index], len(prompts[index])
        key = jax.random.fold_in(jax.random.key(seed), number)
        options = dict(max_new_tokens=max_new_tokens, eos_id=end_id, pad_id=pad_id, temperature=temperature)
        samples = jax.device_get(sample(model, params, padded, lengths, key, **options))
        for row, index in enumerate(indices):
            responses[index] = samples.tokens[row, : samples.lengths[row]]
    return responses


def sequence_logps(
    setup: Setup,
    params: Sequence[Any],
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
    *,
    tokens_per_batch: int = 16_384,
) -> list[Float32[np.ndarray, "n"]]:
    """log pi(response | prompt), nats, summed over tokens, under each of several sets of policy parameters."""
    branches = Branches(1)
    zero = np.zeros(1, np.float32)
    trees = MemoryTrees(
        TokenTree(prompt, (response,), zero) for prompt, response in zip(prompts, responses, strict=True)
    )
    rows = row_shards(setup.mesh)
    longest = int(tree_sizes(trees.lengths, "shared_packed", branches)[:, 0].max())
    limit = max(tokens_per_batch // rows, longest)
    shape = suggest_shape(trees.lengths, "shared_packed", branches, rows, max_row_length=limit).shape
    plain = dataclasses.replace(
        setup,
        objective=OBJECTIVES["sft"],  # needs log-probs and nothing else
        options={},
        branches=branches,
        reference="none",
        value_network="none",
    )
    score = jax.jit(lambda params, rows: branch_logps(plain, params, rows))
    logps = [np.zeros(len(trees), np.float32) for _ in params]
    for batch in row_dataset(trees, shape, InOrder()):
        real = batch.example_id >= 0
        on_devices = to_devices(setup.mesh, batch)
        for table, one in zip(logps, params, strict=True):
            table[batch.example_id[real]] = np.asarray(score(one, on_devices))[..., 0][real]
    return logps
