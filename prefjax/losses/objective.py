"""An objective: a pure loss, what it requires, and what is known of it before anything is trained."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prefjax.losses.reducers import of_groups, of_pairs, pairs
from prefjax.losses.responses import Responses
from prefjax.registry import Entry
from prefjax.requirements import Requirements

# Per prompt, or per response where responses are judged alone; or just a number.
Start = Callable[..., Float[Array, "..."] | float] | float


class Carried(NamedTuple):
    """Numbers that an objective carries from step to step, as a running mean over batches.

    initial  before the first step: by name, or a function of the options that gives them; {}: nothing is carried
    update   (responses, **options) -> the same after a step. The responses are those of the global batch, before the
             update of the parameters, and `responses.carried` is what was carried into it; no gradient is taken.
    """

    initial: Callable[..., Mapping[str, float]] | Mapping[str, float]
    update: Callable[..., Mapping[str, Float[Array, ""]]]

    def at_first(self, options: Mapping[str, Any]) -> dict[str, float]:
        """What is carried into the first step."""
        return dict(self.initial(**options) if callable(self.initial) else self.initial)


@dataclasses.dataclass(frozen=True)
class Objective(Entry):
    """One entry of the zoo. `apply` is its loss: (responses, **options) -> [B] per-prompt losses; no reduction, no I/O,
    no state but what `carries` says. The keyword-only parameters are its options: Python numbers or strings, constants
    under jit.

    requires  what has to be there to compute it
    coupled   True when a per-prompt loss depends on other prompts of the batch (a batch statistic)
    start     (responses, **options), all of them filled in -> the loss when policy == reference (of a reward model:
              when all rewards are 0) from a masked batch; None when it depends on the model
    carries   what it carries from step to step, which the train state holds and `Responses.carried` brings
    given     options that were given; the others have their defaults
    """

    requires: Requirements = Requirements()
    coupled: bool = False
    start: Start | None = None
    carries: Carried | None = None
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """Names and values of all options: those given, and the defaults of the others."""
        return super().options | dict(self.given)

    def with_options(self, options: Mapping[str, Any]) -> "Objective":
        """The same objective with these options.

        Raises:
          ValueError: names an option that it does not take, or a value of the wrong type, and lists what it takes.
        """
        for name in options:
            if name not in self.options:
                takes = ", ".join(f"{known}={value!r}" for known, value in self.options.items()) or "none"
                raise ValueError(f"{self.name} takes no option {name!r}; its options and defaults: {takes}")
        values = self.check(self.options | dict(options))
        return dataclasses.replace(self, given={name: values[name] for name in (*self.given, *options)})

    @property
    def key(self) -> str:
        """The name where it has to be one word: of an option, or a metric."""
        return self.name

    @property
    def cores(self) -> "tuple[Objective, ...]":
        """The objectives of the zoo that it is made of, without what wraps them: itself."""
        return (self,)

    def __str__(self) -> str:
        """As `objective` reads it: dpo(beta=2.0), with the options that were given."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.given.items())
        return f"{self.name}({options})" if options else self.name

    def __mul__(self, weight: float | int) -> "Sum":
        return Sum(terms=keyed([(weight * one, term) for one, term in terms_of(self)]))

    __rmul__ = __mul__

    def __add__(self, other: "Objective") -> "Sum":
        if not isinstance(other, Objective):
            return NotImplemented
        return Sum(terms=keyed([*terms_of(self), *terms_of(other)]))

    def reader(self, field: str) -> str:
        """Whoever reads a field of `Responses`, or K responses, for messages: this objective, or a term of it."""
        return self.name

    def parts(self, responses: Responses) -> dict[str, Float[Array, "B"]]:
        """The losses of the terms of a sum by their names, without their weights; of no other objective."""
        return {}

    def initial_carried(self) -> dict[str, Any]:
        """What it carries into the first step, under its options; {} of an objective without state."""
        return {} if self.carries is None else self.carries.at_first(self.options)

    def update_carried(self, responses: Responses) -> dict[str, Any]:
        """What it carries on from a step of these responses, those of the global batch."""
        return dict(self.carries.update(responses, **self.options)) if self.initial_carried() else {}

    def loss(self, responses: Responses, **options: Any) -> Float[Array, "B"]:
        """The per-prompt losses, under the options given here or before."""
        return self.apply(responses, **(dict(self.given) | options))

    def at_init(self, responses: Responses, **options: Any) -> Float[Array, "B"]:
        """The per-prompt losses when policy == reference, in closed form; only where there is one (`start`)."""
        if self.start is None:
            raise ValueError(f"the loss of {self.name} when policy == reference depends on the model")
        requires, options = self.requires, self.options | options
        if requires.group_size == 2:
            r = pairs(responses, *requires.inputs & {"features"})
        else:
            r = responses.masked(min_responses=requires.min_responses)
        value = jnp.asarray(self.start(r, **options) if callable(self.start) else self.start, r.dtype)
        if requires.group_size is None and requires.min_responses == 1:
            return r.prompt_mean(jnp.broadcast_to(value, r.shape))
        value = jnp.broadcast_to(value, r.shape[:1])
        return of_pairs(r, value) if requires.group_size == 2 else of_groups(r, value)

    def check_inputs(self, responses: Responses) -> None:
        """Raises a ValueError that names a field the objective needs and the batch lacks, or a K it does not take."""
        requires = self.requires
        responses.require(
            *sorted(requires.inputs),
            group_size=requires.group_size,
            min_responses=requires.min_responses,
            objective=self.name,
        )
        if self.initial_carried():
            responses.require("carried", *requires.inputs & {"features"}, objective=self.name)

    def valid_prompts(self, responses: Responses) -> Bool[Array, "B"]:
        """The prompts that count: with all K slots valid where `group_size` fixes K, else with enough of them."""
        least = self.requires.group_size or self.requires.min_responses
        return jnp.sum(responses.valid_slots(), axis=-1) >= least


