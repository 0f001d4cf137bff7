"""Wrappers: what papers do to any loss, each one function over any objective that it fits.

`smooth(objective("simpo"), rate=0.1)` in Python, "smooth(simpo, rate=0.1)" as text: an objective like others, with the
options of both, a term of sums, and wrapped again. One that does not fit is refused with the reason.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prefjax.losses.objective import Objective, Sum
from prefjax.losses.reducers import batch_mean
from prefjax.losses.responses import Responses
from prefjax.options import BelowHalf, NonNegative, Positive
from prefjax.registry import Entry
from prefjax.requirements import PAIR_NUMBERS, Requirements

WRAPPERS: dict[str, "Wrapper"] = {}
# What belongs to a response, so that it goes with it where the two of a pair change places.
_OF_RESPONSES = frozenset(
    "reference_logp length log_sum_p2 kl features token_logp token_reference_logp token_kl token_draw".split()
)


class Inner(NamedTuple):
    """What is wrapped: losses per prompt, and the prompts that count."""

    loss: Callable[[Responses], Float[Array, "B"]]
    valid_prompts: Callable[[Responses], Bool[Array, "B"]]


@dataclasses.dataclass(frozen=True)
class Wrapper(Entry):
    """One entry of `WRAPPERS`. `apply` is (inner, responses, **options) -> [B] per-prompt losses.

    fits      an objective -> why it cannot be wrapped; empty if it can
    requires  what the objective requires -> what the wrapped one does
    coupled   whether a prompt's loss depends on other prompts
    """

    fits: Callable[[Objective], str] = lambda objective: ""
    requires: Callable[[Requirements], Requirements] = lambda requires: requires
    coupled: bool = False

    def __call__(self, objective: Objective, **options: Any) -> "Wrapped":
        """The wrapped objective. Raises ValueError where it does not fit, or for an option that is not taken."""
        return Wrapped(wrapper=self, inner=objective).with_options(options)


@dataclasses.dataclass(frozen=True)
class Wrapped(Objective):
    """An objective under a wrapper. Its options are those of both, and its start value is the wrapper of the start.

    Raises:
      ValueError: the objective does not fit, and why.
    """

    apply: Callable[..., Any] = dataclasses.field(init=False, repr=False, compare=False)
    wrapper: Wrapper = dataclasses.field(kw_only=True)
    inner: Objective = dataclasses.field(kw_only=True)
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        shared = sorted(self.wrapper.options.keys() & self.inner.options.keys())
        reason = self.wrapper.fits(self.inner) or (f"both have the option {shared[0]!r}" if shared else "")
        if isinstance(self.inner, Sum):
            reason = "wrap its terms, each by itself"
        if reason:
            raise ValueError(f"{self.wrapper.name} does not fit {self.inner.name}: {reason}")
        facts: dict[str, Any] = {
            "apply": self.loss,
            "requires": self.wrapper.requires(self.inner.requires),
            "coupled": self.wrapper.coupled or self.inner.coupled,
            "start": None if self.inner.start is None else self.at_init,
        }
        for name, value in facts.items():
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        return f"{self.wrapper.name}({self.inner.name})"

    @property
    def key(self) -> str:
        return f"{self.wrapper.name}_{self.inner.key}"

    @property
    def cores(self) -> tuple[Objective, ...]:
        return self.inner.cores

    def __str__(self) -> str:
        return f"{self.wrapper.name}({', '.join([str(self.inner), *(f'{k}={v!r}' for k, v in self.own.items())])})"

    @property
    def options(self) -> dict[str, Any]:
        return self.wrapper.options | dict(self.own) | self.inner.options

    def with_options(self, options: Mapping[str, Any]) -> "Wrapped":
        own = {name: value for name, value in options.items() if name in self.wrapper.options}
        checked = self.wrapper.check(dict(self.own) | own)
        inner = self.inner.with_options({name: value for name, value in options.items() if name not in own})
        return dataclasses.replace(self, inner=inner, own={name: checked[name] for name in (*self.own, *own)})

    def loss(self, responses: Responses, **options: Any) -> Float[Array, "B"]:
        """The per-prompt losses."""
        changed = self.with_options(options)
        return changed._wrapped(changed.inner.loss, responses)

    def at_init(self, responses: Responses, **options: Any) -> Float[Array, "B"]:
        """The same when policy == reference."""
        changed = self.with_options(options)
        return changed._wrapped(changed.inner.at_init, responses)

    def initial_carried(self) -> dict[str, Any]:
        """What the objective carries."""
        return self.inner.initial_carried()

    def update_carried(self, responses: Responses) -> dict[str, Any]:
        """The same after a step, from the responses that the wrapper shows the objective."""
        updated: dict[str, Any] = {}

        def loss(shown: Responses) -> Float[Array, "B"]:
            updated.update(self.inner.update_carried(shown))
            return self.inner.loss(shown)

        if self.initial_carried():
            self._wrapped(loss, responses)
        return updated

    def _wrapped(self, loss: Callable[[Responses], Float[Array, "B"]], responses: Responses) -> Float[Array, "B"]:
        own = self.wrapper.options | dict(self.own)
        return self.wrapper.apply(Inner(loss, self.inner.valid_prompts), responses, **own)


def wrapper(**facts: Any) -> Callable[[Callable[..., Any]], Wrapper]:
    """A decorator that makes a wrapper of a function, found by its name."""

    def decorate(function: Callable[..., Any]) -> Wrapper:
        WRAPPERS[function.__name__] = Wrapper(function, **facts)
        return WRAPPERS[function.__name__]

    return decorate


def _of_pairs(objective: Objective) -> str:
    if objective.requires.group_size != 2:
        return "it compares no pairs"
    if objective.coupled:
        return "its pairs depend on each other"
    if objective.initial_carried():
        return "it carries numbers from step to step, and would see a pair more than once"
    return ""


def _has_label(objective: Objective) -> str:
    """Whether which response is the chosen one is all that grades a pair."""
    others = sorted((objective.requires.inputs | objective.requires.optional) - _OF_RESPONSES)
    return _of_pairs(objective) or (f"{others[0]} belongs to the label, and says which way it goes" if others else "")


def _swapped(r: Responses) -> Responses:
    """Rejected and chosen in each other's place."""
    return dataclasses.replace(r, **{name: x[:, ::-1] for name, x in r.arrays().items() if x.ndim > 1})


