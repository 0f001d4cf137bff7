"""The zoo by name. To add an objective: write its loss as one function, then add its entry here."""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from prefjax.losses.pairwise import cdpo, dpo, ipo, rdpo, rso_hinge, slic
from prefjax.losses.supervised import sft
from prefjax.losses.types import Objective, Responses
from prefjax.losses.unpaired import dro, dro_at_init, dro_p, dro_p_at_init, kto, kto_at_init


def _pairs_start_at(value: Callable[..., float]) -> Callable[..., Float[Array, "B"]]:
    """An `at_init` that is one number, `value(**options)`, for every pair that counts."""

    def at_init(r: Responses, **options) -> Float[Array, "B"]:
        return jnp.where(jnp.all(r.valid_slots(), axis=-1), value(**options), 0.0)

    return at_init


_log2 = _pairs_start_at(lambda **options: math.log(2))  # sp(0), whatever the options
_one = _pairs_start_at(lambda **options: 1.0)  # a unit margin not yet met
_REFERENCE = frozenset({"reference_logp"})

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("dpo", dpo, group_size=2, needs=_REFERENCE, at_init=_log2),
        Objective("cdpo", cdpo, group_size=2, needs=_REFERENCE, at_init=_log2),
        Objective("rdpo", rdpo, group_size=2, needs=_REFERENCE, at_init=_log2),
        Objective(
            "ipo",
            ipo,
            group_size=2,
            needs=_REFERENCE,
            at_init=_pairs_start_at(lambda tau=0.1, normalize="none": 1 / (4 * tau**2)),
        ),
        Objective("slic", slic, group_size=2, needs=frozenset(), optional=frozenset({"auxiliary_logp"})),
        Objective("rso_hinge", rso_hinge, group_size=2, needs=_REFERENCE, at_init=_one),
        Objective(
            "kto",
            kto,
            group_size=None,
            needs=_REFERENCE | {"target", "baseline_logp", "baseline_reference_logp"},
            reads="labels",
            coupled=True,
            at_init=kto_at_init,
        ),
        Objective(
            "dro", dro, group_size=None, needs=_REFERENCE | {"target", "value"}, reads="rewards", at_init=dro_at_init
        ),
        Objective(
            "dro_p",
            dro_p,
            group_size=None,
            needs=_REFERENCE | {"target"},
            reads="rewards",
            coupled=True,
            at_init=dro_p_at_init,
        ),
        Objective("sft", sft, group_size=None, needs=frozenset({"length"})),
    )
}
