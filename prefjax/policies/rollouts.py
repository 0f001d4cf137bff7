"""Responses sampled from a policy, and the exact log-prob of whole sequences through the step's own path."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float32, Int32, Key
from tqdm import tqdm

from prefjax.data.progress import progress_bar
from prefjax.losses import OBJECTIVES
from prefjax.models import ModelConfig, Prompts, SamplingOptions, sample
from prefjax.rows.arrays import Rows
from prefjax.rows.store import MemoryTrees, TreeSource
from prefjax.rows.trees import TokenTree
from prefjax.training.mesh import row_sharding, row_shards
from prefjax.training.scoring import Setup, branch_logps
from prefjax.training.tables import over_trees, round_up, shape_once

_CACHE_BYTES = 2**31  # of keys and values, all devices of a data shard together
_SHORTEST = 32  # tokens; shorter prompts are padded to it


class Sampler(NamedTuple):
    """What responses are drawn from: a model with its parameters, the tokens that end a response, the one that pads
    rows, and the mesh where parameters, rows and caches lie (None: one device)."""

    model: ModelConfig
    params: Any
    stop_ids: Sequence[int]
    pad_id: int
    mesh: Mesh | None = None


class Response(NamedTuple):
    """One sampled response: token ids with the stop token if it has one, the model's log-prob of each (nats), and
    whether it ended by itself."""

    tokens: Int32[np.ndarray, "L"]
    logps: Float32[np.ndarray, "L"]
    ended: bool


def sample_responses(
    sampler: Sampler,
    prompts: Sequence[np.ndarray],
    options: SamplingOptions,
    *,
    seed: int,
    draws: Sequence[tuple[int, int]] | None = None,
    batch: int = 128,
    bar: tqdm | None = None,
) -> list[Response]:
    """One response per prompt, the same in all processes; all give the same prompts.

    Prompts of similar length are sampled together, at most `batch` of them and as many as their keys and values fit
    into `_CACHE_BYTES`. Widths and row counts are rounded up, so that few programs are compiled.

    Args:
      draws: (prompt number, sample number) of each response. With `seed` it decides the random numbers, so a response
        stays the same whatever it is sampled together with. None: (0, 0), (1, 0), ...
      bar: counts responses; None: one of its own.

    Raises:
      ValueError: an empty prompt, or a mesh whose tensor axis does not divide the model's key heads.
    """
    model, params, stop_ids, pad_id, mesh = sampler
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt without tokens: the first token of a response needs one to follow")
    if mesh is not None and model.num_kv_heads % mesh.shape["tensor"]:
        raise ValueError(
            f"mesh.tensor={mesh.shape['tensor']} does not divide model.num_kv_heads={model.num_kv_heads}: lower it and "
            "give the devices to mesh.fsdp"
        )
    numbers = np.array([(i, 0) for i in range(len(prompts))] if draws is None else draws).reshape(-1, 2)
    place = lambda x: x
    if mesh is not None:
        place = functools.partial(jax.device_put, device=row_sharding(mesh))
    bar = bar if bar is not None else progress_bar(shown=True, total=len(prompts), desc="sampling", unit="response")
    responses: list[Response] = [None] * len(prompts)
    for indices, rows, width in _plan(model, [len(p) for p in prompts], options.max_new_tokens, batch, mesh):
        padded = np.full((rows, width), pad_id, np.int32)
        lengths = np.zeros(rows, np.int32)
        for row, index in enumerate(indices):
            padded[row, : len(prompts[index])], lengths[row] = prompts[index], len(prompts[index])
        chosen = np.resize(np.array(indices), rows)  # rows of padding need a key too
        asked = Prompts(place(padded), place(lengths), _keys(seed, place(numbers[chosen])))
        samples = sample(model, params, asked, options, stop_ids=tuple(stop_ids), pad_id=pad_id, mesh=mesh)
        samples = multihost_utils.process_allgather(samples, tiled=True)
        for row, index in enumerate(indices):
            length = samples.lengths[row]
            logps = samples.logps[row, :length].astype(np.float32)
            responses[index] = Response(samples.tokens[row, :length], logps, bool(samples.ended[row]))
        bar.update(len(indices))
    return responses


@functools.partial(jax.jit, static_argnums=0)
def _keys(seed: int, draws: Array) -> Key[Array, "B"]:
    one = lambda draw: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), draw[0]), draw[1])
    return jax.vmap(one)(draws)


def _plan(
    model: ModelConfig, lengths: list[int], max_new_tokens: int, batch: int, mesh: Mesh | None
) -> list[tuple[list[int], int, int]]:
    """(indices of prompts, rows, width) of every batch."""
    shards = 1 if mesh is None else row_shards(mesh)
    similar: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        similar.setdefault(round_up(max(length, _SHORTEST)), []).append(index)
    parts = []
    for width, indices in sorted(similar.items()):
        token = 2 * model.num_layers * model.num_kv_heads * model.head_width * jnp.dtype(model.dtype).itemsize
        most = max(1, min(batch, _CACHE_BYTES * shards // (token * (width + max_new_tokens))))
        most = max(shards, most // shards * shards)
        for start in range(0, len(indices), most):
            part = indices[start : start + most]
            rows = min(most, -(-round_up(len(part)) // shards) * shards)
            parts.append((part, rows, width))
    return parts


def score_trees(
    model: ModelConfig,
    mesh: Mesh,
    params: Sequence[Any],
    trees: TreeSource,
    *,
    tokens_per_step: int = 16_384,
    head_chunk: int = 512,
    progress: str = "",
) -> list[Float32[np.ndarray, "n K"]]:
    """log pi(response | prompt) of every response of every tree, nats, summed over tokens, under each of several sets
    of policy parameters; 0 where a tree has fewer than K. Shapes are rounded up, so that few programs are compiled.

    Args:
      progress: what a bar calls it; empty: no bar.
    """
    score = _scorer(model, mesh, head_chunk)
    bar = progress_bar(shown=bool(progress), total=len(trees), desc=progress, unit="prompt")
    shape = shape_once(trees, mesh, tokens_per_step=tokens_per_step)
    with bar:
        return over_trees(lambda rows: [score(one, rows) for one in params], mesh, trees, shape, bar=bar)


@functools.cache
def _scorer(model: ModelConfig, mesh: Mesh, head_chunk: int) -> Callable[[Any, Rows], Array]:
    setup = Setup(model, OBJECTIVES["sft"], head_chunk=head_chunk, mesh=mesh)  # it needs log-probs and nothing else
    return jax.jit(lambda params, rows: branch_logps(setup, params, rows), out_shardings=NamedSharding(mesh, P()))


def sequence_logps(
    setup: Setup,
    params: Sequence[Any],
    prompts: Sequence[np.ndarray],
    responses: Sequence[np.ndarray],
) -> list[Float32[np.ndarray, "n"]]:
    """log pi(response | prompt), nats, summed over tokens, under each of several sets of policy parameters."""
    trees = one_each(prompts, responses)
    tables = score_trees(setup.model, setup.mesh, params, trees, head_chunk=setup.head_chunk)
    return [table[:, 0] for table in tables]


def one_each(prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray]) -> MemoryTrees:
    """Trees of one response each, from token ids."""
    zero = np.zeros(1, np.float32)
    pairs = zip(prompts, responses, strict=True)
    return MemoryTrees(TokenTree(prompt, (response,), zero) for prompt, response in pairs)
