"""The loss zoo: one pure function per objective, `(responses, **options) -> [B]` per-prompt losses.

prefjax.losses.dpo(Responses(logp=..., reference_logp=...), beta=0.1), or by name OBJECTIVES["dpo"].loss(...).
"""

from prefjax.losses.pairwise import cdpo, dpo, ipo, rdpo, rso_hinge, slic
from prefjax.losses.registry import OBJECTIVES
from prefjax.losses.supervised import sft
from prefjax.losses.types import Objective, Responses
from prefjax.losses.unpaired import dro, dro_p, kto

__all__ = [
    "OBJECTIVES",
    "Objective",
    "Responses",
    "cdpo",
    "dpo",
    "dro",
    "dro_p",
    "ipo",
    "kto",
    "rdpo",
    "rso_hinge",
    "sft",
    "slic",
]
