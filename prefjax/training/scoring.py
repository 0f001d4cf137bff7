"""Rows -> what an objective receives. The one log-prob path: policy, reference and evaluation all go through it."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from prefjax.losses import Objective, Responses
from prefjax.models import decoder, logprobs, lora, reward_head
from prefjax.models.decoder import ModelConfig
from prefjax.models.lora import LoraConfig
from prefjax.models.reward_head import RewardHead
from prefjax.rows.arrays import Rows
from prefjax.training.mesh import MeshConfig, make_mesh

REFERENCES = ("live", "precomputed", "none")
VALUE_NETWORKS = ("none", "own", "trunk")
STATISTICS = ("log_sum_p2", "kl")
# What needs more of the reference than one log-prob for each response -> what of it a table of these lacks.
LIVE_ONLY = {
    "kl": "the KL to the reference over the whole vocabulary",
    "token_kl": "the KL to the reference over the whole vocabulary",
    "token_reference_logp": "the reference's log-prob of every single token",
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything static about a step: what is compiled. Shapes are not here: rows say them.

    objective      with its options.
    reference      "live": a frozen copy scores the same rows; "precomputed": rows carry it; "none". None: what the
                   objective needs.
    value_network  "own": a second decoder fed prompts only (DRO-V, as in the paper); "trunk": a head on the policy;
                   "none". None: what the objective needs.
    reward_head    what a reward model's objective reads.
    lora           adapters that are trained instead of the policy's own parameters, which stay as the reference's.
    accumulation   micro-batches per optimiser step.
    head_chunk     scored tokens of a device that go through the vocabulary head at once.
    seed           of what an objective draws for every token.
    update_every, update_rate  when and how far a live reference follows the policy, see `ReferenceConfig`.
    skip_non_finite  whether an update is left out where its loss or gradient is NaN or infinite.
    mesh           where arrays lie; None: the first device alone.
    """

    model: ModelConfig
    objective: Objective
    reference: str | None = None
    value_network: str | None = None
    reward_head: RewardHead = RewardHead()
    lora: LoraConfig = LoraConfig()
    accumulation: int = 1
    head_chunk: int = 512
    seed: int = 0
    update_every: int = 0
    update_rate: float = 0.0
    skip_non_finite: bool = False
    mesh: Mesh | None = None

    def __post_init__(self):
        requires, name = self.objective.requires, self.objective.name
        if self.reference is None:
            object.__setattr__(self, "reference", "live" if requires.reference else "none")
        if self.value_network is None:
            object.__setattr__(self, "value_network", "own" if requires.value else "none")
        if self.mesh is None:
            object.__setattr__(self, "mesh", make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
        if self.reference not in REFERENCES:
            raise ValueError(f"reference={self.reference!r}: choose one of {REFERENCES}")
        if self.value_network not in VALUE_NETWORKS:
            raise ValueError(f"value_network={self.value_network!r}: choose one of {VALUE_NETWORKS}")
        if requires.reference == (self.reference == "none"):
            wanted = "live or precomputed" if requires.reference else "none"
            raise ValueError(f"objective {name} with reference={self.reference!r}: set it to {wanted}")
        if requires.value == (self.value_network == "none"):
            wanted = "own or trunk" if requires.value else "none"
            raise ValueError(f"objective {name} with value_network={self.value_network!r}: set it to {wanted}")
        if self.value_network == "own" and self.lora.quantize != "none":
            raise ValueError(
                f"lora.quantize={self.lora.quantize!r} with value_network='own': a value network of its own is the "
                "whole model, trained, and codes have no gradient. Set value_network='trunk', or quantize='none'"
            )
        if self.reward_head != RewardHead() and not requires.reward_head:
            raise ValueError(f"reward_head has no effect: objective {name} trains no reward model")
        if self.model.num_kv_heads % self.mesh.shape["tensor"]:
            raise ValueError(
                f"mesh.tensor={self.mesh.shape['tensor']} does not divide model.num_kv_heads="
                f"{self.model.num_kv_heads}: lower it and give the devices to mesh.fsdp"
            )
        for field in sorted(LIVE_ONLY.keys() & requires.inputs):
            if self.reference != "live":
                raise ValueError(
                    f"objective {self.objective.reader(field)} needs {LIVE_ONLY[field]}, which a table of log-probs of "
                    f"whole responses does not hold: reference={self.reference!r} must be live"
                )


class Scores(NamedTuple):
    """What depends on the trained parameters: sums per branch over its tokens (nats), V(x), and single tokens.

    Of a reward model only `features`: what its head says of every response.
    """

    logp: Float[Array, "B G N"] | None = None
    value: Float[Array, "B G"] | None = None
    log_sum_p2: Float[Array, "B G N"] | None = None
    kl: Float[Array, "B G N"] | None = None
    token_logp: Float[Array, "B G K L"] | None = None
    token_kl: Float[Array, "B G K L"] | None = None
    features: Float[Array, "B G K m"] | None = None


class Reference(NamedTuple):
    """What the loss takes from the frozen reference; single tokens, and its whole distribution (`head`, for the scores
    alone), only where an objective needs them."""

    logp: Float[Array, "B G N"] | None
    token_logp: Float[Array, "B G K L"] | None = None
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


def response_states(setup: Setup, params: Any, rows: Rows) -> tuple[Float[Array, "B G K D"], Float[Array, "B G D"]]:
    """Hidden states of the last token of every response and of every prompt; no vocabulary head is needed or there."""
    trunk = dataclasses.replace(setup.model, tie_embeddings=True)
    hidden = decoder.apply(trunk, params, rows.tokens, rows.positions, rows.visible_until, mesh=setup.mesh)
    first = hidden.reshape(len(rows.prompt_ends), -1, *hidden.shape[1:])[:, 0]
    prompts = jnp.take_along_axis(first, rows.prompt_ends[:, :, None], axis=1)
    return reward_head.last_states(hidden, rows.response_ends, rows.valid.shape[-1]), prompts


def response_features(setup: Setup, params: Any, rows: Rows) -> Float[Array, "B G K m"]:
    """What the reward head says of every response."""
    states, prompts = response_states(setup, params, rows)
    return reward_head.features(setup.reward_head, params, states, prompts)


def scored_tokens(setup: Setup, head: logprobs.Head, rows: Rows, **statistics: Any) -> logprobs.TokenScores:
    """Scores of every scored entry, each [R, E] in nats; `statistics` as in `logprobs.token_scores`.

    A token that is of several responses goes through the vocabulary head once.
    """
    tokens = logprobs.token_scores(
        head,
        logprobs.Targets(rows.target_ids, rows.predictors, rows.scored),
        chunk=setup.head_chunk,
        softcap=setup.model.logit_softcap,
        mesh=setup.mesh,
        **statistics,
    )
    if rows.entries is None:
        return tokens
    return jax.tree.map(lambda x: jnp.take_along_axis(x, rows.entries, axis=1), tokens)


def branch_sums(tokens: logprobs.TokenScores, rows: Rows) -> logprobs.TokenScores:
    """Token scores summed per branch, each [B, G, N] in nats."""
    return jax.tree.map(lambda x: _sum(x * rows.target_weights, rows), tokens)


def by_token(setup: Setup, x: Array | None, rows: Rows, field: str) -> Float[Array, "B G K L"] | None:
    """A number of every scored token laid out by response, where the objective reads this field; else None."""
    if field not in setup.objective.requires.inputs or x is None:
        return None
    places = rows.response_tokens
    own = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32)).reshape(len(places), -1)
    found = jnp.take_along_axis(own, jnp.maximum(places, 0).reshape(len(places), -1), axis=1)
    return jnp.where(places >= 0, found.reshape(places.shape), 0)


