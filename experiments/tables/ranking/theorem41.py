"""Ranking accuracy, Theorem 4.1: the DPO loss below which a policy ranks a pair rightly (arXiv 2405.19534, section 4).

COMMAND  python -m experiments.run ranking.theorem41
TIME     10 s on two CPU cores
RESULT   A pair that the reference ranks wrongly by c nats turns at a loss of -log sigma(beta c), far below log 2 where
         c is large; on every pair of every policy "ranked rightly" and "loss at most that" are the same.

PROTOCOL "loss at the turn": `prefjax.losses.dpo` of a pair to which the policy gives equal log-probs, where the
         reference prefers the rejected response by c nats. "agreement": the enumerable policy (64 prompts x 256
         responses), pairs with Bradley-Terry labels, 50 policies from the reference to far beyond DPO's optimum: the
         share of pairs on which both sides of the theorem say the same. float64.
COLUMNS  theorem: -log sigma(beta c), and agreement 1. ours: the loss itself, and the share measured.

TRY      --config.pairs=100000      more chances to disagree
         --config.policies=500      more policies
         --config.prompts=256       another world
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import enumerable, figures
from experiments.tables.harness import EXACT, Claim, Results, Row, Setting, Table, away_from, by_column
from prefjax.contrib.ranking import ranked_rightly, threshold_loss
from prefjax.losses import Responses, objective

BETAS = (0.01, 0.1, 1.0)
GAPS = (0.0, 1.0, 5.0, 10.0, 30.0, 100.0)
TABLE = Table("Theorem 4.1", ("theorem", "ours"), 0.2, EXACT, float64=True)
SETTINGS = (
    *(Setting({"what": "loss at the turn", "beta": 0.1, "c": c}, "loss", "theorem41") for c in GAPS),
    *(Setting({"what": "agreement", "beta": beta, "c": "any"}, "share of pairs", "theorem41") for beta in BETAS),
)
PROTOCOL = {**enumerable.SHAPE, "pairs": 4_000, "policies": 50}
SIZES = {
    "smoke": {"prompts": 8, "responses": 32, "width": 8, "pairs": 500, "policies": 10},
    "long": {"pairs": 40_000, "policies": 500},
    "paper": {},
}


def cells(config: ml_collections.ConfigDict) -> list[str]:
    return ["loss at the turn", "agreement"]


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    if cell == "loss at the turn":
        reference = jnp.array([(0.0, c) for c in GAPS])
        losses = objective("dpo", beta=0.1).loss(Responses(logp=jnp.zeros_like(reference), reference_logp=reference))
        for c, ours in zip(GAPS, losses, strict=True):
            known = -np.log(1 / (1 + np.exp(-0.1 * c)))
            yield from by_column(f"{cell} 0.1 {c}", "loss", {"theorem": known, "ours": ours})
        return
    rng = np.random.default_rng(1)
    world = enumerable.world_of(config)
    pairs = enumerable.draw_pairs(rng, world, config.pairs)
    at = pairs.prompt[:, None], pairs.response
    thetas = np.linspace(0.0, 20.0, config.policies)[:, None] * rng.normal(size=(config.policies, config.width))
    logps = np.stack([enumerable.listed_policy(world, theta)[at] for theta in thetas])
    reference = world.reference_logp[at]
    for beta in BETAS:
        dpo = objective("dpo", beta=beta)
        loss = jax.jit(lambda logp, dpo=dpo: dpo.loss(Responses(logp=logp, reference_logp=jnp.asarray(reference))))
        below = np.stack([np.asarray(loss(logp)) <= threshold_loss(reference, beta) for logp in logps])
        right = np.stack([ranked_rightly(logp) for logp in logps])
        # Where both responses are one, both sides hold with equality: rounding may say either.
        apart = pairs.response[:, 0] != pairs.response[:, 1]
        key = f"agreement {beta} any"
        yield from by_column(key, "share of pairs", {"theorem": 1.0, "ours": (below == right)[:, apart].mean()})
        yield Row(key, "ours", "share ranked rightly", None, None, float(right[:, apart].mean()))


CLAIMS = (
    Claim(
        "threshold",
        "a pair turns at the loss -log sigma(beta c)",
        lambda s: s.metric == "loss",
        away_from("theorem"),
        1e-12,
    ),
    Claim(
        "agreement",
        "a pair is ranked rightly if and only if its loss is at most that: on every pair of every policy",
        lambda s: s.metric == "share of pairs",
        away_from("theorem"),
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """The loss at which a pair turns, from log 2 at c = 0 to nearly nothing at c = 100; and the share of pairs on which
    both sides of the theorem agree, 1 for every beta. Ours on the theorem's."""
    return figures.dots(results, SETTINGS, known="theorem", ours="ours")
