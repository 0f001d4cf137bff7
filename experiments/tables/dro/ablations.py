"""DRO's ablations: a value per prompt, and how little the learning rates matter (arXiv 2405.19107, Figures 3 to 5).

COMMAND  python -m experiments.run dro.ablations
TIME     30 s on two CPU cores
RESULT   Where prompts differ in their rewards a value per prompt attains more than one for all, at every tau. Half the
         learning rate or five times it changes nothing, a tenth of it wins less often. That tau = 1 is best, and that
         a slow V alone costs two points, does not come out.

PROTOCOL The enumerable policy: 64 prompts x 256 responses, log-linear in 32 features. The gold reward is linear in the
         features plus a number of the prompt, half of its variance each, of mean 0 and variance 1 over all. 4,000
         reference samples to prompts drawn uniformly, rewards with noise of deviation 0.3. `prefjax.losses.dro` with a
         value for each prompt, or one for all; Adam at 0.02 for both, batch 32, 1,500 steps; 5 seeds, each a world,
         with the same data and batches for all rows. The rates are a tenth, a half and five times that, as the
         paper's are of its 1e-4, at tau = 1. float64.
COLUMNS  optimum: of reward - tau KL. attained: at the end. win rate: against the reference, by gold reward. KL: to the
         reference, nats. All exact sums.

TRY      --config.offset=0.0       prompts that are all alike: then one value is enough
         --config.steps=300        too short for the small rate
         --config.reward_noise=1.0 noisier rewards
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import enumerable, figures, fitting
from experiments.tables.dro import theory
from experiments.tables.enumerable import World
from experiments.tables.harness import NOT_REPRODUCED, ORDER, Claim, Results, Row, Setting, Table, by_column
from prefjax.losses import Responses, objective

METRIC = "at the end"
PER_PROMPT, ONE = "per prompt", "one for all"
TAUS = (0.1, 1.0, 5.0)
FACTORS = (0.1, 0.5, 5.0)  # the paper's 1e-5, 5e-5 and 5e-4 over its 1e-4
BASE = "per prompt 1.0 1.0 1.0"
TABLE = Table("Figures 3 to 5, its ablations", ("optimum", "attained", "win rate", "KL"), 1.0, ORDER, float64=True)


class Fit(NamedTuple):
    """One run: tau, whether one value serves all prompts, and what multiplies the rates of policy and value."""

    tau: float
    value: str
    policy_rate: float = 1.0
    value_rate: float = 1.0

    @property
    def labels(self) -> dict[str, object]:
        return {"V": self.value, "tau": self.tau, "policy's rate": self.policy_rate, "V's rate": self.value_rate}


FITS = (  # those of one tau stand together
    *(Fit(tau, value) for tau in TAUS[::2] for value in (PER_PROMPT, ONE)),
    *(Fit(1.0, value) for value in (PER_PROMPT, ONE)),
    *(Fit(1.0, PER_PROMPT, factor, factor) for factor in FACTORS),
    *(Fit(1.0, PER_PROMPT, 1.0, factor) for factor in FACTORS),
)


def _fact(fit: Fit) -> str:
    return "values" if fit.value == ONE else "tau" if fit.value_rate == 1 else "rates"


SETTINGS = tuple(Setting(fit.labels, METRIC, _fact(fit)) for fit in FITS)
PROTOCOL = {**theory.PROTOCOL, "offset": 1.0}
SIZES = {
    "smoke": {"prompts": 16, "responses": 32, "width": 8, "samples": 2_000, "steps": 800, "num_seeds": 3},
    "long": {"num_seeds": 20},
    "paper": {},
}


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """What every run attains, in every world."""
    worlds = [_world(config, world, seed) for seed, world in enumerate(enumerable.worlds(config))]
    given = [(world, *theory.trajectories(config, world, seed)) for seed, world in enumerate(worlds)]
    thetas = fitting.over_worlds(_trainer(config), given)
    for i, (fit, setting) in enumerate(zip(FITS, SETTINGS, strict=True)):
        for seed, world in enumerate(worlds):
            logp = enumerable.listed_policy(world, thetas[seed, i])
            values = {
                "optimum": float(enumerable.optimal_value(world, fit.tau).mean()),
                "attained": enumerable.regularised(world, logp, fit.tau),
                "win rate": enumerable.win_rate(world, logp, world.reference_logp),
                "KL": enumerable.kl(logp, world.reference_logp),
            }
            yield from by_column(setting.key, METRIC, values, seed, config.steps)


def _world(config: ml_collections.ConfigDict, world: World, seed: int) -> World:
    """The world with a number of each prompt added to its rewards, of deviation `offset` where theirs is 1."""
    reward = world.reward + config.offset * np.random.default_rng([seed, 2]).normal(size=(config.prompts, 1))
    return world._replace(reward=(reward - reward.mean()) / reward.std())


def _trainer(config: ml_collections.ConfigDict) -> Callable[..., jax.Array]:
    """(world, trajectories) -> theta [fits, D]. Adam's steps do not depend on the gradient's scale, so a rate is
    multiplied by training what the parameter is that many times of."""
    own = objective("dro")
    policy_rate, value_rate = (np.array([[getattr(fit, name)] for fit in FITS]) for name in Fit._fields[2:])
    one = np.array([[fit.value == ONE] for fit in FITS])

    def train(given):
        world, *samples, batches = given

        def total(parameters, batch):
            prompt, response, reward = batch
            theta, value = parameters[0] * policy_rate, parameters[1] * value_rate
            reference = world.reference_logp[prompt]
            logits = reference[None] + jnp.einsum("nyd,fd->fny", world.features[prompt], theta)
            at = jnp.arange(len(prompt)), response
            logp = jax.nn.log_softmax(logits)[:, *at]
            value = jnp.where(one, value.mean(1, keepdims=True), value[:, prompt])
            losses = 0.0
            for tau in TAUS:  # an option is a number of Python
                here = [i for i, fit in enumerate(FITS) if fit.tau == tau]
                flat = lambda x, here=here: jnp.broadcast_to(x, (len(FITS), len(prompt)))[np.array(here)].reshape(-1, 1)
                r = Responses(logp=flat(logp), reference_logp=flat(reference[at]), target=flat(reward))
                losses += own.loss(r.replace(value=flat(value)[:, 0]), tau=tau).sum() / len(prompt)
            return losses

        start = jnp.zeros((len(FITS), config.width)), jnp.zeros((len(FITS), config.prompts))
        theta = fitting.fit(total, start, tuple(samples), batches, config.learning_rate)[0]
        return theta * policy_rate

    return train


def _is_rate(*factors: float) -> Callable[[Setting], bool]:
    return lambda s: s.labels["V's rate"] in factors


def _one_ahead(results: Results, s: Setting) -> float:
    """Upper end of the 95 % interval of how much more one value attains than a value per prompt."""
    return results.lead(s.key, s.key.replace(ONE, PER_PROMPT), "attained", METRIC)[1]


def _off_base(results: Results, s: Setting) -> float:
    return abs(results.mean(s.key, "win rate", METRIC) - results.mean(BASE, "win rate", METRIC))


CLAIMS = (
    Claim(
        "value_per_prompt",
        "one value for all prompts attains less of reward - tau KL than a value per prompt (upper end of the 95 % "
        "interval of its lead)",
        lambda s: s.labels["V"] == ONE,
        _one_ahead,
        verdict=ORDER,
    ),
    Claim(
        "rates_near_base",
        "half the learning rate and five times it, of both or of V alone, move the win rate by less than 0.01",
        _is_rate(0.5, 5.0),
        _off_base,
        0.01,
        ORDER,
    ),
    Claim(
        "small_rate",
        "a tenth of the learning rate wins less often (upper end of the 95 % interval of its lead)",
        lambda s: s.labels["policy's rate"] == 0.1,
        lambda results, s: results.lead(s.key, BASE, "win rate", METRIC)[1],
        verdict=ORDER,
    ),
    Claim(
        "slow_value",
        "the paper's DRO wins 0.021 less often when V alone learns at a tenth of the rate; here less than that, and "
        "within the noise of five seeds: V is one number per prompt, learned soon enough (the base's lead minus 0.021)",
        lambda s: s.labels["V's rate"] == 0.1 and s.labels["policy's rate"] == 1,
        lambda results, s: results.mean(BASE, "win rate", METRIC) - results.mean(s.key, "win rate", METRIC) - 0.021,
        verdict=NOT_REPRODUCED,
    ),
    Claim(
        "best_tau",
        "the paper's DRO wins most at tau = 1 of the three; here the more the smaller tau is: a gold reward that is "
        "linear in the policy's features costs nothing far out (lead of tau = 1 over tau = 0.1)",
        lambda s: s.labels["V"] == PER_PROMPT and s.labels["tau"] == TAUS[0],
        lambda results, s: results.mean(BASE, "win rate", METRIC) - results.mean(s.key, "win rate", METRIC),
        verdict=NOT_REPRODUCED,
    ),
    Claim(
        "tau",
        "tau = 5 wins less often than tau = 1 (upper end of the 95 % interval of its lead)",
        lambda s: s.labels["V"] == PER_PROMPT and s.labels["tau"] == TAUS[2],
        lambda results, s: results.lead(s.key, BASE, "win rate", METRIC)[1],
        verdict=ORDER,
    ),
    Claim(
        "near_the_optimum",
        "at the paper's rate and tau = 1 DRO attains the optimum within 0.05",
        lambda s: s.key == BASE,
        lambda results, s: results.mean(s.key, "optimum", METRIC) - results.mean(s.key, "attained", METRIC),
        0.05,
        ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """What every run attains of reward - tau KL, beside the optimum: farthest from it with one value for all prompts at
    tau = 0.1."""
    return figures.dots(results, SETTINGS, known="optimum", ours="attained")
