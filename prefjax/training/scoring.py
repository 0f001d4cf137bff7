"""Rows -> what an objective receives. The one log-prob path: policy, reference and evaluation all go through it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from prefjax.data.rows import Branches, Rows
from prefjax.losses import Objective, Responses
from prefjax.models import decoder, logprobs, lora
from prefjax.models.decoder import ModelConfig
from prefjax.models.lora import LoraConfig

REFERENCES = ("live", "precomputed", "none")
VALUE_NETWORKS = ("none", "own", "trunk")
STATISTICS = ("log_sum_p2", "kl")


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything static about a step: what is compiled.

    reference      "live": a frozen copy scores the same rows; "precomputed": rows carry it; "none".
    value_network  "own": a second decoder fed prompts only (DRO-V, as in the paper); "trunk": a head on the policy.
    lora           adapters that are trained instead of the policy's own parameters, which stay as the reference's.
    accumulation   micro-batches per optimiser step.
    head_chunk     scored tokens of a device that go through the vocabulary head at once.
    """

    model: ModelConfig
    objective: Objective
    branches: Branches
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reference: str = "live"
    value_network: str = "none"
    lora: LoraConfig = LoraConfig()
    accumulation: int = 1
    head_chunk: int = 512
    mesh: Mesh | None = None

    def __post_init__(self):
        if self.reference not in REFERENCES:
            raise ValueError(f"reference={self.reference!r}: choose one of {REFERENCES}")
        if self.value_network not in VALUE_NETWORKS:
            raise ValueError(f"value_network={self.value_network!r}: choose one of {VALUE_NETWORKS}")
        needs = self.objective.needs
        if self.objective.needs_reference == (self.reference == "none"):
            wanted = "live or precomputed" if self.objective.needs_reference else "none"
            raise ValueError(f"objective {self.objective.name} with reference={self.reference!r}: set it to {wanted}")
        if ("value" in needs) == (self.value_network == "none"):
            wanted = "own or trunk" if "value" in needs else "none"
            raise ValueError(
                f"objective {self.objective.name} with value_network={self.value_network!r}: set it to {wanted}"
            )
        if self.value_network == "own" and self.lora.quantize != "none":
            raise ValueError(
                f"lora.quantize={self.lora.quantize!r} with value_network='own': a value network of its own is the "
                "whole model, trained, and codes have no gradient. Set value_network='trunk', or quantize='none'"
            )
        if ("baseline_logp" in needs) != self.branches.baseline:
            raise ValueError(f"objective {self.objective.name}: the rows' baseline branch must match what it needs")
        if self.mesh is not None and self.model.num_kv_heads % self.mesh.shape["tensor"]:
            raise ValueError(
                f"mesh.tensor={self.mesh.shape['tensor']} does not divide model.num_kv_heads="
                f"{self.model.num_kv_heads}: lower it and give the devices to mesh.fsdp"
            )
        if "kl" in needs and self.reference != "live":
            raise ValueError(
                f"objective {self.objective.name} needs the KL to the reference over the whole vocabulary, which "
                f"log-probs of the sampled tokens do not hold: reference={self.reference!r} must be live"
            )
        self.objective.check_options(self.options)


class Scores(NamedTuple):
    """What depends on the trained parameters: sums per branch over its tokens (nats), and V(x)."""

    logp: Float[Array, "B G N"]
    value: Float[Array, "B G"] | None
    log_sum_p2: Float[Array, "B G N"] | None = None
    kl: Float[Array, "B G N"] | None = None


class Reference(NamedTuple):
    """What the loss takes from the frozen reference; `head` only where an objective needs its whole distribution."""

    logp: Float[Array, "B G N"] | None
    head: logprobs.Head | None = None


def whole_policy(setup: Setup, params: Any, frozen: Any) -> Any:
    """{"policy": ..., ...} with the policy complete: with LoRA the trained part is laid over the frozen base."""
    if not setup.lora.rank:
        return params
    return params | {"policy": lora.join(setup.lora, frozen, params["policy"])}


def head_inputs(setup: Setup, params: Any, rows: Rows) -> logprobs.Head:
    """Hidden states of all rows and the vocabulary head they will meet."""
    hidden = decoder.apply(setup.model, params, rows.tokens, rows.positions, rows.visible_until, mesh=setup.mesh)
    return logprobs.Head(hidden, decoder.vocabulary_head(setup.model, params, mesh=setup.mesh))


