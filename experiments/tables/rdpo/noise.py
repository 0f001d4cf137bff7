"""rDPO's claim on noisy labels: which losses keep learning when labels flip (arXiv 2403.00409).

COMMAND  python -m experiments.run rdpo.noise
TIME     1 min on two CPU cores
RESULT   At a flip rate of 0.4 rDPO attains more reward than DPO, and DPO more than cDPO, which hardly leaves the
         reference; without noise all three are one. KTO and hinge-norm, which do not know the rate, attain no less. The
         distance gone differs as much as the reward: read both columns.

PROTOCOL The enumerable policy: 64 prompts x 256 responses, log-linear in 32 features, gold reward of variance 1. 4,000
         pairs of reference samples, Bradley-Terry labels, each flipped with the rate; what flips at 0.1 flips at 0.2
         too. Adam at 0.02, batch 64, 1,000 steps from the reference; 5 seeds, each a world, with the same pairs and
         batches for all losses. beta = 0.1 (IPO's tau, hinge-norm's gamma); SLiC's delta is 1. rDPO and cDPO know
         the rate. float64.
COLUMNS  RLHF optimum: the reward of ref exp(reward / beta) / Z. reward, KL: of the policy at the end, exact sums, KL to
         the reference in nats.

TRY      --config.steps=200     early: fewer steps, less of everything
         --config.pairs=400     less data: what noise costs where data are few
         --rows=+ipo            another loss of the zoo, or +my_module:my_loss, on the same pairs
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import enumerable, figures, fitting
from experiments.tables.enumerable import Pairs, World
from experiments.tables.harness import (
    EXACT,
    ORDER,
    Claim,
    Results,
    Row,
    Setting,
    Table,
    bootstrap_interval,
    by_column,
)
from prefjax.losses import Objective, objective

RATES = (0.0, 0.1, 0.2, 0.3, 0.4)
BETA = 0.1
STRENGTH = {"dpo": "beta", "rdpo": "beta", "cdpo": "beta", "ipo": "tau", "rso_hinge": "gamma", "kto": "beta"}
KNOWS = {"rdpo": "flip_rate", "cdpo": "label_smoothing"}  # the option that is the flip rate
LOSSES = (*STRENGTH, "slic")
OF_GAP = ("dpo", "rdpo", "cdpo", "ipo", "rso_hinge")  # in which log Z(x) cancels
METRIC = "at the end"

TABLE = Table("The abstract's claim (its tables were not found)", ("RLHF optimum", "reward", "KL"), 1.0, ORDER, True)
SETTINGS = tuple(Setting({"loss": loss, "flip rate": rate}, METRIC) for loss in LOSSES for rate in RATES)
PROTOCOL = {
    **enumerable.SHAPE,
    "pairs": 4_000,
    "learning_rate": 0.02,
    "batch_size": 64,
    "steps": 1_000,
    "num_seeds": 5,
}
SIZES = {
    "smoke": {"prompts": 8, "responses": 32, "width": 8, "pairs": 1_000, "steps": 300, "num_seeds": 3},
    "long": {"num_seeds": 20},
    "paper": {},
}


def own_settings(name: str) -> list[Setting]:
    """The rows of an objective on pairs, under its own options."""
    enumerable.check_own(name)
    return [Setting({"loss": f"+{name}", "flip rate": rate}, METRIC, own=True) for rate in RATES]


def cells(config: ml_collections.ConfigDict) -> list[str]:
    return list(LOSSES)


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """Reward and KL at the end of one loss at every flip rate and seed."""
    own = objective(cell.removeprefix("+"))
    if cell in STRENGTH:
        own = own.with_options({STRENGTH[cell]: BETA})
    knows = KNOWS.get(cell)
    losses = [own.with_options({knows: rate}) for rate in RATES] if knows else [own]
    given = [_data(config, seed) for seed in range(config.num_seeds)]
    thetas = fitting.over_worlds(_trainer(config, losses, cell in OF_GAP), given)
    for (i, rate), (seed, (world, *_)) in itertools.product(enumerate(RATES), enumerate(given)):
        values = enumerable.reward_and_kl(world, enumerable.listed_policy(world, thetas[seed, i]), BETA)
        values["reference"] = enumerable.mean_reward(world, world.reference_logp)
        yield from by_column(f"{cell} {rate}", METRIC, values, seed, config.steps)


def _data(config: ml_collections.ConfigDict, seed: int) -> tuple[World, Pairs, np.ndarray, np.ndarray]:
    """World; N pairs as drawn; [N, rates] whether the first response is chosen; [steps, batch] of pairs."""
    world, rng = enumerable.world_of(config, seed), np.random.default_rng([seed, 1])
    pairs = Pairs(*enumerable.draw(rng, world, config.pairs, 2))
    first = rng.random(config.pairs) < enumerable.prefer_first(world, pairs)
    flipped = rng.random((config.pairs, 1)) < np.array(RATES)
    return world, pairs, first[:, None] ^ flipped, rng.integers(config.pairs, size=(config.steps, config.batch_size))


def _trainer(config: ml_collections.ConfigDict, losses: list[Objective], of_gap: bool) -> Callable[..., jax.Array]:
    """What `_data` gives -> theta [rates, D] at the end. One loss for all rates, or one for each."""

    def train(given):
        world, pairs, first, batches = given

        def total(thetas, batch):
            (prompt, response), first = batch

            def mean_loss(own, theta, first):
                ordered = jnp.where(first[:, None], response, response[:, ::-1])
                if of_gap:
                    return jnp.mean(own.loss(enumerable.gap_responses(world, theta, prompt, ordered)))
                logp = enumerable.log_policy(world, theta)
                return jnp.mean(own.loss(enumerable.labelled(world, logp, prompt, ordered)))

            if len(losses) == 1:
                return jax.vmap(functools.partial(mean_loss, *losses))(thetas, first.T).sum()
            return sum(mean_loss(own, thetas[i], first[:, i]) for i, own in enumerate(losses))

        return fitting.fit(total, jnp.zeros((len(RATES), config.width)), (pairs, first), batches, config.learning_rate)

    return train


def _behind(better: str) -> Callable[[Results, Setting], float]:
    """Upper end of the 95 % interval of how much more reward a setting has than another loss, paired by seed."""
    return lambda results, s: results.lead(s.key, f"{better} {s.labels['flip rate']}", "reward", METRIC)[1]


def _gap_to_dpo(results: Results, setting: Setting) -> float:
    ours, dpo = (results.final(f"{loss} 0.0", "reward", METRIC) for loss in (setting.labels["loss"], "dpo"))
    return float(np.abs(ours - dpo).max())


def _loss_of_noise(results: Results, setting: Setting) -> float:
    """Upper end of the interval of how much more reward there is than at the next smaller flip rate."""
    smaller = RATES[RATES.index(setting.labels["flip rate"]) - 1]
    return results.lead(setting.key, f"{setting.labels['loss']} {smaller}", "reward", METRIC)[1]


def _below_reference(results: Results, setting: Setting) -> float:
    reference, ours = (results.final(setting.key, col, METRIC) for col in ("reference", "reward"))
    return bootstrap_interval(reference - ours)[1]


def _about(loss: str, *rates: float) -> Callable[[Setting], bool]:
    return lambda s: s.labels["loss"] == loss and s.labels["flip rate"] in rates


CLAIMS = (
    Claim(
        "rdpo_is_dpo_without_noise",
        "without noise rDPO and cDPO end where DPO does, in every seed",
        lambda s: s.labels["loss"] in KNOWS and s.labels["flip rate"] == 0,
        _gap_to_dpo,
        1e-6,
        EXACT,
    ),
    Claim(
        "dpo_below_rdpo",
        "at a flip rate of 0.4 DPO attains less reward than rDPO (upper end of the 95 % interval of the difference)",
        _about("dpo", 0.4),
        _behind("rdpo"),
        verdict=ORDER,
    ),
    Claim(
        "cdpo_below_dpo",
        "at a flip rate of 0.4 cDPO attains less reward than DPO (upper end of the 95 % interval of the difference)",
        _about("cdpo", 0.4),
        _behind("dpo"),
        verdict=ORDER,
    ),
    Claim(
        "noise_costs",
        "no loss gains by noise: reward minus that at the next smaller flip rate (upper end of its 95 % interval)",
        lambda s: s.labels["flip rate"] > 0,
        _loss_of_noise,
        0.05,
        ORDER,
    ),
    Claim(
        "learns_from_clean_labels",
        "without noise every loss ends above the reference's reward (its lead, upper end of the 95 % interval)",
        lambda s: s.labels["flip rate"] == 0,
        _below_reference,
        verdict=ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Reward at the end of every loss at five flip rates, beside the RLHF optimum's. Without noise all but IPO and SLiC
    end near it; with flips DPO and cDPO fall fast, rDPO, KTO and the hinges slowly."""
    return figures.dots(results, SETTINGS, known="RLHF optimum", ours="reward")
