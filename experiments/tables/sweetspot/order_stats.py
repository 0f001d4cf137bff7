"""The sweet spot's positions: where the picker lands among n normal rewards (arXiv 2502.16825).

COMMAND  python -m experiments.run sweetspot.order_stats
TIME     5 s on two CPU cores
RESULT   The best of n drifts away as the order statistics of the normal distribution say; the samples picked at mu + k
         sigma stay where they are.

PROTOCOL n rewards N(0, 1) to a prompt, 1,000 prompts; `prefjax.data.methods.pairing.reward_positions`, the best chosen
         and position k rejected. "max": the mean reward of the best. "k": the mean quantile of the one picked at
         mu + k sigma, with n = 400.
COLUMNS  closed form: E[max] = n integral of x phi(x) Phi(x)^(n - 1); Phi(k). ours: of what was picked.

TRY      --config.prompts=10000   more prompts: another half digit
         --config.scale=3.0       rewards in another unit: quantiles stay, the best is three times as far
         --config.seed=1          other rewards
"""

from collections.abc import Iterator

import matplotlib.figure
import ml_collections
import numpy as np
import scipy.integrate
import scipy.stats

from experiments.tables import figures, sampled
from experiments.tables.harness import EXACT, Claim, Results, Row, Setting, Table, away_from, by_column
from prefjax.data.methods.pairing import reward_positions

COUNTS = (5, 20, 60, 100, 200, 400)
POSITIONS = (-2.0, -1.0, 0.0, 1.0, 2.0)
BEST, QUANTILE = "mean reward", "quantile"
TABLE = Table("Section 3's seven positions", ("closed form", "ours"), 0.2, EXACT, float64=True)
SETTINGS = (
    *(Setting({"picked": "max", "n": count}, BEST) for count in COUNTS),
    *(Setting({"picked": f"mu + {k:g} sigma", "n": max(COUNTS)}, QUANTILE) for k in POSITIONS),
)
PROTOCOL = {"prompts": 1_000, "scale": 1.0, "seed": 0}
SIZES = {"smoke": {"prompts": 100}, "long": {"prompts": 20_000}, "paper": {}}


def cells(config: ml_collections.ConfigDict) -> list[str]:
    return [*map(str, COUNTS), "positions"]


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    count = max(COUNTS) if cell == "positions" else int(cell)
    reward = config.scale * np.random.default_rng([config.seed, count]).normal(size=(config.prompts, count))
    index = np.tile(np.arange(count), (config.prompts, 1))
    pool = list(sampled.ranked_records(np.arange(config.prompts), index, reward))
    if cell == "positions":
        for k in POSITIONS:
            picked = _picked(pool, reward, rejected=k)[1]
            key = f"mu + {k:g} sigma {count}"
            ours = scipy.stats.norm.cdf(picked / config.scale).mean()
            yield from by_column(key, QUANTILE, {"closed form": scipy.stats.norm.cdf(k), "ours": ours})
        return
    best = _picked(pool, reward, rejected="min")[0]
    known = config.scale * _expected_max(count)
    yield from by_column(f"max {count}", BEST, {"closed form": known, "ours": best.mean()})
    yield Row(f"max {count}", "ours", "standard error", None, None, float(best.std() / np.sqrt(config.prompts)))


def _picked(pool, reward: np.ndarray, rejected: str | float) -> np.ndarray:
    """[2, pairs]: the rewards of the chosen and of the rejected."""
    pairs = sampled.pairs_of(sampled.records_of(reward_positions(pool, rejected=rejected)))
    return reward[pairs.prompt[:, None], pairs.response].T


def _expected_max(count: int) -> float:
    norm = scipy.stats.norm
    return scipy.integrate.quad(lambda x: x * count * norm.pdf(x) * norm.cdf(x) ** (count - 1), -10, 10, limit=200)[0]


_off = away_from("closed form")
CLAIMS = (
    Claim(
        "drift",
        "the best of n is where the normal order statistics have it: within 4 standard errors",
        lambda s: s.metric == BEST,
        lambda results, s: _off(results, s) / results.mean(s.key, "ours", "standard error"),
        4.0,
    ),
    Claim(
        "positions",
        "of 400 rewards the one picked at mu + k sigma lies at the quantile Phi(k), within 0.01",
        lambda s: s.metric == QUANTILE,
        _off,
        0.01,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """The mean reward of the best of n, and the quantiles of the positions, each on its closed form."""
    return figures.dots(results, SETTINGS, known="closed form", ours="ours")