class Term(NamedTuple):
    """weight * objective."""

    weight: float | int
    objective: Objective


@dataclasses.dataclass(frozen=True)
class Sum(Objective):
    """A weighted sum of objectives over the same prompts: 0.8 * objective("dpo") + 0.2 * objective("bco_pair").

    It needs what all of its terms need, a prompt counts that counts for all of them, and it is coupled if one of them
    is. `options` are those of the terms: {"dpo": {"beta": 0.1}, ...}. A term that imitates (`sft`) sees of every prompt
    the one response that is worth it where others are compared: the chosen one of a pair, the highest target of a
    ranking, those labelled 1; it is 0 for a prompt without one. When policy == reference a term without a closed form
    is what it is on the batch, so the sum has one if any term has.

    terms  by the name of each objective, a second one of a name as name_2

    Raises:
      ValueError: a weight is not a finite number other than 0, or terms cannot share a batch, which and why.
    """

    apply: Callable[..., Any] = dataclasses.field(init=False, repr=False, compare=False)
    terms: Mapping[str, Term] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for key, (weight, _) in self.terms.items():
            # A weight of 0 is a term that is not there, and 0 times an infinite loss is no number.
            if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < abs(weight) < float("inf"):
                raise ValueError(f"the weight {weight!r} of {key} must be a finite number other than 0")
        facts: dict[str, Any] = {
            "apply": self.loss,
            "requires": _united(self.terms, self.name),
            "coupled": any(term.objective.coupled for term in self.terms.values()),
            "start": self.at_init if any(term.objective.start is not None for term in self.terms.values()) else None,
        }
        for name, value in facts.items():
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        return " + ".join(f"{weight!r}*{objective}" for weight, objective in self.terms.values())

    def __str__(self) -> str:
        return self.name

    @property
    def cores(self) -> tuple[Objective, ...]:
        """Those of all terms."""
        return tuple(core for term in self.terms.values() for core in term.objective.cores)

    @property
    def options(self) -> dict[str, Any]:
        """The options of every term by its name."""
        return {key: term.objective.options for key, term in self.terms.items()}

    def with_options(self, options: Mapping[str, Any]) -> "Sum":
        """The same sum with these options: {"dpo": {"beta": 2.0}}, or {"dpo.beta": 2.0}.

        Raises:
          ValueError: names a term that is not there, or an option that it does not take.
        """
        terms = dict(self.terms)
        for name, value in options.items():
            key, _, option = name.partition(".")
            given = {option: value} if option else value
            if key not in terms or not isinstance(given, Mapping):
                takes = ", ".join(f"{key}.{option}" for key, own in self.options.items() for option in own)
                raise ValueError(f"{self.name} takes no option {name}={value!r}; its options: {takes or 'none'}")
            terms[key] = Term(terms[key].weight, terms[key].objective.with_options(given))
        return dataclasses.replace(self, terms=terms)

    def reader(self, field: str) -> str:
        """The term that reads the field, and of which sum."""
        found = [term.objective for term in self.terms.values() if field in term.objective.requires.inputs]
        return f"{found[0].name}, a term of {self.name}," if found else self.name

    def parts(self, responses: Responses) -> dict[str, Float[Array, "B"]]:
        """The losses of the terms, without their weights."""
        return {key: term.objective.loss(self._seen_by(key, responses)) for key, term in self.terms.items()}

    def loss(self, responses: Responses, **options: Any) -> Float[Array, "B"]:
        """The sum of weight * loss, per prompt."""
        return self._added(self.with_options(options).parts(responses))

    def at_init(self, responses: Responses, **options: Any) -> Float[Array, "B"]:
        """The same when policy == reference."""
        starts = {}
        for key, term in self.with_options(options).terms.items():
            value = term.objective.loss if term.objective.start is None else term.objective.at_init
            starts[key] = value(self._seen_by(key, responses))
        return self._added(starts)

    def initial_carried(self) -> dict[str, Any]:
        """What every term carries that carries something, by its name."""
        carried = {key: term.objective.initial_carried() for key, term in self.terms.items()}
        return {key: own for key, own in carried.items() if own}

    def update_carried(self, responses: Responses) -> dict[str, Any]:
        """The same after a step of these responses."""
        seen = {key: self._seen_by(key, responses) for key in self.initial_carried()}
        return {key: self.terms[key].objective.update_carried(own) for key, own in seen.items()}

    def check_inputs(self, responses: Responses) -> None:
        """Raises a ValueError that names a term, and what it needs and the batch lacks."""
        for term in self.terms.values():
            term.objective.check_inputs(responses)

    def _added(self, parts: Mapping[str, Float[Array, "B"]]) -> Float[Array, "B"]:
        first, *others = (self.terms[key].weight * part for key, part in parts.items())
        return sum(others, first)

    def _seen_by(self, key: str, responses: Responses) -> Responses:
        term, requires = self.terms[key], self.requires
        r = responses.masked(whole_groups=requires.group_size == 2, min_responses=requires.min_responses)
        r = dataclasses.replace(r, carried=(r.carried or {}).get(key))
        if not term.objective.requires.imitates or requires.imitates:
            return r
        if requires.group_size == 2:
            return dataclasses.replace(r, valid=r.valid & (jnp.arange(2)[None] == 0))
        if requires.reads == "labels":
            return dataclasses.replace(r, valid=r.valid & (r.target > 0.5))
        best = jnp.argmax(jnp.where(r.valid, r.target, -jnp.inf), axis=-1)
        return dataclasses.replace(r, valid=r.valid & (jnp.arange(r.shape[1])[None] == best[:, None]))