@wrapper(fits=_has_label)
def smooth(inner: Inner, r: Responses, *, rate: BelowHalf = 0.1) -> Float[Array, "B"]:
    """Label smoothing: (1 - e) L(w, l) + e L(l, w), e = `rate`.

    Source: as cDPO (E. Mitchell, cdpo.pdf, equation 3) for any loss of pairs; TRL's and PaddleNLP's label_smoothing of
        SimPO and CPO. `smooth(dpo)` is `cdpo`.

    The whole loss is smoothed: where it holds the likelihood of the chosen response, make that a term of its own, as in
    smooth(cpo(alpha=0.0)) + sft.
    """
    return (1 - rate) * inner.loss(r) + rate * inner.loss(_swapped(r))


@wrapper(fits=_has_label)
def unflip(inner: Inner, r: Responses, *, rate: BelowHalf = 0.1) -> Float[Array, "B"]:
    """Flip correction: [(1 - e) L(w, l) - e L(l, w)] / (1 - 2e), e = `rate`.

    Source: arXiv 2403.00409, section 3.1, for any loss of pairs: its expectation under labels flipped with rate e is
        the loss under clean ones. `unflip(dpo)` is `rdpo`.
    """
    return ((1 - rate) * inner.loss(r) - rate * inner.loss(_swapped(r))) / (1 - 2 * rate)


def _no_pair_numbers(objective: Objective) -> str:
    read = sorted(objective.requires.inputs & {*PAIR_NUMBERS})
    return _of_pairs(objective) or (f"{read[0]} is of one pair, and a ranking has many" if read else "")


@wrapper(
    fits=_no_pair_numbers,
    requires=lambda own: dataclasses.replace(
        own, group_size=None, min_responses=2, inputs=own.inputs | {"target"}, reads="scores"
    ),
)
def all_pairs(
    inner: Inner,
    r: Responses,
    *,
    pick: Literal["all", "best", "adjacent"] = "all",
    apart: NonNegative = 0.0,
    reduce: Literal["mean", "sum"] = "mean",
) -> Float[Array, "B"]:
    """All pairs of a ranking: the mean of L over all pairs of a prompt's responses with target_w > target_l.

    Source: the pairwise reading of rankings, arXiv 2305.10425, section 3.2, and 2402.01878, its equation for DPO. On
        K = 2 it is L itself.

    A pair is two indices into the prompt's responses, which are scored once. `pick`: "best", those with the highest
    target against all others; "adjacent", neighbours in the ranking, with no target between theirs. `apart`: target_w -
    target_l is at least this. `reduce`: "sum", so that a prompt counts by its number of pairs. Equal targets make no
    pair, and a prompt without one has loss 0.
    """
    r = r.masked(min_responses=2)
    k = r.shape[1]
    better, worse = (jnp.array(x) for x in zip(*((i, j) for i in range(k) for j in range(k) if i != j), strict=True))
    chosen = _picked(r, pick, apart)[:, better, worse].reshape(-1)
    both = jnp.stack([better, worse], axis=1)  # [n, 2]
    wide = lambda x: x[:, both].reshape(-1, 2, *x.shape[2:]) if x.ndim > 1 else jnp.repeat(x, len(better))
    arrays: dict[str, Any] = {name: wide(x) for name, x in r.arrays().items()}
    pairs = dataclasses.replace(r, **arrays)
    pairs = dataclasses.replace(pairs, valid=jnp.broadcast_to(chosen[:, None], (len(chosen), 2)))
    losses, counts = (x.reshape(-1, len(better)).sum(axis=1) for x in (inner.loss(pairs), chosen))
    return losses if reduce == "sum" else losses / jnp.maximum(counts, 1)


