"""An objective: a pure loss, what it requires, and what is known of it before anything is trained."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from prefjax.losses.reducers import of_groups, of_pairs, pairs
from prefjax.losses.responses import Responses
from prefjax.registry import Entry
from prefjax.requirements import Requirements

# Per prompt, or per response where responses are judged alone; or just a number.
Start = Callable[..., Float[Array, "..."] | float] | float


@dataclasses.dataclass(frozen=True)
class Objective(Entry):
    """One entry of the zoo. `apply` is its loss: (responses, **options) -> [B] per-prompt losses; no reduction, no I/O,
    no state. The keyword-only parameters are its options: Python numbers or strings, constants under jit.

    requires  what has to be there to compute it
    coupled   True when a per-prompt loss depends on other prompts of the batch (a batch statistic)
    start     (responses, **options), all of them filled in -> the loss when policy == reference (of a reward model:
              when all rewards are 0) from a masked batch; None when it depends on the model
    given     options that were given; the others have their defaults
    """

    requires: Requirements = Requirements()
    coupled: bool = False
    start: Start | None = None
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

    def valid_prompts(self, responses: Responses) -> Bool[Array, "B"]:
        """The prompts that count: with all K slots valid where `group_size` fixes K, else with enough of them."""
        least = self.requires.group_size or self.requires.min_responses
        return jnp.sum(responses.valid_slots(), axis=-1) >= least
