"""The zoo by name, and the decorators that put a loss into it with its facts beside it.

To add an objective, write its loss in a module of this folder, or in a notebook, under `for_pairs`, `for_singles` or
`for_rankings`. Nothing else lists it.
"""

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any

from prefjax.losses.objective import Objective, Start
from prefjax.registry import F, FunctionRegistry
from prefjax.requirements import Requirements

LOG2 = math.log(2)  # sp(0), the logistic loss of a margin of 0
REFERENCE = frozenset({"reference_logp"})
TARGET = REFERENCE | {"target"}
LENGTH = frozenset({"length"})
TOKENS = LENGTH | {"token_logp", "token_reference_logp"}
FEATURES = frozenset({"features"})

OBJECTIVES: FunctionRegistry[Objective] = FunctionRegistry(
    Objective, kind="objective", package=__package__, page="docs/objectives.md"
)


def for_pairs(
    inputs: Iterable[str] = (),
    *,
    start: Start | None = None,
    optional: Iterable[str] = (),
    reads: str = "nothing",
    coupled: bool = False,
) -> Callable[[F], F]:
    """Registers a loss of pairs: chosen is response 0, rejected is response 1.

    Args:
      inputs: fields of `Responses` that it reads besides logp and valid.
      start: see `Objective`.
      optional, reads: see `Requirements`.
      coupled: whether a pair's loss depends on other pairs of the batch.
    """
    requires = Requirements(2, inputs=frozenset(inputs), optional=frozenset(optional), reads=reads)
    return OBJECTIVES.register(requires=requires, start=start, coupled=coupled)


def for_singles(
    inputs: Iterable[str] = (),
    *,
    start: Start | None = None,
    reads: str = "nothing",
    coupled: bool = False,
    imitates: bool = False,
) -> Callable[[F], F]:
    """Registers a loss that judges every response alone; a prompt's loss is the mean. Arguments as of `for_pairs`."""
    requires = Requirements(inputs=frozenset(inputs), reads=reads, imitates=imitates)
    return OBJECTIVES.register(requires=requires, start=start, coupled=coupled)


def for_rankings(
    inputs: Iterable[str] = (),
    *,
    start: Start | None = None,
    optional: Iterable[str] = (),
    reads: str = "nothing",
    coupled: bool = False,
) -> Callable[[F], F]:
    """Registers a loss that compares a prompt's responses, two or more. Arguments as of `for_pairs`."""
    requires = Requirements(min_responses=2, inputs=frozenset(inputs), optional=frozenset(optional), reads=reads)
    return OBJECTIVES.register(requires=requires, start=start, coupled=coupled)


def objective(which: str | Callable[..., Any] | Objective, **options: Any) -> Objective:
    """An objective with its options: objective("dpo", beta=2.0).

    Args:
      which: a name of the zoo; "module:function", a registered loss that can be imported from here; the loss itself;
        or an objective.

    Raises:
      ValueError: there is no such objective (with the names near it), or it does not take an option.
    """
    if isinstance(which, str) and ":" in which:
        module, _, name = which.partition(":")
        try:
            which = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"objective={which!r}: write module:function, importable from here ({error})") from error
    if isinstance(which, str):
        found = OBJECTIVES.find(which)
    elif isinstance(which, Objective):
        found = which
    else:
        registered = OBJECTIVES.get(getattr(which, "__name__", ""))
        if registered is None or registered.apply is not which:
            raise ValueError(
                f"{which!r} is no objective yet: put @for_pairs(...), @for_singles(...) or @for_rankings(...) of "
                "prefjax.losses above it, with the inputs that it reads"
            )
        found = registered
    return found.with_options(options)
