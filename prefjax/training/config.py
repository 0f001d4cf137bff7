"""What a stage is asked to do, as frozen dataclasses."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from prefjax.data.prepare import DataConfig
from prefjax.data.records import NUMBERS
from prefjax.data.rows import MARKS
from prefjax.losses import OBJECTIVES, Objective
from prefjax.losses.types import PROVIDED_BY
from prefjax.models import ModelConfig
from prefjax.models.lora import LoraConfig
from prefjax.models.reward_head import RewardHead
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

    init_from  the reference: workdir of a run, or a Hugging Face folder; empty: the policy training starts from
    cache      folder of score tables that runs may share; empty: inside the workdir
    update_every  steps after which a live reference follows the policy (TR-DPO, arXiv 2404.09656); 0: it never does
    update_rate   how far: reference <- rate * policy + (1 - rate) * reference, the soft update; 1 makes it a copy, the
                  hard one. The authors' values are a rate of 0.6, and 512 steps. Held-out metrics and the report still
                  compare with the reference of the start.
    """

    kind: str = "live"
    init_from: str = ""
    cache: str = ""
    update_every: int = 0
    update_rate: float = 0.0

    def __post_init__(self):
        if self.kind != "precomputed" and self.cache:
            raise ValueError(f"reference.cache is only read with kind='precomputed', not {self.kind!r}")
        if self.kind == "none" and self.init_from:
            raise ValueError("reference.init_from is not read with kind='none'")
        if self.update_every < 0 or not 0 <= self.update_rate <= 1 or (self.update_every > 0) != (self.update_rate > 0):
            raise ValueError(
                f"reference.update_every={self.update_every} with update_rate={self.update_rate}: set both, a number "
                "of steps and a rate in (0, 1], or neither"
            )
        if self.update_every and self.kind != "live":
            raise ValueError(
                f"reference.update_every={self.update_every} with kind={self.kind!r}: only a live reference can follow "
                "the policy; scores that were computed before hold for the first one alone"
            )


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """Everything a stage needs besides its working directory.

    loss           options of the objective, all of them optional
    init_from      where training starts: workdir of a run, or a Hugging Face folder, whose architecture `model` then
                   has (`huggingface.read_config`); empty: fresh parameters from `seed`
    lora           train adapters on a frozen base, which is the live reference too; rank 0 trains everything
    reward_head    of objectives that train a reward model
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
    lora: LoraConfig = LoraConfig()
    reward_head: RewardHead = RewardHead()
    init_from: str = ""
    value_network: str = "none"
    accumulation: int = 1
    head_chunk: int = 512
    check_start: bool = True
    seed: int = 0

    def __post_init__(self):
        objective = find_objective(self.objective)
        if self.lora.rank and self.reference.kind == "live" and self.reference.init_from:
            raise ValueError(
                "reference.init_from with lora.rank above 0: the adapters' base is the live reference. Leave it empty, "
                "or set reference.kind='precomputed' to score another one first"
            )
        if self.lora.rank and self.reference.update_every:
            raise ValueError(
                "reference.update_every with lora.rank above 0: the reference is the adapters' base, which does not "
                "move. Train all parameters, or drop the updates"
            )
        if "auxiliary_logp" in objective.needs:
            raise ValueError(
                f"objective {objective.name} scores a rationale after a context that shows the pair, but an auxiliary "
                "response follows the bare prompt and is scored whole: no data provides it, call the loss by yourself"
            )
        if objective.name == "sft":
            return  # it takes the data of the stage after it
        data = self.data.format
        if self.data.normalize_targets and objective.reads != "rewards":
            detail = ", but scores, which are left as they are" if objective.reads == "scores" else ""
            raise ValueError(f"data.normalize_targets has no effect: {objective.name} reads no rewards{detail}")
        if data.auxiliary_field and "auxiliary_logp" not in objective.optional:
            raise ValueError(f"data.format.auxiliary_field has no effect: {objective.name} reads no auxiliary response")
        reads_spans = any(field.removesuffix("s") in objective.needs for field in MARKS)
        if reads_spans and data.spans_field is None:
            raise ValueError(
                f"objective {objective.name} needs token_weight, {PROVIDED_BY['token_weight']}: set "
                "data.format.spans_field to their column"
            )
        if data.spans_field is not None and not reads_spans:
            raise ValueError(f"data.format.spans_field has no effect: {objective.name} reads no weights of tokens")
        for name in NUMBERS:
            field, column = f"data.format.{name}_field", getattr(data, f"{name}_field")
            if column is None and name in objective.needs and not self.data.methods:
                raise ValueError(
                    f"objective {objective.name} needs {name}, {PROVIDED_BY[name]}: set {field} to its column, or make "
                    "it by data.methods"
                )
            if column is not None and name not in objective.needs:
                raise ValueError(f"{field} has no effect: {objective.name} reads no {name}")


def find_objective(name: str) -> Objective:
    """Raises ValueError that lists the names there are."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective={name!r}: choose one of {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[name]
