"""The zoo by name, and the decorators that put a loss into it with its facts beside it.

To add an objective, write its loss in a module of this folder, or in a notebook, under `for_pairs`, `for_singles` or
`for_rankings`. Nothing else lists it.
"""

import ast
import importlib
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from prefjax.losses import sums
from prefjax.losses.objective import Carried, Objective, Start
from prefjax.losses.wrappers import WRAPPERS
from prefjax.registry import F, FunctionRegistry, written_options
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
    carries: Carried | None = None,
) -> Callable[[F], F]:
    """Registers a loss of pairs: chosen is response 0, rejected is response 1.

    Args:
      inputs: fields of `Responses` that it reads besides logp and valid.
      start: see `Objective`.
      optional, reads: see `Requirements`.
      coupled: whether a pair's loss depends on other pairs of the batch.
      carries: see `Carried`.
    """
    requires = Requirements(2, inputs=frozenset(inputs), optional=frozenset(optional), reads=reads)
    return OBJECTIVES.register(requires=requires, start=start, coupled=coupled, carries=carries)


def for_singles(
    inputs: Iterable[str] = (),
    *,
    start: Start | None = None,
    reads: str = "nothing",
    coupled: bool = False,
    imitates: bool = False,
    carries: Carried | None = None,
) -> Callable[[F], F]:
    """Registers a loss that judges every response alone; a prompt's loss is the mean. Arguments as of `for_pairs`."""
    requires = Requirements(inputs=frozenset(inputs), reads=reads, imitates=imitates)
    return OBJECTIVES.register(requires=requires, start=start, coupled=coupled, carries=carries)


def for_rankings(
    inputs: Iterable[str] = (),
    *,
    start: Start | None = None,
    optional: Iterable[str] = (),
    reads: str = "nothing",
    coupled: bool = False,
    min_responses: int = 2,
    carries: Carried | None = None,
) -> Callable[[F], F]:
    """Registers a loss that compares a prompt's responses, `min_responses` or more. Arguments as of `for_pairs`."""
    requires = Requirements(
        min_responses=min_responses, inputs=frozenset(inputs), optional=frozenset(optional), reads=reads
    )
    return OBJECTIVES.register(requires=requires, start=start, coupled=coupled, carries=carries)


def objective(which: str | Callable[..., Any] | Objective, **options: Any) -> Objective:
    """An objective with its options: objective("dpo", beta=2.0).

    Args:
      which: a name of the zoo; "module:function", a registered loss that can be imported from here; a weighted sum of
        these, "0.8*dpo + 0.2*bco_pair(beta=2.0) + sft", or the name of one, "mpo"; the least or the greatest of some,
        "max(dpo, 0.5*simpo)"; one of them under a wrapper, "smooth(simpo, rate=0.1)"; the loss itself; or an objective.
      options: of a sum those of its terms: dpo={"beta": 2.0}.

    Raises:
      ValueError: there is no such objective (with the names near it), it does not take an option, or its terms cannot
        share a batch.
    """
    if isinstance(which, str):
        found = _read(which)
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


def _read(text: str) -> Objective:
    """An objective, or a sum of them, from text."""
    text = sums.COMPOSITIONS[text].text if text in sums.COMPOSITIONS else text
    if not sums.is_sum(text):
        return _imported(text) if ":" in text else OBJECTIVES.find(text)

    def find(call: ast.expr) -> Objective:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in WRAPPERS:
            if len(call.args) != 1 or not isinstance(call.args[0], ast.Name | ast.Call):
                raise ValueError(f"{ast.unparse(call)!r}: write {call.func.id}(name, option=value, ...)")
            inner = sums.read(ast.unparse(call.args[0]), find)
            return WRAPPERS[call.func.id](inner, **written_options(call, ast.unparse(call)))
        found, options = OBJECTIVES.read(call, sums.FORM)
        return found.with_options(options)

    return sums.read(re.sub(r"[\w.]+:\w+", lambda match: _imported(match[0]).name, text), find)


def _imported(path: str) -> Objective:
    """The objective "module:function", which has a name once its module is imported."""
    module, _, name = path.partition(":")
    try:
        return objective(getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"objective={path!r}: write module:function, importable from here ({error})") from error