def branch_sums(setup: Setup, head: logprobs.Head, rows: Rows, **statistics: Any) -> logprobs.TokenScores:
    """Token scores summed per branch, each [B, G, N] in nats; `statistics` as in `logprobs.token_scores`."""
    tokens = logprobs.token_scores(
        head,
        rows.target_ids,
        rows.predictors,
        rows.target_weights != 0,
        chunk=setup.head_chunk,
        softcap=setup.model.logit_softcap,
        mesh=setup.mesh,
        **statistics,
    )
    return jax.tree.map(lambda x: _sum(setup, x * rows.target_weights, rows), tokens)


def branch_logps(setup: Setup, params: Any, rows: Rows) -> Float[Array, "B G N"]:
    """Sums of log pi(token | everything before it) per branch, nats."""
    return branch_sums(setup, head_inputs(setup, params, rows), rows).logp


def score(setup: Setup, params: Any, rows: Rows, reference: Reference) -> Scores:
    """Scores rows with the trained parameters {"policy": ..., "value": ... (own value network only)}."""
    head = head_inputs(setup, params["policy"], rows)
    hidden, wanted = head.hidden, setup.objective.needs
    sums = branch_sums(setup, head, rows, log_sum_p2="log_sum_p2" in wanted, reference=reference.head)
    value = None
    if setup.value_network == "own":
        prompts = rows.prompts
        states = decoder.apply(
            setup.model,
            params["value"],
            prompts.tokens,
            prompts.positions,
            prompts.visible_until,
            mesh=setup.mesh,
        )
        value = decoder.prompt_values(params["value"], states, prompts.prompt_ends)
    elif setup.value_network == "trunk":
        group_rows = rows.valid.shape[0]
        first = hidden.reshape(group_rows, -1, *hidden.shape[1:])[:, 0]
        value = decoder.prompt_values(params["policy"], first, rows.prompt_ends)
    return Scores(logp=sums.logp, value=value, log_sum_p2=sums.log_sum_p2, kl=sums.kl)


def score_reference(setup: Setup, reference_params: Any, rows: Rows) -> Reference:
    """The reference's branch sums: scored live by the same path, taken from the rows, or absent."""
    if setup.reference == "live":
        head = head_inputs(setup, reference_params, rows)
        logp = branch_sums(setup, head, rows).logp
        return jax.lax.stop_gradient(Reference(logp, head if "kl" in setup.objective.needs else None))
    if setup.reference == "precomputed":
        if rows.reference_logp is None:
            raise ValueError("reference='precomputed' but the rows carry no reference_logp: attach the score table")
        return Reference(rows.reference_logp)
    return Reference(None)


def assemble(setup: Setup, scores: Scores, reference: Float[Array, "B G N"] | None, rows: Rows) -> Responses:
    """Puts sums, targets and validity together as the objective's input, prompts flattened to one axis."""
    branches = setup.branches
    k = branches.responses
    flat = lambda x: None if x is None else x.reshape(-1, *x.shape[2:])
    slot = lambda x, n, present: None if x is None or not present else x[..., n].reshape(-1)
    ones = (rows.target_weights != 0).astype(jnp.float32)
    return Responses(
        logp=flat(scores.logp[..., :k]),
        reference_logp=None if reference is None else flat(reference[..., :k]),
        length=flat(_sum(setup, ones, rows)[..., :k]),
        target=flat(rows.target),
        valid=flat(rows.valid),
        value=flat(scores.value),
        baseline_logp=slot(scores.logp, branches.baseline_slot, branches.baseline),
        baseline_reference_logp=slot(reference, branches.baseline_slot, branches.baseline),
        auxiliary_logp=slot(scores.logp, branches.auxiliary_slot, branches.auxiliary),
        margin=flat(rows.margin),
        target_probability=flat(rows.target_probability),
        **{name: flat(x[..., :k]) for name in STATISTICS if (x := getattr(scores, name)) is not None},
    )


def counted_prompts(setup: Setup, rows: Rows) -> Bool[Array, "P"]:
    """Prompts that count in the loss, flattened like the responses; known before anything is scored."""
    valid = rows.valid.reshape(-1, rows.valid.shape[-1])
    return setup.objective.valid_prompts(Responses(logp=jnp.zeros(valid.shape), valid=valid))


def _sum(setup: Setup, values, rows: Rows):
    group_rows, groups = rows.valid.shape[:2]
    return logprobs.response_sums(
        values, rows.response_slots, groups=groups, branches=setup.branches.count, group_rows=group_rows
    )
