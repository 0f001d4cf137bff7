"""The loss zoo: one pure function per objective, `(responses, **options) -> [B]` per-prompt losses.

prefjax.losses.dpo(Responses(logp=..., reference_logp=...), beta=0.1), or by name OBJECTIVES["dpo"].loss(...).
"""

from collections.abc import Callable

from jaxtyping import Array, Float

from prefjax.losses.objective import Carried, Objective, Sum
from prefjax.losses.registry import OBJECTIVES, for_pairs, for_rankings, for_singles, objective
from prefjax.losses.responses import Responses
from prefjax.losses.sums import COMPOSITIONS

__all__ = [
    "COMPOSITIONS",
    "OBJECTIVES",
    "Carried",
    "Objective",
    "Responses",
    "Sum",
    "for_pairs",
    "for_rankings",
    "for_singles",
    "objective",
]


def __getattr__(name: str) -> Callable[..., Float[Array, "B"]]:
    """The loss of an objective: `from prefjax.losses import dpo`."""
    if name.startswith("_") or name not in OBJECTIVES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return OBJECTIVES[name].apply


def __dir__() -> list[str]:
    return sorted({*__all__, *OBJECTIVES})