def branch_logps(setup: Setup, params: Any, rows: Rows) -> Float[Array, "B G N"]:
    """Sums of log pi(token | everything before it) per branch, nats."""
    return branch_sums(scored_tokens(setup, head_inputs(setup, params, rows), rows), rows).logp


def score(setup: Setup, params: Any, rows: Rows, reference: Reference) -> Scores:
    """Scores rows with the trained parameters {"policy": ..., "value": ... (own value network only)}."""
    if setup.objective.requires.reward_head:
        return Scores(features=response_features(setup, params["policy"], rows))
    head = head_inputs(setup, params["policy"], rows)
    hidden, wanted = head.hidden, setup.objective.requires.inputs
    tokens = scored_tokens(setup, head, rows, log_sum_p2="log_sum_p2" in wanted, reference=reference.head)
    sums = branch_sums(tokens, rows)
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
    return Scores(
        logp=sums.logp,
        value=value,
        log_sum_p2=sums.log_sum_p2,
        kl=sums.kl,
        token_logp=by_token(setup, tokens.logp, rows, "token_logp"),
        token_kl=by_token(setup, tokens.kl, rows, "token_kl"),
    )


def score_reference(setup: Setup, reference_params: Any, rows: Rows) -> Reference:
    """The reference's branch sums: scored live by the same path, taken from the rows, or absent."""
    if setup.reference == "live":
        head = head_inputs(setup, reference_params, rows)
        tokens = scored_tokens(setup, head, rows)
        logp, single = branch_sums(tokens, rows).logp, by_token(setup, tokens.logp, rows, "token_reference_logp")
        whole = setup.objective.requires.inputs & {"kl", "token_kl"}
        return jax.lax.stop_gradient(Reference(logp, single, head if whole else None))
    if setup.reference == "precomputed":
        if rows.reference_logp is None:
            raise ValueError("reference='precomputed' but the rows carry no reference_logp: attach the score table")
        return Reference(rows.reference_logp)
    return Reference(None)


