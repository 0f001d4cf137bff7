"""What a stage is asked to do, as frozen dataclasses."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from prefjax.data.config import DataConfig
from prefjax.losses import Objective, objective
from prefjax.losses.responses import PROVIDED_BY
from prefjax.models import ModelConfig
from prefjax.models.lora import LoraConfig
from prefjax.models.reward_head import RewardHead
from prefjax.options import REQUIRED, check_ranges, defaults_of, option
from prefjax.requirements import PAIR_NUMBERS
from prefjax.rows.arrays import LAYOUTS
from prefjax.training.loop import LoopConfig
from prefjax.training.mesh import MeshConfig
from prefjax.training.optimizers import OptimizerConfig
from prefjax.training.scoring import REFERENCES, VALUE_NETWORKS


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """How trees become the rows of a step."""

    layout: str = option("shared_packed", "what a row holds, see docs/benchmarks.md", choices=LAYOUTS)
    batching: str = option(
        "rows",
        'what every step has equally much of: "rows", full ones, where the number of prompts varies and is logged; or '
        '"prompts", `prompts_per_step` of them in every layout, in the same order but where `merge_from` keeps some '
        "together",
        choices=("rows", "prompts"),
    )
    row_length: int = option(0, "T in tokens; 0: what `suggest_shape` finds", at_least=0)
    tokens_per_step: int = option(
        16_384, "positions of all rows of one step, with batching=rows and in evaluation", at_least=1
    )
    prompts_per_step: int = option(0, "with batching=prompts", at_least=0)
    order: str = option(
        "shuffled",
        '"shuffled" by the run\'s seed, every epoch anew; or "fixed": every epoch as the trees lie, which is the order '
        "of the file, of several sources one after the other, or what data.methods made of it, as `order_by`",
        choices=("shuffled", "fixed"),
    )
    window: int = option(4096, "trees packed together by first-fit-decreasing, with batching=rows", at_least=1)
    mismatched: str = option(
        "record",
        'for kto, the response to another prompt that every prompt is read with: "record", drawn once per record; or '
        '"step", of another record of every step, as its paper shifts the batch, for which each prompt keeps room for '
        "the longest response. Held-out records keep theirs",
        choices=("record", "step"),
    )
    merge_from: int = option(
        32,
        "with layout=merged and order=shuffled: records of which any have so many tokens in common from their start, "
        "beyond those that all records have, are shuffled and packed as one unit, as far as a row holds them; 0: none "
        "are, and a row merges what chance brings together",
        at_least=0,
    )

    @property
    def merges(self) -> bool:
        """Whether records are packed in units."""
        return self.layout == "merged" and self.order == "shuffled" and self.merge_from > 0

    def __post_init__(self):
        check_ranges(self, "rows")
        if (self.layout, self.order) != ("merged", "shuffled") and self.merge_from != type(self).merge_from:
            raise ValueError(
                f"rows.merge_from={self.merge_from} is only read with layout='merged' and order='shuffled'"
            )
        if self.merges and self.mismatched == "step":
            raise ValueError(
                "rows.mismatched='step' with layout='merged': units are planned before a step says its mismatched "
                "responses. Set rows.merge_from=0, or mismatched='record'"
            )
        if (self.batching == "prompts") != (self.prompts_per_step > 0):
            raise ValueError(
                f"rows.prompts_per_step={self.prompts_per_step} with batching={self.batching!r}: it must be above 0 "
                "exactly when batching is 'prompts'"
            )
        if (self.batching, self.order) != ("rows", "shuffled") and self.window != type(self).window:
            raise ValueError(f"rows.window={self.window} is only read with batching='rows' and order='shuffled'")


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
    """Where the reference log-probs come from. Held-out metrics and the report compare with the reference of the start,
    whether or not it is updated."""

    kind: str = option(
        "live",
        '"live": a frozen copy scores every step\'s rows; "precomputed": scored once into `cache`; "none": for '
        "objectives without a reference",
        choices=REFERENCES,
    )
    init_from: str = option(
        "",
        "the reference: workdir of a run, or a Hugging Face folder, or hf:owner/name; empty: the policy training "
        "starts from",
        decides=False,
    )
    cache: str = option("", "folder of score tables that runs may share; empty: inside the workdir", decides=False)
    update_every: int = option(
        0,
        "steps after which a live reference follows the policy (TR-DPO, arXiv 2404.09656; 512 there); 0: it never does",
        at_least=0,
    )
    update_rate: float = option(
        0.0,
        "how far it follows: reference <- rate * policy + (1 - rate) * reference, the soft update (0.6 in TR-DPO); 1 "
        "makes it a copy, the hard one",
        at_least=0,
        at_most=1,
    )

    def __post_init__(self):
        check_ranges(self, "reference")
        if self.kind != "precomputed" and self.cache:
            raise ValueError(f"reference.cache is only read with kind='precomputed', not {self.kind!r}")
        if self.kind == "none" and self.init_from:
            raise ValueError("reference.init_from is not read with kind='none'")
        if (self.update_every > 0) != (self.update_rate > 0):
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
    """Everything a stage needs besides its working directory."""

    objective: str = option(
        REQUIRED,
        'what is optimised, of docs/objectives.md: a name, or a weighted sum, "0.8*dpo + 0.2*bco_pair + 1.0*sft"',
    )
    loss: Mapping[str, Any] = option(
        REQUIRED,
        "options of the objective, all of them optional, docs/objectives.md; of a sum those of its terms, as "
        "loss.dpo.beta",
    )
    data: DataConfig = option(REQUIRED, "which records, and how they become token trees")
    rows: RowsConfig = option(REQUIRED, "how trees become the rows of a step")
    model: ModelConfig = option(
        REQUIRED, "architecture, which a Hugging Face folder that training starts from decides, and numerics"
    )
    optimizer: OptimizerConfig = option(REQUIRED, "the optimiser and its learning-rate schedule")
    train: LoopConfig = option(REQUIRED, "length, and how often what happens")
    reference: ReferenceConfig = option(ReferenceConfig(), "where the reference log-probs come from")
    mesh: MeshConfig = option(MeshConfig(), "devices per axis")
    lora: LoraConfig = option(LoraConfig(), "adapters on a frozen base, which is the live reference too")
    reward_head: RewardHead = option(RewardHead(), "of objectives that train a reward model")
    init_from: str = option(
        "",
        "where training starts: workdir of a run, or a Hugging Face folder, whose architecture `model` then has, or "
        "hf:owner/name[@revision], which is downloaded; empty: fresh parameters from `seed`",
        decides=False,
    )
    value_network: str = option(
        "none",
        'V(x), for objectives that read it: "own", a second network that sees prompts only, or "trunk", a head on the '
        "policy",
        choices=VALUE_NETWORKS,
    )
    accumulation: int = option(1, "micro-batches per optimiser step", at_least=1)
    head_chunk: int = option(
        512, "scored tokens of a device that go through the vocabulary head at once", at_least=1, decides=False
    )
    check_start: bool = option(
        True, "compare the first loss with the closed form at policy == reference, and stop if it is off", decides=False
    )
    seed: int = option(0, "of parameters, order, and what an objective draws", at_least=0, at_most=2**31 - 1)

    def __post_init__(self):
        check_ranges(self, "")
        own = objective_of(self)
        requires, name = own.requires, self.objective
        if self.lora.rank and self.reference.kind == "live" and self.reference.init_from:
            raise ValueError(
                "reference.init_from with lora.rank above 0: the adapters' base is the live reference. Leave it empty, "
                "or set reference.kind='precomputed' to score another one first"
            )
        if self.rows.mismatched == "step" and not requires.baseline:
            raise ValueError(f"rows.mismatched has no effect: {name} reads no mismatched responses, as kto does")
        if self.rows.mismatched == "step" and self.reference.kind == "precomputed":
            raise ValueError(
                "rows.mismatched='step' with reference.kind='precomputed': mismatched responses are others at every "
                "step; set reference.kind='live', or rows.mismatched='record'"
            )
        if self.lora.rank and self.reference.update_every:
            raise ValueError(
                "reference.update_every with lora.rank above 0: the reference is the adapters' base, which does not "
                "move. Train all parameters, or drop the updates"
            )
        if "auxiliary_logp" in requires.inputs:
            raise ValueError(
                f"objective {own.reader('auxiliary_logp')} scores a rationale after a context that shows the "
                "pair, but an auxiliary response follows the bare prompt and is scored whole: no data provides it, "
                "call the loss by yourself"
            )
        if self.train.eval_samples and requires.reward_head:
            raise ValueError(f"train.eval_samples has no effect: {name} trains a reward model, which answers nothing")
        if requires.imitates:
            return  # it takes the data of the stage after it
        data = self.data.format
        if self.data.normalize_targets and requires.reads != "rewards":
            kept = requires.reads in ("scores", "probabilities")
            detail = f", but {requires.reads}, which are left as they are" if kept else ""
            raise ValueError(f"data.normalize_targets has no effect: {name} reads no rewards{detail}")
        if requires.group_size == 2 and requires.reads == "scores" and self.data.pair_targets == "labels":
            raise ValueError(
                f"objective {own.reader('target')} reads the scores of a pair, and labels are 1 and 0 for all of them: "
                "set data.pair_targets='scores'"
            )
        if data.auxiliary_field and "auxiliary_logp" not in requires.optional:
            raise ValueError(f"data.format.auxiliary_field has no effect: {name} reads no auxiliary response")
        if requires.token_labels and data.spans_field is None:
            raise ValueError(
                f"objective {own.reader('token_weight')} needs token_weight, {PROVIDED_BY['token_weight']}: set "
                "data.format.spans_field to their column"
            )
        if data.spans_field is not None and not requires.token_labels:
            raise ValueError(f"data.format.spans_field has no effect: {name} reads no weights of tokens")
        for number in PAIR_NUMBERS:
            field, column = f"data.format.{number}_field", getattr(data, f"{number}_field")
            if column is None and number in requires.inputs and not self.data.methods:
                raise ValueError(
                    f"objective {own.reader(number)} needs {number}, {PROVIDED_BY[number]}: set {field} to its "
                    "column, or make it by data.methods"
                )
            if column is not None and number not in requires.inputs:
                raise ValueError(f"{field} has no effect: {name} reads no {number}")


def objective_of(config: StageConfig) -> Objective:
    """The objective of a stage, with its options. Raises ValueError as `losses.objective` does."""
    try:
        return objective(config.objective, **config.loss)
    except ValueError as error:
        raise ValueError(f"loss: {error}" if config.loss else str(error)) from error


def defaults_before(config: StageConfig) -> dict[str, Any]:
    """What a stage with this objective had, by `deciding`, of options that came after it was recorded."""
    return {**defaults_of(StageConfig), "loss": objective(config.objective).options}