def _picked(r: Responses, pick: str, apart: float) -> Bool[Array, "B K K"]:
    """[w, l]: whether responses w and l are a pair. `r` is masked."""
    there, target = r.valid_slots(), r.target
    apart_by = target[:, :, None] - target[:, None, :]
    ordered = there[:, :, None] & there[:, None, :] & (apart_by > 0)
    if pick == "best":
        best = target >= jnp.max(jnp.where(there, target, -jnp.inf), axis=1, keepdims=True)
        return ordered & best[:, :, None] & (apart_by >= apart)
    if pick == "adjacent":
        between = ordered[:, :, None, :] & ordered.swapaxes(1, 2)[:, None, :, :]  # [w, l, m]: w above m above l
        ordered &= ~between.any(axis=-1)
    return ordered & (apart_by >= apart)


def _reads(objective: Objective, *fields: str) -> str:
    read = sorted((objective.requires.inputs | objective.requires.optional) & {*fields})
    return f"it reads {read[0]}, which would stay as it is" if read else ""


def _of_sums(objective: Objective) -> str:
    others = ("length", "features", "kl", "log_sum_p2", "token_logp", "token_kl", "baseline_logp", "auxiliary_logp")
    return _reads(objective, *others)


@wrapper(fits=_of_sums, requires=lambda own: dataclasses.replace(own, inputs=own.inputs | {"length"}))
def per_token(inner: Inner, r: Responses) -> Float[Array, "B"]:
    """Length normalisation: L of logp / n and reference_logp / n, n the response's tokens.

    Source: arXiv 2411.15124 (Tulu 3), equation 6, for any loss of sums: `per_token(dpo)` is `dpo_norm`.
    """
    n = jnp.maximum(r.length, 1)
    means = {name: x / n for name in ("logp", "reference_logp") if (x := getattr(r, name)) is not None}
    return inner.loss(dataclasses.replace(r, **means))


def _of_log_ratios(objective: Objective) -> str:
    if "reference_logp" not in objective.requires.inputs:
        return "it reads no log-ratios to a reference"
    return _reads(objective, "kl", "log_sum_p2", "token_logp", "token_kl", "baseline_logp", "auxiliary_logp")


@wrapper(
    fits=_of_log_ratios,
    requires=lambda own: dataclasses.replace(own, inputs=own.inputs | {"length", "token_logp", "token_reference_logp"}),
)
def clip_tokens(inner: Inner, r: Responses, *, low: NonNegative = 0.5, high: NonNegative = 0.5) -> Float[Array, "B"]:
    """Clipped tokens: L with every token's log-ratio a_t held in [-low, high], nats, before they are summed.

    Source: the clipping of token ratios in HALOs' humanline variants of DPO and KTO, by its idea; bounds are ours.

    A token beyond a bound has no gradient.
    """
    there = jnp.arange(r.token_logp.shape[-1])[None, None] < r.length[..., None]
    ratios = jnp.where(there, r.token_logp - r.token_reference_logp, 0)
    return inner.loss(dataclasses.replace(r, logp=r.reference_logp + jnp.clip(ratios, -low, high).sum(axis=-1)))


@wrapper(coupled=True)
def log_mean_exp(inner: Inner, r: Responses, *, temperature: Positive = 1.0) -> Float[Array, "B"]:
    """Distributional robustness: -b log mean over the batch of exp(-L / b), b = `temperature`, for every prompt.

    Source: arXiv 2407.07880 (Dr. DPO), whose beta' is b; `log_mean_exp(dpo)`.

    Prompts with a large loss, which may be labelled wrongly, count less: each by exp(-L / b). As b grows it is the
    mean. The loss is one number of the global batch, so that it is coupled.
    """
    losses, counted = inner.loss(r), inner.valid_prompts(r)
    least = jax.lax.stop_gradient(jnp.min(jnp.where(counted, losses, jnp.inf)))  # whose exponential is 1
    mean = batch_mean(jnp.exp(-jnp.where(counted, losses - least, 0) / temperature), counted)
    return jnp.where(counted, least - temperature * jnp.log(jnp.where(mean > 0, mean, 1)), 0)
