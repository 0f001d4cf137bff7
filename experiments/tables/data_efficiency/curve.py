"""How much DPO gains by more pairs: nested random subsets (arXiv 2410.16586).

COMMAND  python -m experiments.run data_efficiency.curve
TIME     15 s on two CPU cores
RESULT   Every larger subset attains more reward, at equally many steps, and less and less more.

PROTOCOL The enumerable policy: 64 prompts x 256 responses, log-linear in 32 features, gold reward of variance 1. 4,000
         pairs of reference samples, Bradley-Terry labels; of these `prefjax.data.methods.selection.subset` at 1, 5, 10,
         25, 50 and 100 %, nested. DPO at beta = 0.1, Adam at 0.02, batch 64, 1,000 steps; 5 seeds, each a world.
         float64.
COLUMNS  RLHF optimum: the reward of ref exp(reward / beta) / Z. reward, KL: at the end, exact sums, KL to the reference
         in nats.

TRY      --config.flip_rate=0.2  noisy labels: more data are worth more
         --config.steps=100      few steps: subsets do not matter yet
         --config.pairs=40000    where the curve goes on to
"""

from collections.abc import Iterator

import matplotlib.figure
import ml_collections

from experiments.tables import enumerable, figures, sampled
from experiments.tables.enumerable import Pairs
from experiments.tables.harness import ORDER, Claim, Results, Row, Setting, Table, by_column
from prefjax.data.methods.selection import subset
from prefjax.losses import objective

METRIC = "at the end"
BETA = 0.1
SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
TABLE = Table("The improvement curve over subsets", ("RLHF optimum", "reward", "KL"), 0.4, ORDER, float64=True)
SETTINGS = tuple(Setting({"share of the pairs": share}, METRIC) for share in SHARES)
PROTOCOL = {
    **enumerable.SHAPE,
    "pairs": 4_000,
    "flip_rate": 0.0,
    "learning_rate": 0.02,
    "batch_size": 64,
    "steps": 1_000,
    "num_seeds": 5,
}
SIZES = {
    "smoke": {"pairs": 2_000, "num_seeds": 3},
    "long": {"num_seeds": 20},
    "paper": {},
}


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """Reward and KL at the end for every share of the pairs."""
    worlds = enumerable.worlds(config)
    pairs = enumerable.drawn_pairs(config, worlds)
    runs = [[_subset(of_seed, share, seed) for share in SHARES] for seed, of_seed in enumerate(pairs)]
    thetas = sampled.fit_pairs(objective("dpo", beta=BETA), worlds, runs, config)
    for i, share in enumerate(SHARES):
        for seed, world in enumerate(worlds):
            values = enumerable.reward_and_kl(world, enumerable.listed_policy(world, thetas[seed, i]), BETA)
            yield from by_column(str(share), METRIC, values, seed, config.steps)


def _subset(pairs: Pairs, share: float, seed: int) -> Pairs:
    return sampled.pairs_of(sampled.records_of(subset(sampled.pair_records(pairs), share=share, seed=(seed, 3))))


def _more(results: Results, s: Setting) -> float:
    """Minus the lower end of the 95 % interval of what this share gains over the next smaller one."""
    smaller = SHARES[SHARES.index(s.labels["share of the pairs"]) - 1]
    return -results.lead(s.key, str(smaller), "reward", METRIC)[0]


CLAIMS = (
    Claim(
        "learns",
        "one pair in a hundred already attains more reward than the reference's 0",
        lambda s: s.labels["share of the pairs"] == SHARES[0],
        lambda results, s: -results.mean(s.key, "reward", METRIC),
        verdict=ORDER,
    ),
    Claim(
        "more_is_better",
        "every larger subset attains more reward (minus the lower end of the 95 % interval of what it gains)",
        lambda s: s.labels["share of the pairs"] > SHARES[0],
        _more,
        verdict=ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Reward at the end against the share of the pairs that DPO saw, beside the RLHF optimum's: it rises throughout."""
    return figures.dots(results, SETTINGS, known="RLHF optimum", ours="reward")