def terms_of(objective: Objective) -> list[Term]:
    """The terms of a sum; of anything else it, with weight 1."""
    return list(objective.terms.values()) if type(objective) is Sum else [Term(1.0, objective)]


def keyed(terms: Sequence[tuple[float, Objective]]) -> dict[str, Term]:
    """By the name of each objective, a second one of a name as name_2."""
    keyed: dict[str, Term] = {}
    for weight, objective in terms:
        count = sum(term.objective.key == objective.key for term in keyed.values())
        keyed[f"{objective.key}_{count + 1}" if count else objective.key] = Term(weight, objective)
    return keyed


def _united(terms: Mapping[str, Term], name: str) -> Requirements:
    """What all terms need together. Raises ValueError for terms that cannot share a batch, naming them."""
    each = {key: term.objective.requires for key, term in terms.items()}
    heads = {own.reward_head: key for key, own in each.items()}
    if len(heads) > 1:
        raise ValueError(f"{name}: {heads[True]} trains a reward model and {heads[False]} a policy; sum one kind")
    reads = {own.reads: key for key, own in each.items() if own.reads != "nothing"}
    if "labels" in reads and (others := [kind for kind in reads if kind not in ("labels", "probabilities")]):
        other = others[0]
        raise ValueError(
            f"{name}: {reads['labels']} reads the targets as 1/0 labels and {reads[other]} as {other}; a batch holds "
            "one of them"
        )
    inputs = frozenset().union(*(own.inputs for own in each.values()))
    united = Requirements(
        group_size=max((own.group_size for own in each.values() if own.group_size), default=None),
        min_responses=max(own.min_responses for own in each.values()),
        inputs=inputs,
        optional=frozenset().union(*(own.optional for own in each.values())) - inputs,
        # From what is asked most of a number to what is asked least: the first serves all.
        reads=next((kind for kind in ("labels", "probabilities", "scores", "rewards") if kind in reads), "nothing"),
        imitates=all(own.imitates for own in each.values()),
    )
    ranked = united.reads != "nothing" and united.min_responses > 1
    told = united.group_size == 2 or united.reads == "labels" or ranked
    for key, own in each.items():
        if own.imitates and not (united.imitates or told):
            raise ValueError(
                f"{name}: {key} imitates the best response of a prompt, and no other term says which one that is: it "
                "takes a term of pairs, of labels, or of rankings"
            )
    return united
