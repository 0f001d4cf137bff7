"""The arithmetic and the memory traffic of one train step, counted on the rows it will see."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from prefjax.fit.flops import Work, forward_flops, layer_parameters, step_flops
from prefjax.models.attention.kernel_tiles import Blocks
from prefjax.rows.arrays import PromptRows, Rows
from prefjax.training.mesh import row_shards
from prefjax.training.scoring import Setup


class Load(NamedTuple):
    """What an average step holds, over all hosts.

    work        real tokens, visible (query, key) pairs, scored tokens
    positions   R * T, padding included: all go through the layers
    tile_area   (query, key) pairs of the tiles that attention visits
    prompts     groups with a valid response
    value_work  of the prompt rows that a value network of its own reads
    """

    work: Work
    positions: float
    tile_area: float
    prompts: float
    value_work: Work

    @property
    def fill(self) -> float:
        return self.work.tokens / self.positions


class Budget(NamedTuple):
    """Per device and step.

    model_flops  the problem's: no padding, no recomputation (what MFU is a share of)
    flops        what runs: padding, whole tiles, recomputation by remat, the head's chunks and the attention's backward
    bytes        between memory and chip
    """

    model_flops: float
    flops: float
    bytes: float


def measure_load(batches: Sequence[Rows], blocks: Blocks) -> Load:
    """Averages over rows as the pipeline makes them; `blocks` is the attention's tile on the chip in question."""
    work = sum((_work(x.visible_until, x.segment_ids > 0, x.scored.sum()) for x in batches), _NOTHING)
    value = [x.prompts for x in batches if x.prompts is not None]
    value_work = sum((_work(x.visible_until, _in_prompt(x), 0) for x in value), _NOTHING)
    mean = lambda total: total / len(batches)
    return Load(
        work=Work(*map(mean, work)),
        positions=mean(sum(x.tokens.size for x in batches)),
        tile_area=mean(sum(live_area(x.visible_until, blocks) for x in batches)),
        prompts=mean(sum(int(x.valid.any(-1).sum()) for x in batches)),
        value_work=Work(*map(mean, value_work)),
    )


def live_area(visible_until: Int[np.ndarray, "R T"], blocks: Blocks) -> float:
    """(query, key) pairs of all tiles that hold a visible one."""
    rows, length = visible_until.shape
    padded = length + -length % max(blocks.query, blocks.key)
    alone = np.broadcast_to(np.arange(length, padded) + 1, (rows, padded - length))
    furthest = np.concatenate([visible_until, alone], axis=1).reshape(rows, 1, -1, blocks.key).max(-1)
    query = np.arange(0, padded, blocks.query)[None, :, None]
    key = np.arange(0, padded, blocks.key)[None, None]
    live = (furthest > query) & (key < query + blocks.query)
    return float(live.sum()) * blocks.query * blocks.key


def step_budget(setup: Setup, load: Load, *, parameter_bytes: int, optimizer_bytes: int) -> Budget:
    """Counts one step on the setup's mesh.

    Matrix products only. Attention runs its forward in two products per tile and its backward in seven (two kernels
    that recompute the logits). Memory traffic: operands and results of every product move once; weights arrive
    gathered, once per pass; parameters, gradients and optimiser state are read and written once; logits are float32.
    Windows of local layers are not subtracted.

    Args:
      parameter_bytes, optimizer_bytes: of one device's shards.
    """
    model, mesh, live = setup.model, setup.mesh, setup.reference == "live"
    devices, tensor = mesh.size, mesh.shape["tensor"]
    again = {"none": 0, "dots": 0, "full": 1}[model.remat]  # "dots" keeps what products and attention made
    passes = 1 + (setup.objective.coupled and setup.accumulation > 1)  # forward passes with what is trained
    through = 1 if setup.lora.rank else 2  # a frozen base has gradients of activations only; adapters are not counted

    dense = forward_flops(model, Work(load.positions, 0, 0))
    attention = forward_flops(model, Work(0, load.tile_area, 0))
    scored = 0 if setup.objective.requires.reward_head else load.work.scored
    head = forward_flops(model, Work(0, 0, scored))
    value_dense = forward_flops(model, Work(load.value_work.tokens, 0, 0))
    value_attention = forward_flops(model, Work(0, load.value_work.area, 0))
    flops = (
        (passes + through + again + live) * dense
        + (passes + 3.5 + again + live) * attention
        + (passes + 1 + through + live) * head
        + (passes + 2 + again) * value_dense
        + (passes + 3.5 + again) * value_attention
    )
    scored_work = load.work._replace(scored=scored)
    problem = step_flops(model, scored_work, live_reference=live, frozen=bool(setup.lora.rank))
    problem += step_flops(model, load.value_work, live_reference=False)

    width = np.dtype("uint16").itemsize if model.dtype == "bfloat16" else np.dtype(model.dtype).itemsize
    weights = model.num_layers * layer_parameters(model) * width / tensor
    gathered = 2 if mesh.shape["fsdp"] > 1 else 1
    networks = 1 + (setup.value_network == "own")
    weight_traffic = weights * gathered * setup.accumulation * (networks * (passes + 1 + again) + live)
    gradients = setup.accumulation * parameter_bytes
    update = 2 * (parameter_bytes + optimizer_bytes) + parameter_bytes
    query, key = model.num_heads * model.head_width, model.num_kv_heads * model.head_width
    per_position = 5 * model.width + (4 * query + 4 * key + 3 * model.mlp_width) / tensor
    tokens = (passes + 2 + again + live) * load.positions + (passes + 2 + again) * load.value_work.tokens
    activations = tokens / row_shards(mesh) * model.num_layers * per_position * width
    logits = 2 * (passes + 2 + live) * 4 * scored * model.vocab_size / devices
    return Budget(
        model_flops=problem / devices,
        flops=flops / devices,
        bytes=weight_traffic + gradients + update + activations + logits,
    )


_NOTHING = Work(0, 0, 0)


def _own(visible_until):
    return np.arange(visible_until.shape[1])[None] + 1


def _in_prompt(rows: PromptRows):
    return (rows.positions > 0) | (rows.visible_until > _own(rows.visible_until))


def _work(visible_until, real, scored) -> Work:
    seen = visible_until - _own(visible_until) + 1
    return Work(float(real.sum()), float(seen[real].sum()), float(scored))