def assemble(setup: Setup, scores: Scores, reference: Reference, rows: Rows) -> Responses:
    """Puts sums, targets and validity together as the objective's input, prompts flattened to one axis.

    The branches of a prompt are its K responses, then the baseline, then the auxiliary response, where there are such.
    """
    k, branches = rows.valid.shape[-1], rows.response_ends.shape[-1]
    baseline = setup.objective.requires.baseline
    if branches not in (k + baseline, k + baseline + 1):
        raise ValueError(
            f"objective {setup.objective.name}: rows of {k} responses have {branches} branches a prompt; the baseline "
            f"branch is {'missing' if baseline else 'not read'}"
        )
    flat = lambda x: None if x is None else x.reshape(-1, *x.shape[2:])
    slot = lambda x, n, present: None if x is None or not present else x[..., n].reshape(-1)
    auxiliary = branches > k + baseline
    ones = (rows.target_weights != 0).astype(jnp.float32)
    return Responses(
        logp=None if scores.logp is None else flat(scores.logp[..., :k]),
        reference_logp=None if reference.logp is None else flat(reference.logp[..., :k]),
        length=flat(_sum(ones, rows)[..., :k]),
        target=flat(rows.target),
        valid=flat(rows.valid),
        value=flat(scores.value),
        baseline_logp=slot(scores.logp, k, baseline),
        baseline_reference_logp=slot(reference.logp, k, baseline),
        auxiliary_logp=slot(scores.logp, branches - 1, auxiliary),
        margin=flat(rows.margin),
        target_probability=flat(rows.target_probability),
        features=flat(scores.features),
        **{name: flat(x[..., :k]) for name in STATISTICS if (x := getattr(scores, name)) is not None},
        token_logp=flat(scores.token_logp),
        token_reference_logp=flat(reference.token_logp),
        token_kl=flat(scores.token_kl),
        token_weight=flat(by_token(setup, rows.token_weight, rows, "token_weight")),
        token_segment=flat(by_token(setup, rows.token_segment, rows, "token_segment")),
        token_draw=flat(_draws(setup, rows) if "token_draw" in setup.objective.requires.inputs else None),
    )


def counted_prompts(setup: Setup, rows: Rows) -> Bool[Array, "P"]:
    """Prompts that count in the loss, flattened like the responses; known before anything is scored."""
    valid = rows.valid.reshape(-1, rows.valid.shape[-1])
    return setup.objective.valid_prompts(Responses(logp=jnp.zeros(valid.shape), valid=valid))


def _draws(setup: Setup, rows: Rows) -> Float[Array, "B G K L"]:
    """Uniform numbers that depend on the seed, the example, the response and the token's place in it, nothing else."""
    shape = rows.response_tokens.shape
    key = jax.random.key(setup.seed)

    def draw(*place):
        return jax.random.uniform(functools.reduce(jax.random.fold_in, place, key), dtype=jnp.float32)

    response, token = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (2, 3))
    example = jnp.broadcast_to(rows.example_id[:, :, None, None], shape)
    return jax.vmap(draw)(example.ravel(), response.ravel(), token.ravel()).reshape(shape)


def _sum(values, rows: Rows):
    group_rows, groups, branches = rows.response_ends.shape
    return logprobs.response_sums(values, rows.response_slots, groups=groups, branches=branches, group_rows=group_rows)
