"""Ranking accuracy, Corollary 3.3: how well the ideal policy ranks, given its reference (arXiv 2405.19534, section 3).

COMMAND  python -m experiments.run ranking.idealised
TIME     10 s on two CPU cores
RESULT   The policy that minimises the loss ranks exactly the pairs rightly that the corollary says. With a small beta
         nearly all; with a large one it ranks like its reference, however clearly raters agree.

PROTOCOL The enumerable policy (64 prompts x 256 responses), pairs with Bradley-Terry labels; alpha of the raters prefer
         the chosen response of every pair. Every pair's margin is free (a table, not a model) and minimises
         `prefjax.losses.soft_ce` with P = alpha, where its gradient changes sign. float64.
COLUMNS  corollary: mean of [log ref(w) / ref(l) + log(alpha / (1 - alpha)) / beta > 0]. ours: the share of pairs that
         the minimiser ranks rightly.

TRY      --config.spread=3.0        a sharper reference: its mistakes are harder to turn
         --config.pairs=20000       the same shares to another digit
         --config.responses=32      fewer responses
"""

import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import bandit, enumerable, figures
from experiments.tables.harness import EXACT, ORDER, Claim, Results, Row, Setting, Table, away_from, by_column
from prefjax.contrib.ranking import ideally_ranked, ranked_rightly
from prefjax.losses import objective

BETAS = (0.01, 0.1, 1.0, 5.0)
ALPHAS = (0.6, 0.7, 0.8, 0.9, 0.99)
METRIC = "ranking accuracy"
TABLE = Table("Corollary 3.3, behind Table 1", ("corollary", "ours"), 0.2, EXACT, float64=True)
SETTINGS = tuple(
    Setting({"beta": beta, "alpha": alpha}, METRIC, "corollary33") for beta, alpha in itertools.product(BETAS, ALPHAS)
)
PROTOCOL = {**enumerable.SHAPE, "spread": 5.0, "pairs": 2_000}
SIZES = {"smoke": {"prompts": 8, "responses": 32, "width": 8, "pairs": 400}, "long": {"pairs": 50_000}, "paper": {}}


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    world = enumerable.world_of(config)
    pairs = enumerable.draw_pairs(np.random.default_rng(1), world, config.pairs)
    # Log-probs of texts differ by many nats, those of 256 listed responses by few.
    logp = config.spread * world.reference_logp[pairs.prompt[:, None], pairs.response]
    reference = logp[pairs.response[:, 0] != pairs.response[:, 1]]
    soft = objective("soft_ce")

    @functools.partial(jax.jit, static_argnames="beta")
    def slope(margin, alpha, *, beta):
        r = lambda margin: bandit.pair(margin).replace(target_probability=jnp.reshape(alpha, (1,)))
        return jax.grad(lambda margin: soft.loss(r(margin), beta=beta)[0])(margin)

    yield Row("reference", "ours", METRIC, None, None, float(ranked_rightly(reference).mean()))
    for beta, alpha in itertools.product(BETAS, ALPHAS):
        # The margin over the reference that minimises the loss is the same for all pairs.
        margin = bandit.crossing(lambda h, beta=beta, alpha=alpha: float(slope(h, alpha, beta=beta)), 1_000.0)
        policy = reference + np.array([margin, 0.0])[None]
        known = ideally_ranked(reference, np.full(len(reference), alpha), beta).mean()
        yield from by_column(f"{beta} {alpha}", METRIC, {"corollary": known, "ours": ranked_rightly(policy).mean()})
        yield Row(f"{beta} {alpha}", "ours", "margin", None, None, margin)


def _over_reference(results: Results, setting: Setting) -> float:
    """How much less the accuracy is than with the next larger beta: more regularised is more like the reference."""
    larger = BETAS[BETAS.index(setting.labels["beta"]) + 1]
    there = results.mean(f"{larger} {setting.labels['alpha']}", "ours", METRIC)
    return there - results.mean(setting.key, "ours", METRIC)


CLAIMS = (
    Claim(
        "corollary",
        "the minimiser ranks the share of pairs rightly that the corollary says",
        lambda s: True,
        away_from("corollary"),
    ),
    Claim(
        "regularised",
        "the smaller beta, the better it ranks (accuracy at the next larger beta minus here)",
        lambda s: s.labels["beta"] < BETAS[-1],
        _over_reference,
        verdict=ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Ranking accuracy of the ideal policy for every beta and share of raters: near 1 at beta = 0.01, near the
    reference's at beta = 5; ours on the corollary's."""
    return figures.dots(results, SETTINGS, known="corollary", ours="ours")
