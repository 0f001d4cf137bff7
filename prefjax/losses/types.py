"""What every objective receives (`Responses`) and what it declares about itself (`Objective`)."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
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
        self, *fields: str, group_size: int | None = None, least: int = 1, objective: str = "this objective"
    ) -> None:
        """Raises a ValueError that names the first of `fields` the batch lacks, or a K other than `group_size` (or
        below `least`)."""
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
        if self.shape[1] < least:
            raise ValueError(
                f"{objective} compares at least K = {least} responses per prompt, but {self.scored} has (B, K) = "
                f"{self.shape}: keep the rankings when preparing the data"
            )

    def valid_slots(self) -> Bool[Array, "B K"]:
        """Which slots hold a response: `valid`, or all of them when it is None."""
        return jnp.ones(self.shape, bool) if self.valid is None else self.valid

    def masked(self, *, whole_groups: bool = False, least: int = 1) -> "Responses":
        """The same batch with zeros wherever nothing valid stands, and `valid` filled in.

        This is the inner half of a "double where": an invalid slot may hold NaN or inf, and masking only the loss
        would let 0 * NaN through the backward pass. The outer half is `prompt_mean` (or a `where` on `valid`).

        whole_groups  one invalid slot makes all K slots of its prompt invalid (pairs).
        least         fewer valid slots than this make all K slots of their prompt invalid (rankings).
        """
        valid = self.valid_slots()
        least = valid.shape[-1] if whole_groups else least
        valid &= jnp.sum(valid, axis=-1, keepdims=True) >= least
        masks = {1: jnp.any(valid, axis=-1), 2: valid, 3: valid[..., None]}
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        zeroed = {name: jnp.where(masks[x.ndim], x, 0) for name, x in arrays.items() if x is not None}
        return self.replace(**(zeroed | {"valid": valid}))

    def prompt_mean(self, x: Float[Array, "B K"]) -> Float[Array, "B"]:
        """Mean of `x` over the valid slots of each prompt; exactly 0 for a prompt without any."""
        valid = self.valid_slots()
        count = jnp.maximum(jnp.sum(valid, axis=-1), 1)
        return jnp.sum(jnp.where(valid, x, 0), axis=-1) / count


@dataclasses.dataclass(frozen=True)
class Objective:
    """One entry of the zoo: a pure loss and the facts the trainer needs to call it rightly.

    loss        (responses, **options) -> [B] per-prompt losses; no reduction, no I/O, no state. Its keyword-only
                parameters are the objective's options: Python numbers or strings, constants under jit.
    group_size  K the loss is defined for; None means any K, of which a prompt may use fewer.
    least       with group_size None, the valid responses a prompt needs to count: 2 where responses are compared, 1
                where each is judged alone (the per-prompt loss is then their mean).
    needs       names of the `Responses` fields it reads besides logp and valid, with default options. One that needs
                features trains a reward model and reads no logp.
    optional    names of fields it reads when the batch has them, with a documented stand-in when not.
    reads       what it reads of `target`: "nothing"; "labels" (1 desirable, 0 undesirable); "rewards" (any number, a
                quantity on its own that may be normalised over the dataset); or "scores" (any number that compares the
                responses of one prompt: only its order or differences there matter, so it is left as it is).
    coupled     True when a per-prompt loss depends on other prompts of the batch (a batch statistic).
    at_init     (responses, **options) -> [B] closed-form per-prompt loss when policy == reference (of a reward model:
                when all rewards are 0), or None when there is none (reference-free objectives).
    """

    name: str
    loss: Callable[..., Float[Array, "B"]]
    group_size: int | None
    needs: frozenset[str]
    optional: frozenset[str] = frozenset()
    reads: str = "nothing"
    coupled: bool = False
    least: int = 1
    at_init: Callable[..., Float[Array, "B"]] | None = None

    @property
    def options(self) -> Mapping[str, Any]:
        """Hyper-parameter names and defaults, read from the loss's keyword-only parameters."""
        parameters = inspect.signature(self.loss).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @property
    def needs_reference(self) -> bool:
        """Whether it compares the policy with a frozen reference, in log-probs or over the vocabulary."""
        return bool(self.needs & {"reference_logp", "kl", "token_reference_logp", "token_kl"})

    @property
    def reads_tokens(self) -> bool:
        """Whether it reads arrays with an entry per token."""
        return any(name.startswith("token_") for name in self.needs)

    @property
    def trains_reward_model(self) -> bool:
        """Whether it reads a reward head instead of log-probs."""
        return "features" in self.needs

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raises a ValueError that names an option the objective does not take and lists those it takes."""
        for name in options:
            if name not in self.options:
                takes = ", ".join(f"{known}={default!r}" for known, default in self.options.items()) or "none"
                raise ValueError(f"{self.name} takes no option {name!r}; its options and defaults: {takes}")

    def check_inputs(self, responses: Responses) -> None:
        """Raises a ValueError that names a field the objective needs and the batch lacks, or a K it does not take."""
        responses.require(*sorted(self.needs), group_size=self.group_size, least=self.least, objective=self.name)

    def valid_prompts(self, responses: Responses) -> Bool[Array, "B"]:
        """The prompts that count: with all K slots valid where `group_size` fixes K, else with at least `least`."""
        return jnp.sum(responses.valid_slots(), axis=-1) >= (self.group_size or self.least)
