"""The loss zoo: one pure function per objective, `(responses, **options) -> [B]` per-prompt losses.

prefjax.losses.dpo(Responses(logp=..., reference_logp=...), beta=0.1), or by name OBJECTIVES["dpo"].loss(...).
"""

from prefjax.losses.graded import cdpo, margin_dpo, mmpo, odpo, rdpo, reward_rpo, soft_ce
from prefjax.losses.listwise import dpo_rw, exo_rw, infonca, lipo_lambda, nca, pl_dpo, slic_list
from prefjax.losses.pairwise import (
    discopop,
    dpo,
    dpo_norm,
    dpop,
    gpo,
    hypo,
    ipo,
    r_dpo,
    rationale_dpo,
    rpo_nll,
    rso_hinge,
    rso_sigmoid,
    wpo,
)
from prefjax.losses.reference_free import alphapo, cpo, orpo, rso_hinge_raw, simpo, slic
from prefjax.losses.registry import OBJECTIVES
from prefjax.losses.reward_models import bt, bt_margin, bt_ranking, gpm, pl_ranking
from prefjax.losses.rewarded import dro, dro_p, gpo_score, ulma_continuous
from prefjax.losses.sided import apo_down, apo_zero, bco_pair, cal_dpo, exo_pair, fdpo, fdpo_js, nca_pair, sppo
from prefjax.losses.supervised import sft
from prefjax.losses.tokenwise import ld_dpo, sampo, sparsepo, target_dpo, tdpo1, tdpo2, two_d_dpo
from prefjax.losses.transport import aot, aot_unpaired
from prefjax.losses.types import Objective, Responses
from prefjax.losses.unpaired import apo_zero_unpaired, bco, kto, pmpo, ulma, ulma_binary

__all__ = [
    "OBJECTIVES",
    "Objective",
    "Responses",
    "alphapo",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "bco_pair",
    "bt",
    "bt_margin",
    "bt_ranking",
    "cal_dpo",
    "cdpo",
    "cpo",
    "discopop",
    "dpo",
    "dpo_norm",
    "dpo_rw",
    "dpop",
    "dro",
    "dro_p",
    "exo_pair",
    "exo_rw",
    "fdpo",
    "fdpo_js",
    "gpm",
    "gpo",
    "gpo_score",
    "hypo",
    "infonca",
    "ipo",
    "kto",
    "ld_dpo",
    "lipo_lambda",
    "margin_dpo",
    "mmpo",
    "nca",
    "nca_pair",
    "odpo",
    "orpo",
    "pl_dpo",
    "pl_ranking",
    "pmpo",
    "r_dpo",
    "rationale_dpo",
    "rdpo",
    "reward_rpo",
    "rpo_nll",
    "rso_hinge",
    "rso_hinge_raw",
    "rso_sigmoid",
    "sampo",
    "sft",
    "simpo",
    "slic",
    "slic_list",
    "soft_ce",
    "sparsepo",
    "sppo",
    "target_dpo",
    "tdpo1",
    "tdpo2",
    "two_d_dpo",
    "ulma",
    "ulma_binary",
    "ulma_continuous",
    "wpo",
]
