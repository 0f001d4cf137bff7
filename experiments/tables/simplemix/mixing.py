"""SimpleMix: pairs of one's own samples and pairs of another policy, mixed (arXiv 2505.02363).

COMMAND  python -m experiments.run simplemix.mixing
TIME     15 s on two CPU cores
RESULT   Not reproduced: mixtures win as often as either kind of pairs alone. The paper's gain is over several kinds of
         tasks; this world has one.

PROTOCOL The enumerable policy: 64 prompts x 256 responses, log-linear in 32 features, gold reward of variance 1. 2,000
         pairs with Bradley-Terry labels, a share of them of reference samples ("on-policy"), the others of a policy
         shifted along another direction (variance 1/4 of logits). DPO at beta = 0.1, Adam at 0.02, batch 64, 600 steps;
         5 seeds, each a world. float64.
COLUMNS  RLHF optimum: its win rate against the reference. win rate: at the end, exact sums. KL: to the reference, nats.

TRY      --config.shift=2.0     a policy farther away
         --config.pairs=400     few pairs, where their kind matters more
         --config.flip_rate=0.2 noisy labels
"""

from collections.abc import Iterator

import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import enumerable, figures, sampled
from experiments.tables.enumerable import Pairs, World
from experiments.tables.harness import NOT_REPRODUCED, ORDER, Claim, Results, Row, Setting, Table, by_column
from prefjax.losses import objective

METRIC = "at the end"
BETA = 0.1
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
TABLE = Table("The abstract's claim on mixtures", ("RLHF optimum", "win rate", "KL"), 0.4, NOT_REPRODUCED, True)
SETTINGS = tuple(Setting({"on-policy": share}, METRIC) for share in SHARES)
PROTOCOL = {
    **enumerable.SHAPE,
    "pairs": 2_000,
    "flip_rate": 0.0,
    "shift": 0.5,
    "learning_rate": 0.02,
    "batch_size": 64,
    "steps": 600,
    "num_seeds": 5,
}
SIZES = {"smoke": {"steps": 300, "num_seeds": 3}, "long": {"num_seeds": 20}, "paper": {}}


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """Win rate and KL at the end for every share of on-policy pairs."""
    worlds = enumerable.worlds(config)
    runs = [_data(config, world, seed) for seed, world in enumerate(worlds)]
    thetas = sampled.fit_pairs(objective("dpo", beta=BETA), worlds, runs, config)
    for i, share in enumerate(SHARES):
        for seed, world in enumerate(worlds):
            logp = enumerable.listed_policy(world, thetas[seed, i])
            best = enumerable.optimum(world, BETA)
            values = {
                "RLHF optimum": enumerable.win_rate(world, best, world.reference_logp),
                "win rate": enumerable.win_rate(world, logp, world.reference_logp),
                "KL": enumerable.kl(logp, world.reference_logp),
            }
            yield from by_column(str(share), METRIC, values, seed, config.steps)


def _data(config: ml_collections.ConfigDict, world: World, seed: int) -> list[Pairs]:
    """The pairs of every share: the first ones on-policy, the others not."""
    rng = np.random.default_rng([seed, 1])
    other = enumerable.shifted(rng, world, config.shift)
    on, off = (enumerable.draw_pairs(rng, w, config.pairs, config.flip_rate) for w in (world, other))

    def mixed(share):
        ours = np.arange(config.pairs) < share * config.pairs
        return Pairs(np.where(ours, on.prompt, off.prompt), np.where(ours[:, None], on.response, off.response))

    return [mixed(share) for share in SHARES]


def _above_ends(results: Results, s: Setting) -> float:
    """Upper end of the 95 % interval of how much more a mixture wins than the better of its parts, minus 0.01."""
    return min(results.lead(s.key, end, "win rate", METRIC)[1] for end in ("0.0", "1.0")) - 0.01


CLAIMS = (
    Claim(
        "mixture",
        "the paper's mixtures win 6 points more than either kind of pairs alone; here less than 1: there is one kind "
        "of task, both kinds of pairs suffice for it, and neither holds what the other lacks (upper end of the 95 % "
        "interval of the lead over the better kind, minus 0.01)",
        lambda s: 0 < s.labels["on-policy"] < 1,
        _above_ends,
        verdict=NOT_REPRODUCED,
    ),
    Claim(
        "learns",
        "either kind alone wins more than 0.8 against the reference",
        lambda s: s.labels["on-policy"] in (0, 1),
        lambda results, s: 0.8 - results.mean(s.key, "win rate", METRIC),
        verdict=ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Win rate against the reference by the share of on-policy pairs, beside the RLHF optimum's."""
    return figures.dots(results, SETTINGS, known="RLHF optimum", ours="win rate")
