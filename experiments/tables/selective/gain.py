"""Selective DPO: leaving out the pairs that models find difficult (arXiv 2502.09650).

COMMAND  python -m experiments.run selective.gain
TIME     30 s on two CPU cores
RESULT   Where a fifth of the labels is wrong, DPO on the easiest part attains more reward than on all pairs; which
         pairs are difficult is much the same whatever the split and the batches.

PROTOCOL The enumerable policy: 64 prompts x 256 responses, log-linear in 32 features, gold reward of variance 1. 1,200
         pairs of reference samples, Bradley-Terry labels, a fifth of them exchanged. Difficulty: the DPO loss of a pair
         under models trained on the other fold, mean over 3 repeats of 2 folds (`selection.fold`); the easiest share is
         kept (`selection.easiest`). DPO at beta = 0.1, Adam at 0.02, batch 64, 400 steps, for all models; 5 seeds, each
         a world. float64.
COLUMNS  all pairs: what DPO attains on all pairs; 1 for correlations. ours: reward at the end; Spearman's correlation
         of the difficulties of two sets of 3 repeats. KL: to the reference, nats; 0 for the correlation.

TRY      --config.flip_rate=0.0  clean labels: difficult pairs are then only close ones
         --config.repeats=1      one split: a rougher difficulty
         --config.pairs=8000     with enough pairs wrong labels average out
"""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np
import scipy.stats

from experiments.tables import enumerable, figures, sampled
from experiments.tables.enumerable import Pairs, World
from experiments.tables.harness import ORDER, Claim, Results, Row, Setting, Table, by_column
from prefjax.data.methods.selection import easiest, fold
from prefjax.losses import Responses, objective

REWARD, AGREEMENT = "reward", "agreement"
BETA = 0.1
SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
TABLE = Table("Figures 2 and 3, by gold reward", ("all pairs", "ours", "KL"), 0.7, ORDER, float64=True)
SETTINGS = (
    *(Setting({"easiest": share}, REWARD) for share in SHARES),
    Setting({"easiest": "difficulty of two splits"}, AGREEMENT),
)
PROTOCOL = {
    **enumerable.SHAPE,
    "pairs": 1_200,
    "flip_rate": 0.2,
    "repeats": 3,
    "learning_rate": 0.02,
    "batch_size": 64,
    "steps": 400,
    "num_seeds": 5,
}
SIZES = {"smoke": {"pairs": 800, "steps": 200, "num_seeds": 2}, "long": {"num_seeds": 20}, "paper": {}}


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """Reward and KL of DPO on every share of the easiest pairs, and how well two difficulties agree."""
    worlds, dpo = enumerable.worlds(config), objective("dpo", beta=BETA)
    pairs = enumerable.drawn_pairs(config, worlds)
    first, second = (_difficulty(config, worlds, pairs, salt) for salt in (0, 1))
    runs = [
        [_easiest(of_seed, difficulty, share) for share in SHARES]
        for of_seed, difficulty in zip(pairs, first, strict=True)
    ]
    thetas = sampled.fit_pairs(dpo, worlds, runs, config)
    for seed, world in enumerate(worlds):
        logps = [enumerable.listed_policy(world, theta) for theta in thetas[seed]]
        for share, logp in zip(SHARES, logps, strict=True):
            values = {
                "all pairs": enumerable.mean_reward(world, logps[-1]),
                "ours": enumerable.mean_reward(world, logp),
                "KL": enumerable.kl(logp, world.reference_logp),
            }
            yield from by_column(str(share), REWARD, values, seed, config.steps)
        agreement = scipy.stats.spearmanr(first[seed], second[seed]).statistic
        values = {"all pairs": 1.0, "ours": agreement, "KL": 0.0}
        yield from by_column("difficulty of two splits", AGREEMENT, values, seed, config.steps)


def _difficulty(
    config: ml_collections.ConfigDict, worlds: Sequence[World], pairs: Sequence[Pairs], salt: int
) -> list[np.ndarray]:
    """The mean held-out DPO loss of every pair of every seed [seeds][N]."""
    folds = [_folds(config, of_seed, (seed, 4, salt)) for seed, of_seed in enumerate(pairs)]
    runs = [[_at(of_seed, train) for train, _ in of] for of_seed, of in zip(pairs, folds, strict=True)]
    dpo = objective("dpo", beta=BETA)
    thetas = sampled.fit_pairs(dpo, worlds, runs, config)
    found = []
    for seed, (world, of_seed) in enumerate(zip(worlds, pairs, strict=True)):
        seen = world.features[of_seed.prompt[:, None], of_seed.response]
        total = np.zeros(config.pairs)
        for theta, (_, held_out) in zip(thetas[seed], folds[seed], strict=True):
            logp = seen[held_out] @ theta  # but for log Z and the reference, which cancel
            lost = dpo.loss(Responses(logp=jnp.asarray(logp), reference_logp=jnp.zeros(logp.shape)))
            total[held_out] += np.asarray(lost) / config.repeats
        found.append(total)
    return found


def _folds(config: ml_collections.ConfigDict, pairs: Pairs, seed: tuple[int, ...]) -> list[tuple[np.ndarray, ...]]:
    """For every repeat and fold the places of the pairs to train on and of those held out."""
    records = list(sampled.pair_records(pairs))

    def places(index, repeat, held_out):
        kept = sampled.records_of(fold(records, index=index, repeat=repeat, held_out=held_out, seed=seed))
        return np.array([int(record.source) for record in kept])

    return [
        (places(index, repeat, False), places(index, repeat, True))
        for repeat in range(config.repeats)
        for index in (0, 1)
    ]


def _at(pairs: Pairs, places: np.ndarray) -> Pairs:
    return Pairs(pairs.prompt[places], pairs.response[places])


def _easiest(pairs: Pairs, difficulty: np.ndarray, share: float) -> Pairs:
    records = sampled.pair_records(pairs, {"loss": difficulty})
    return sampled.pairs_of(sampled.records_of(easiest(records, by="loss", share=share)))


def _gain(results: Results, s: Setting) -> float:
    """Minus the lower end of the 95 % interval of what the easiest share attains beyond all pairs."""
    return -results.lead(s.key, "1.0", "ours", REWARD)[0]


CLAIMS = (
    Claim(
        "sweet_spot",
        "the easiest part attains more reward than all pairs (minus the lower end of the 95 % interval)",
        lambda s: s.labels["easiest"] in SHARES[:-1],
        _gain,
        verdict=ORDER,
    ),
    Claim(
        "learns",
        "all pairs attain more reward than the reference's 0",
        lambda s: s.labels["easiest"] == 1.0,
        lambda results, s: -results.mean(s.key, "ours", REWARD),
        verdict=ORDER,
    ),
    Claim(
        "same_pairs",
        "the difficulties of two sets of splits and batches have a rank correlation above 0.7 (0.7 minus it)",
        lambda s: s.metric == AGREEMENT,
        lambda results, s: 0.7 - results.mean(s.key, "ours", AGREEMENT),
        verdict=ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Reward at the end of DPO on the easiest part of the pairs, beside that on all pairs."""
    return figures.dots(results, SETTINGS, known="all pairs", ours="ours")
