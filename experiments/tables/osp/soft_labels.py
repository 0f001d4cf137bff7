"""OSP: labels that say how strong a preference is keep DPO from overfitting (arXiv 2405.14103).

COMMAND  python -m experiments.run osp.soft_labels
TIME     20 s on two CPU cores
RESULT   Trained on the probabilities of the labels the policy ends at the RLHF optimum; on one drawn label a pair far
         from it, the more so the smaller beta is; the share of five raters lies between.

PROTOCOL The enumerable policy: 64 prompts x 256 responses, log-linear in 32 features, gold reward of variance 1. 1,500
         pairs of reference samples. Labels: the Bradley-Terry probability, the share of 5 raters who draw from it, or 1
         rater. `prefjax.losses.soft_ce` with that as its target; Adam at 0.02, batch 64, 1,500 steps; 5 seeds, each a
         world, with the same pairs and batches for all. float64.
COLUMNS  RLHF optimum: 0. KL to it: KL(pi || ref exp(reward / beta) / Z). KL: to the reference. Nats.

TRY      --config.pairs=20000    more pairs: drawn labels average out
         --config.steps=300      stopping early is another remedy
         --config.raters=25      more raters are nearer to the probability
"""

import itertools
from collections.abc import Callable, Iterator

import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import enumerable, figures, sampled
from experiments.tables.enumerable import Pairs, World
from experiments.tables.harness import ORDER, Claim, Results, Row, Setting, Table
from prefjax.losses import objective

METRIC = "at the end"
BETAS = (0.1, 1.0)
LABELS = ("probability", "share of raters", "one rater")
TABLE = Table("The abstract's claim on overfitting", ("RLHF optimum", "KL to it", "KL"), 0.5, ORDER, float64=True)
SETTINGS = tuple(Setting({"labels": labels, "beta": beta}, METRIC) for labels in LABELS for beta in BETAS)
PROTOCOL = {
    **enumerable.SHAPE,
    "pairs": 1_500,
    "raters": 5,
    "learning_rate": 0.02,
    "batch_size": 64,
    "steps": 1_500,
    "num_seeds": 5,
}
SIZES = {
    "smoke": {"steps": 1_000, "num_seeds": 3},
    "long": {"num_seeds": 20},
    "paper": {},
}


def cells(config: ml_collections.ConfigDict) -> list[str]:
    return [str(beta) for beta in BETAS]


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """How far from the optimum each kind of label ends, at one beta."""
    beta, worlds = float(cell), enumerable.worlds(config)
    made = [_data(config, world, seed) for seed, world in enumerate(worlds)]
    runs = [[pairs] * len(LABELS) for pairs, _ in made]
    more = [[{"target_probability": target} for target in targets] for _, targets in made]
    thetas = sampled.fit_pairs(objective("soft_ce", beta=beta), worlds, runs, config, more)
    for (i, labels), (seed, world) in itertools.product(enumerate(LABELS), enumerate(worlds)):
        logp = enumerable.listed_policy(world, thetas[seed, i])
        if seed == 0:
            yield Row(f"{labels} {beta}", "RLHF optimum", METRIC, None, None, 0.0)
        values = {"KL to it": enumerable.optimum(world, beta), "KL": world.reference_logp}
        for col, other in values.items():
            yield Row(f"{labels} {beta}", col, METRIC, seed, config.steps, enumerable.kl(logp, other))


def _data(config: ml_collections.ConfigDict, world: World, seed: int) -> tuple[Pairs, tuple[np.ndarray, ...]]:
    """Pairs, and for every kind of label how much the first response is preferred [N]."""
    rng = np.random.default_rng([seed, 1])
    pairs = Pairs(*enumerable.draw(rng, world, config.pairs, 2))
    probability = enumerable.prefer_first(world, pairs)
    votes = rng.random((config.raters, config.pairs)) < probability
    return pairs, (probability, votes.mean(0), votes[0].astype(float))


def _beyond(better: str) -> Callable[[Results, Setting], float]:
    """Minus the lower end of the 95 % interval of how much farther from the optimum this row ends."""
    return lambda results, s: -results.lead(s.key, f"{better} {s.labels['beta']}", "KL to it", METRIC)[0]


CLAIMS = (
    Claim(
        "probabilities",
        "probabilities end nearer to the optimum than one rater (upper end of the 95 % interval of the difference)",
        lambda s: s.labels["labels"] == "probability",
        lambda results, s: results.lead(s.key, f"one rater {s.labels['beta']}", "KL to it", METRIC)[1],
        verdict=ORDER,
    ),
    Claim(
        "raters",
        "five raters end farther off than probabilities (minus the lower end of the 95 % interval)",
        lambda s: s.labels["labels"] == "share of raters",
        _beyond("probability"),
        verdict=ORDER,
    ),
    Claim(
        "one_rater",
        "one rater ends farther off than five (minus the lower end of the 95 % interval)",
        lambda s: s.labels["labels"] == "one rater",
        _beyond("share of raters"),
        verdict=ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """KL to the RLHF optimum at the end: probabilities near 0, one drawn label farthest, more so at beta = 0.1."""
    return figures.dots(results, SETTINGS, known="RLHF optimum", ours="KL to it")
