"""What a stage is asked to do, as frozen dataclasses."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from prefjax.data.prepare import DataConfig
from prefjax.losses import OBJECTIVES, Objective
from prefjax.models import ModelConfig
from prefjax.training.loop import LoopConfig
from prefjax.training.mesh import MeshConfig
from prefjax.training.optimizers import OptimizerConfig

BATCHING = ("rows", "prompts")


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """How trees become the rows of a step.

    layout            "shared_packed", "shared", "packed_pairs", "pairs"
    batching          "rows": the same full rows every step, the number of prompts varies and is logged;
                      "prompts": exactly `prompts_per_step` in every layout, in the same order
    row_length        T in tokens; 0 takes what `suggest_shape` finds
    tokens_per_step   positions of all rows of one step, under "rows" and in evaluation
    prompts_per_step  under "prompts"
    window            trees packed together by first-fit-decreasing, under "rows"
    """

    layout: str = "shared_packed"
    batching: str = "rows"
    row_length: int = 0
    tokens_per_step: int = 16_384
    prompts_per_step: int = 0
    window: int = 4096

    def __post_init__(self):
        if self.batching not in BATCHING:
            raise ValueError(f"rows.batching={self.batching!r}: choose one of {BATCHING}")
        if (self.batching == "prompts") != (self.prompts_per_step > 0):
            raise ValueError(
                f"rows.prompts_per_step={self.prompts_per_step} with batching={self.batching!r}: it must be above 0 "
                "exactly when batching is 'prompts'"
            )
        if self.batching == "prompts" and self.window != type(self).window:
            raise ValueError(f"rows.window={self.window} is only read with batching='rows'")


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """kind: "live", "precomputed" (scored once into `cache`), or "none" for objectives without a reference.

    init_from  workdir of the run whose policy is the reference; empty: the policy training starts from
    cache      folder of score tables that runs may share; empty: inside the workdir
    """

    kind: str = "live"
    init_from: str = ""
    cache: str = ""

    def __post_init__(self):
        if self.kind != "precomputed" and self.cache:
            raise ValueError(f"reference.cache is only read with kind='precomputed', not {self.kind!r}")
        if self.kind == "none" and self.init_from:
            raise ValueError("reference.init_from is not read with kind='none'")


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """Everything a stage needs besides its working directory.

    loss           options of the objective, all of them optional
    init_from      workdir of the run whose policy training starts from; empty: fresh parameters from `seed`
    value_network  "own" or "trunk" for objectives that read V(x), else "none"
    accumulation   micro-batches per optimiser step
    check_start    compare the first loss with the closed form at policy == reference, and stop if it is off
    model          vocab_size 0 means the tokenizer's
    """

    objective: str
    loss: Mapping[str, Any]
    data: DataConfig
    rows: RowsConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    train: LoopConfig
    reference: ReferenceConfig = ReferenceConfig()
    mesh: MeshConfig = MeshConfig()
    init_from: str = ""
    value_network: str = "none"
    accumulation: int = 1
    head_chunk: int = 512
    check_start: bool = True
    seed: int = 0

    def __post_init__(self):
        objective = find_objective(self.objective)
        if self.data.normalize_targets and objective.reads != "rewards" and objective.name != "sft":
            raise ValueError(f"data.normalize_targets has no effect: {objective.name} reads no rewards")
        if self.data.format.auxiliary_field and not objective.optional and objective.name != "sft":
            raise ValueError(f"data.format.auxiliary_field has no effect: {objective.name} reads no auxiliary response")


def find_objective(name: str) -> Objective:
    """Raises ValueError that lists the names there are."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective={name!r}: choose one of {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name]
