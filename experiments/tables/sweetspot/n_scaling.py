"""The sweet spot: which sample to reject as the number of samples grows (arXiv 2502.16825).

COMMAND  python -m experiments.run sweetspot.n_scaling
TIME     1 min on two CPU cores
RESULT   Beyond 20 samples rejecting the worst wins less often the more there are, and with 100 and more rejecting the
         one at mu - 2 sigma wins more often; the differences are small.

PROTOCOL The enumerable policy: 64 prompts x 256 responses, log-linear in 32 features, gold reward of variance 1; the
         reward model is that plus noise of deviation 0.8 on every response. n samples of the reference for each of 500
         prompts; `prefjax.data.methods.pairing.reward_positions` chooses the best by the reward model and rejects the
         worst, the one nearest to mu - 2 sigma, to mu - sigma, or to mu. DPO at beta = 0.1, Adam at 0.02, batch 64, 400
         steps; 5 seeds, each a world. float64.
COLUMNS  reference: 1/2. win rate: against the reference by the gold reward, exact sums. KL: to the reference, nats.

TRY      --config.model_noise=0.0  a reward model without noise: the worst sample is then the right one to reject
         --config.model_noise=2.0  mostly noise
         --config.steps=100        early
"""

import itertools
from collections.abc import Callable, Iterator

import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import enumerable, figures, sampled
from experiments.tables.enumerable import Pairs, World
from experiments.tables.harness import ORDER, Claim, Results, Row, Setting, Table
from prefjax.data.methods.pairing import reward_positions
from prefjax.losses import objective

METRIC = "at the end"
COUNTS = (5, 20, 100, 400)
REJECTED = {"min": "min", "mu - 2 sigma": -2.0, "mu - sigma": -1.0, "mu": 0.0}
TABLE = Table("The abstract's claim on growing sample counts", ("reference", "win rate", "KL"), 1.0, ORDER, True)
SETTINGS = tuple(Setting({"rejected": name, "n": count}, METRIC) for name in REJECTED for count in COUNTS)
PROTOCOL = {
    **enumerable.SHAPE,
    "questions": 500,
    "model_noise": 0.8,
    "learning_rate": 0.02,
    "batch_size": 64,
    "steps": 400,
    "num_seeds": 5,
}
SIZES = {
    "smoke": {"questions": 300, "num_seeds": 2},
    "long": {"num_seeds": 20},
    "paper": {},
}


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """Win rate and KL at the end for every number of samples and rejected position."""
    worlds = enumerable.worlds(config)
    runs = [list(_data(config, world, seed)) for seed, world in enumerate(worlds)]
    thetas = sampled.fit_pairs(objective("dpo", beta=0.1), worlds, runs, config)
    for i, (count, name) in enumerate(itertools.product(COUNTS, REJECTED)):
        yield Row(f"{name} {count}", "reference", METRIC, None, None, 0.5)
        for seed, world in enumerate(worlds):
            logp = enumerable.listed_policy(world, thetas[seed, i])
            wins = enumerable.win_rate(world, logp, world.reference_logp)
            yield Row(f"{name} {count}", "win rate", METRIC, seed, config.steps, wins)
            yield Row(f"{name} {count}", "KL", METRIC, seed, config.steps, enumerable.kl(logp, world.reference_logp))


def _data(config: ml_collections.ConfigDict, world: World, seed: int) -> Iterator[Pairs]:
    """The pairs of every number of samples and rejected position; fewer samples are the first of more."""
    rng = np.random.default_rng([seed, 1])
    model = world.reward + config.model_noise * rng.normal(size=world.reward.shape)
    prompt, response = enumerable.draw(rng, world, config.questions, max(COUNTS))
    for count in COUNTS:
        few = response[:, :count]
        pool = list(sampled.ranked_records(prompt, few, model[prompt[:, None], few]))
        for position in REJECTED.values():
            yield sampled.pairs_of(sampled.records_of(reward_positions(pool, rejected=position)))


def _falls(results: Results, s: Setting) -> float:
    """Minus the lower end of the 95 % interval of how much more is won with the next smaller number of samples."""
    fewer = max(count for count in COUNTS if count < s.labels["n"])
    return -results.lead(f"min {fewer}", s.key, "win rate", METRIC)[0]


def _behind_sweet_spot(results: Results, s: Setting) -> float:
    return -results.lead(s.key, f"min {s.labels['n']}", "win rate", METRIC)[0]


def _about(rejected: str, *counts: int) -> Callable[[Setting], bool]:
    return lambda s: s.labels["rejected"] == rejected and s.labels["n"] in counts


CLAIMS = (
    Claim(
        "worst_falls",
        "beyond 20 samples rejecting the worst wins less with more of them (minus the lower end of the 95 % interval "
        "of what it loses)",
        _about("min", 100, 400),
        _falls,
        verdict=ORDER,
    ),
    Claim(
        "sweet_spot",
        "with 100 samples and more, rejecting at mu - 2 sigma wins more than rejecting the worst (minus the lower end "
        "of the 95 % interval)",
        _about("mu - 2 sigma", 100, 400),
        _behind_sweet_spot,
        verdict=ORDER,
    ),
    Claim(
        "learns",
        "every choice ends well above the reference: it wins more than 0.8",
        lambda s: True,
        lambda results, s: 0.8 - results.mean(s.key, "win rate", METRIC),
        verdict=ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Win rates against the reference by rejected position and number of samples: rejecting the worst falls with n."""
    return figures.dots(results, SETTINGS, known="reference", ours="win rate")
