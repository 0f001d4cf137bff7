"""DPO, Figure 2 left: how much reward a loss attains at a given KL (arXiv 2305.18290).

COMMAND  python -m experiments.run dpo.frontier
TIME     1 min on two CPU cores
RESULT   At equal KL DPO attains 96 to 98 % of the gain in reward that is possible; other losses of pairs come as close:
         what differs is how far they go.

PROTOCOL The enumerable policy: 64 prompts x 256 responses, log-linear in 32 features, gold reward of variance 1. 4,000
         pairs of reference samples, Bradley-Terry labels; beta (IPO's tau, RSO's gamma) in {.05, .1, .5, 1, 5}; Adam at
         0.02, batch 64, 1,000 steps, seen every 100; 5 seeds, each a world, the same pairs and batches for all. At a
         given KL a loss has the best reward of its five paths, linear in sqrt(KL) between two points. float64.
COLUMNS  optimum: 1, the gain in reward of ref exp(reward / b) / Z at that KL. share: of that gain.

TRY      --config.pairs=500       few pairs: the frontier falls below
         --config.flip_rate=0.3   noisy labels
         --config.steps=300       small KL only
"""

from collections.abc import Iterator

import matplotlib.figure
import ml_collections
import numpy as np
import scipy.optimize

from experiments.tables import enumerable, figures, sampled
from experiments.tables.enumerable import World
from experiments.tables.harness import NOT_REPRODUCED, ORDER, Claim, Results, Row, Setting, Table
from prefjax.losses import objective

METRIC = "share of the gain"
STRENGTH = {"dpo": "beta", "ipo": "tau", "rso_hinge": "gamma"}
BETAS = (0.05, 0.1, 0.5, 1.0, 5.0)
LEVELS = {
    "dpo": (0.5, 1.0, 2.0, 4.0),
    "ipo": (0.5, 1.0, 2.0),
    "rso_hinge": (0.5, 1.0, 2.0, 4.0),
}  # nats; IPO goes no farther
MISSED = 2.0  # where DPO stays below its bound
POINTS = 10
TABLE = Table("Figure 2, left", ("optimum", "share"), 1.0, ORDER, float64=True)
SETTINGS = tuple(Setting({"loss": loss, "KL": level}, METRIC) for loss in STRENGTH for level in LEVELS[loss])
PROTOCOL = {
    **enumerable.SHAPE,
    "pairs": 4_000,
    "flip_rate": 0.0,
    "learning_rate": 0.02,
    "batch_size": 64,
    "steps": 1_000,
    "num_seeds": 5,
}
SIZES = {"smoke": {"prompts": 16, "num_seeds": 2}, "long": {"num_seeds": 20}, "paper": {}}


def cells(config: ml_collections.ConfigDict) -> list[str]:
    return list(STRENGTH)


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """The share of the possible gain in reward at every level of KL that one loss attains."""
    worlds = enumerable.worlds(config)
    runs = [[pairs] * len(BETAS) for pairs in enumerable.drawn_pairs(config, worlds)]
    options = {STRENGTH[cell]: BETAS}
    paths = sampled.fit_pair_paths(objective(cell), worlds, runs, config, POINTS, options=options)
    for level in LEVELS[cell]:
        yield Row(f"{cell} {level}", "optimum", METRIC, None, None, 1.0)
        for seed, world in enumerate(worlds):
            best = max(_reward_at(world, path, level) for path in paths[seed])
            start = enumerable.mean_reward(world, world.reference_logp)
            share = (best - start) / (_best_reward(world, level) - start)
            yield Row(f"{cell} {level}", "share", METRIC, seed, config.steps, share)


def _reward_at(world: World, path: np.ndarray, level: float) -> float:
    """The reward where a path first has this KL; minus infinity where it never does."""
    logps = [enumerable.listed_policy(world, theta) for theta in (np.zeros_like(path[0]), *path)]
    far = np.sqrt([max(0.0, enumerable.kl(logp, world.reference_logp)) for logp in logps])
    reward = [enumerable.mean_reward(world, logp) for logp in logps]
    beyond = np.flatnonzero(far >= np.sqrt(level))
    if not len(beyond):
        return -np.inf
    at = slice(beyond[0] - 1, beyond[0] + 1)
    return float(np.interp(np.sqrt(level), far[at], reward[at]))


def _best_reward(world: World, level: float) -> float:
    """The most reward at this KL: of ref exp(reward / b) / Z, b such that its KL is the level."""
    tilted = lambda log_b: enumerable.optimum(world, np.exp(log_b))
    gap = lambda log_b: enumerable.kl(tilted(log_b), world.reference_logp) - level
    return enumerable.mean_reward(world, tilted(scipy.optimize.brentq(gap, np.log(0.005), np.log(100.0))))


CLAIMS = (
    Claim(
        "dpo",
        "DPO attains at least 97 % of the gain that is possible (0.97 minus its share)",
        lambda s: s.labels["loss"] == "dpo" and s.labels["KL"] != MISSED,
        lambda results, s: 0.97 - results.mean(s.key, "share", METRIC),
        verdict=ORDER,
    ),
    Claim(
        "dpo_missed",
        "of the gain that is possible DPO attains less than the 97 % that were asked for, though more than 93 %: "
        "this KL lies beyond where beta = 0.5 can go, so its best path is one that passes on the way to far more (0.93 "
        "minus the share)",
        lambda s: s.labels["loss"] == "dpo" and s.labels["KL"] == MISSED,
        lambda results, s: 0.93 - results.mean(s.key, "share", METRIC),
        verdict=NOT_REPRODUCED,
    ),
    Claim(
        "others",
        "the other losses attain at least 80 % of it (0.8 minus the share)",
        lambda s: s.labels["loss"] != "dpo",
        lambda results, s: 0.8 - results.mean(s.key, "share", METRIC),
        verdict=ORDER,
    ),
    Claim(
        "no_more_than_possible",
        "no loss attains more than is possible, within 0.005 for the interpolation",
        lambda s: True,
        lambda results, s: float(results.final(s.key, "share", METRIC).max()) - 1.005,
        verdict=ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """The share of the possible gain in reward that every loss attains at four levels of KL, all near 1."""
    return figures.dots(results, SETTINGS, known="optimum", ours="share")
