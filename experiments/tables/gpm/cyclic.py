"""GPM on cyclic preferences: an embedding can say that preferences go round in a circle, a score cannot
(arXiv 2410.02197, section 5).

COMMAND  python -m experiments.run gpm.cyclic
TIME     15 s on two CPU cores
RESULT   Bradley-Terry ends at the loss log 2, a coin toss for every pair, and can order at most n - 1 of the n. The
         preference embedding ranks every pair of cycles of 3, 4, 5 and 8 rightly, but not from every start: some end
         where all items coincide, at log 2 too.

PROTOCOL n items, the pairs (1 beats 2), (2 beats 3), ..., (n beats 1), an item's features are its number.
         Bradley-Terry: one reward per item. GPM: an embedding of 2 numbers per item, scaled to length 1, tau = 0.1.
         Full batch, Adam at 0.05, 2,000 steps, 20 seeds of standard normal starts. float64.
COLUMNS  closed form: loss log 2 for Bradley-Terry, accuracy 1 for the embedding. ours: mean and 95 % interval over
         seeds; for the embedding the accuracy of the start with the lowest loss, and the share of starts that reach 1.

TRY      --config.steps=200         Bradley-Terry is near log 2 by then, the embedding may still be on its way
         --config.tau=1.0           a blunter score has no dead end: every start turns round
         --config.num_seeds=200     how often a start ends in one
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np
import optax

from experiments.tables import figures
from experiments.tables.harness import EXACT, NOT_REPRODUCED, Claim, Results, Row, Setting, Table, by_column, over_seeds
from prefjax.losses import Responses, objective
from prefjax.losses.reward_models import preference_scores

LENGTHS = (3, 4, 5, 8)
WIDTH = {"bt": 1, "gpm": 2}
BEST, SHARE = "accuracy, best start", "share of starts at 1"
TABLE = Table("Section 5's cyclic preferences", ("closed form", "ours"), 0.25, EXACT, float64=True)
SETTINGS = (
    *(Setting({"model": "bt", "cycle": n}, "loss", "cyclic_bt") for n in LENGTHS),
    *(Setting({"model": "gpm", "cycle": n}, BEST, "cyclic_gpm") for n in LENGTHS),
    *(Setting({"model": "gpm, any start", "cycle": n}, SHARE, "cyclic_gpm") for n in LENGTHS[:2]),
)
PROTOCOL = {"steps": 2_000, "learning_rate": 0.05, "tau": 0.1, "num_seeds": 20}
SIZES = {"smoke": {"steps": 1_000}, "long": {"num_seeds": 200}, "paper": {}}


def cells(config: ml_collections.ConfigDict) -> list[str]:
    return list(WIDTH)


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    losses, accuracies = over_seeds(lambda key: _train(key, cell, config), config.num_seeds)
    for i, n in enumerate(LENGTHS):
        for seed in range(config.num_seeds):
            yield Row(f"{cell} {n}", "ours", "loss", seed, config.steps, float(losses[seed, i]))
            yield Row(f"{cell} {n}", "ours", "accuracy", seed, config.steps, float(accuracies[seed, i]))
        if cell == "bt":
            yield Row(f"{cell} {n}", "closed form", "loss", None, None, float(np.log(2)))
            continue
        best, share = accuracies[losses[:, i].argmin(), i], np.mean(accuracies[:, i] > 1 - 1e-9)
        yield from by_column(f"{cell} {n}", BEST, {"closed form": 1.0, "ours": best})
        yield from by_column(f"{cell}, any start {n}", SHARE, {"closed form": 1.0, "ours": share})


def _train(key: jax.Array, model: str, config: ml_collections.ConfigDict) -> tuple[jax.Array, jax.Array]:
    """Losses and accuracies [lengths] after training on every cycle at once; no item is in two of them."""
    own = objective(model, **({"tau": config.tau} if model == "gpm" else {}))
    most = max(LENGTHS)
    # Every cycle as `most` pairs, of which those beyond its own weigh nothing.
    pairs = jnp.array([[(i % n, (i + 1) % n) for i in range(most)] for n in LENGTHS])
    weight = jnp.array([[(i < n) / n for i in range(most)] for n in LENGTHS])
    optimizer = optax.adam(config.learning_rate)

    def features(items):
        length = jnp.sqrt(jnp.sum(items**2, axis=-1, keepdims=True)) if model == "gpm" else 1.0
        return jax.vmap(lambda items, pairs: items[pairs])(items / length, pairs)

    def losses(items):
        return jax.vmap(lambda f, w: jnp.dot(w, own.loss(Responses(features=f))))(features(items), weight)

    def update(state, _):
        items, moments = state
        updates, moments = optimizer.update(jax.grad(lambda x: losses(x).sum())(items), moments)
        return (optax.apply_updates(items, updates), moments), None

    start = jax.random.normal(key, (len(LENGTHS), most, WIDTH[model]))
    items = jax.lax.scan(update, (start, optimizer.init(start)), None, length=config.steps)[0][0]
    ahead = jax.vmap(preference_scores)(features(items))[:, :, 0, 1]
    return losses(items), jnp.sum(weight * ((ahead > 0) + 0.5 * (ahead == 0)), axis=1)


def _off(results: Results, setting: Setting) -> float:
    ours = results.final(setting.key, "ours", setting.metric)
    return float(np.abs(ours - results.mean(setting.key, "closed form", setting.metric)).max())


def _above_ceiling(results: Results, setting: Setting) -> float:
    n = setting.labels["cycle"]
    return float(results.final(setting.key, "ours", "accuracy").max() - (n - 1) / n)


def _about(model: str) -> Callable[[Setting], bool]:
    return lambda s: s.labels["model"] == model


def _neither(results: Results, setting: Setting) -> float:
    """How far a start that is not at accuracy 1 is from the loss log 2, at worst."""
    losses, accuracies = (results.final(setting.key, "ours", metric) for metric in ("loss", "accuracy"))
    stuck = losses[accuracies < 1 - 1e-9]
    return float(np.abs(stuck - np.log(2)).max(initial=0.0))


CLAIMS = (
    Claim("coin_toss", "Bradley-Terry's loss ends at log 2, within 1e-3 in every seed", _about("bt"), _off, 1e-3),
    Claim(
        "ceiling",
        "a score orders at most n - 1 of a cycle's n pairs (accuracy minus that ceiling)",
        _about("bt"),
        _above_ceiling,
        1e-9,
    ),
    Claim("embedding", "the embedding's best start ranks every pair rightly", _about("gpm"), _off, 1e-9),
    Claim(
        "two_ends",
        "every other start has ranked all pairs too, or ended at log 2, where all items coincide: within 1e-3",
        _about("gpm"),
        _neither,
        1e-3,
    ),
    Claim(
        "dead_end",
        "the embedding of two numbers does not turn round from every start: where the steps round the circle add up to "
        "no turn, all items coinciding is a minimum as soon as tau is small, so of cycles of 3 and 4 some starts stay "
        "at log 2 (share of starts at 1, minus 0.99)",
        _about("gpm, any start"),
        lambda results, s: results.mean(s.key, "ours", SHARE) - 0.99,
        verdict=NOT_REPRODUCED,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Bradley-Terry's loss, log 2 for every length of the cycle; the accuracy of the embedding's best start, 1 for
    every length; and the share of starts that get there, below 1 for cycles of 3 and 4."""
    return figures.dots(results, SETTINGS, known="closed form", ours="ours")
