"""What every objective receives: log-probs of B prompts with K responses each, and what belongs to them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Every optional input of an objective, and what puts it into the batch: the second half of a "needs" error.
PROVIDED_BY: Mapping[str, str] = {
    "reference_logp": "the responses scored under the frozen reference, live or precomputed",
    "length": "the response token counts, summed beside logp",
    "target": "labels, rewards or scores in the preference records",
    "value": "a value network read at the last prompt token",
    "baseline_logp": "a mismatched response (one to another prompt), packed as the baseline branch of every prompt",
    "baseline_reference_logp": "that baseline branch scored under the frozen reference",
    "auxiliary_logp": "a regulariser target, packed as the auxiliary branch of every prompt",
    "margin": "a required margin per pair, in the preference records",
    "target_probability": "P(the first response is the better one) per pair, in the preference records",
    "log_sum_p2": "a statistic of the policy over the vocabulary, from the pass that scores its tokens",
    "features": "a reward head, read at the last token of every response",
    "kl": "policy and a live reference over the whole vocabulary, from the pass that scores the tokens",
    "token_logp": "the log-prob of every response token, kept beside their sum",
    "token_reference_logp": "the log-prob of every response token under a live reference, kept beside their sum",
    "token_kl": "the terms of kl, token by token, kept beside their sum",
    "token_weight": "weighted spans of the responses, in the preference records",
    "token_segment": "weighted spans of the responses, in the preference records",
    "token_draw": "a number drawn for every response token from the run's seed and its example",
    "carried": "what the objective carries from step to step: objective.initial_carried() before the first one",
}


@flax.struct.dataclass(kw_only=True)
class Responses:
    """Log-probs of B prompts with K responses each. Chosen is 0 and rejected is 1 when K = 2. Nats, float32.

    Of a reward model `logp` and what belongs to it is None, and `features` says what its head reads.

    logp                     [B, K] SUM over response tokens of log pi(token | everything before it), EOS included
    reference_logp           [B, K] the same under the frozen reference
    length                   [B, K] response tokens summed in logp
    target                   [B, K] 1/0 label (KTO), reward (DRO), score; (1, 0) for pairs
    valid                    [B, K] an invalid slot contributes exactly nothing; None means all valid
    value                    [B]    V(x) of the prompt alone (DRO-V)
    baseline_logp            [B]    KTO's mismatched response under this prompt
    baseline_reference_logp  [B]    the same under the frozen reference
    auxiliary_logp           [B]    SLiC's regulariser target, or a rationale, under this prompt
    margin                   [B]    what beta h must exceed, in units of beta times nats
    target_probability       [B]    P(response 0 is better than response 1), in [0, 1]
    log_sum_p2               [B, K] SUM over response tokens of log sum_v pi(v)^2
    kl                       [B, K] SUM over response tokens of KL(reference || policy) over the vocabulary
    features                 [B, K, m] of a reward head: m = 1 a scalar reward; m even an embedding (GPM)
    carried                  numbers by name that the objective carries from step to step, as they were before this one

    Token arrays are [B, K, L]: entry t is about token t of the response where t < length, and means nothing elsewhere.

    token_logp               log pi(token | everything before it)
    token_reference_logp     the same under the frozen reference
    token_kl                 KL(reference || policy) over the vocabulary, where the token is predicted
    token_weight             what the data say of the token: the weight of the span it lies in, 0 outside all spans
    token_segment            number of that span in its response, counted from 1; 0 outside all spans
    token_draw               uniform in [0, 1), independent over tokens, the same whenever the example is seen
    """

    logp: Float[Array, "B K"] | None = None
    reference_logp: Float[Array, "B K"] | None = None
    length: Float[Array, "B K"] | None = None
    target: Float[Array, "B K"] | None = None
    valid: Bool[Array, "B K"] | None = None
    value: Float[Array, "B"] | None = None
    baseline_logp: Float[Array, "B"] | None = None
    baseline_reference_logp: Float[Array, "B"] | None = None
    auxiliary_logp: Float[Array, "B"] | None = None
    margin: Float[Array, "B"] | None = None
    target_probability: Float[Array, "B"] | None = None
    log_sum_p2: Float[Array, "B K"] | None = None
    kl: Float[Array, "B K"] | None = None
    token_logp: Float[Array, "B K L"] | None = None
    token_reference_logp: Float[Array, "B K L"] | None = None
    token_kl: Float[Array, "B K L"] | None = None
    token_weight: Float[Array, "B K L"] | None = None
    token_segment: Float[Array, "B K L"] | None = None
    token_draw: Float[Array, "B K L"] | None = None
    features: Float[Array, "B K m"] | None = None
    carried: Mapping[str, Any] | None = None

    @property
    def scored(self) -> str:
        """Which field says how good the responses are: "logp", or "features" of a reward model."""
        return "features" if self.logp is None else "logp"

    @property
    def shape(self) -> tuple[int, int]:
        """(B, K)."""
        return getattr(self, self.scored).shape[:2]

    @property
    def dtype(self) -> jnp.dtype:
        return getattr(self, self.scored).dtype

    def require(
        self, *fields: str, group_size: int | None = None, min_responses: int = 1, objective: str = "this objective"
    ) -> None:
        """Raises a ValueError that names the first of `fields` the batch lacks, or a K other than `group_size` (or
        below `min_responses`)."""
        for field in fields:
            if getattr(self, field) is None:
                raise ValueError(f"{objective} needs {field}: {PROVIDED_BY[field]}")
        if self.logp is None and "features" not in fields:
            raise ValueError(f"{objective} needs logp, a policy's log-probs of the responses")
        if group_size is not None and self.shape[1] != group_size:
            raise ValueError(
                f"{objective} compares exactly K = {group_size} responses per prompt, but {self.scored} has (B, K) = "
                f"{self.shape}: choose {group_size} responses per prompt when preparing the data"
            )
        if self.shape[1] < min_responses:
            raise ValueError(
                f"{objective} compares at least K = {min_responses} responses per prompt, but {self.scored} has "
                f"(B, K) = {self.shape}: keep the rankings when preparing the data"
            )

    def arrays(self) -> dict[str, Any]:
        """The arrays that are there, by their fields: all of the batch, without what is carried."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: x for name, x in found.items() if x is not None and name != "carried"}

    def valid_slots(self) -> Bool[Array, "B K"]:
        """Which slots hold a response: `valid`, or all of them when it is None."""
        return jnp.ones(self.shape, bool) if self.valid is None else self.valid

    def masked(self, *, whole_groups: bool = False, min_responses: int = 1) -> "Responses":
        """The same batch with zeros wherever nothing valid stands, and `valid` filled in.

        This is the inner half of a "double where": an invalid slot may hold NaN or inf, and masking only the loss
        would let 0 * NaN through the backward pass. The outer half is `prompt_mean` (or a `where` on `valid`).

        whole_groups   one invalid slot makes all K slots of its prompt invalid (pairs).
        min_responses  fewer valid slots than this make all K slots of their prompt invalid (rankings).
        """
        valid = self.valid_slots()
        fewest = valid.shape[-1] if whole_groups else min_responses
        valid &= jnp.sum(valid, axis=-1, keepdims=True) >= fewest
        masks = {1: jnp.any(valid, axis=-1), 2: valid, 3: valid[..., None]}
        zeroed: dict[str, Any] = {name: jnp.where(masks[x.ndim], x, 0) for name, x in self.arrays().items()}
        return dataclasses.replace(self, **(zeroed | {"valid": valid}))

    def prompt_mean(self, x: Float[Array, "B K"]) -> Float[Array, "B"]:
        """Mean of `x` over the valid slots of each prompt; exactly 0 for a prompt without any."""
        valid = self.valid_slots()
        count = jnp.maximum(jnp.sum(valid, axis=-1), 1)
        return jnp.sum(jnp.where(valid, x, 0), axis=-1) / count
