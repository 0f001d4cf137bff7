"""Delta learning: a student learns from the difference of two teachers that are worse than it (arXiv 2507.06187).

COMMAND  python -m experiments.run delta.logistic
TIME     15 s on two CPU cores
RESULT   On the pairs of two weaker teachers the student's direction comes nearer to the true one on the way, by little,
         with 200 dimensions always, with 10 in six seeds of ten; both ways end farther from it than they began.

PROTOCOL Logistic regression in d dimensions. The true direction is the first axis; student, better and worse teacher
         are unit vectors with cosines 0.6, 0.3 and 0.1 to it, otherwise random. 2,000 inputs N(0, I). "pairs": a
         response is one of two labels, a teacher's response the label it finds likelier; where the teachers differ, the
         better one's is chosen. `prefjax.losses.dpo` at beta = 1 against the student at the start. "imitation":
         `prefjax.losses.sft` on the better teacher's labels. Gradient descent at 0.05, 200 steps, full batch; 50 seeds.
COLUMNS  start: the student's cosine to the true direction. best, end: along the way, and after it.

TRY      --config.steps=2000     longer: imitation ends where the teacher is
         --config.inputs=20000   more inputs
         --config.better=0.5     a better teacher
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import figures
from experiments.tables.harness import NOT_REPRODUCED, ORDER, SIGN, Claim, Results, Row, Setting, Table, by_column
from prefjax.losses import Responses, objective

METRIC = "cosine"
WIDTHS = (10, 50, 200)
METHODS = ("pairs", "imitation")
TABLE = Table("Section 6's logistic model", ("start", "best", "end"), 0.5, ORDER, float64=True)
SETTINGS = tuple(Setting({"student learns from": method, "d": width}, METRIC) for method in METHODS for width in WIDTHS)
PROTOCOL = {
    "inputs": 2_000,
    "student": 0.6,
    "better": 0.3,
    "worse": 0.1,
    "learning_rate": 0.05,
    "steps": 200,
    "num_seeds": 50,
}
SIZES = {"smoke": {"inputs": 500, "num_seeds": 20}, "long": {"num_seeds": 200}, "paper": {}}


def cells(config: ml_collections.ConfigDict) -> list[str]:
    return list(map(str, WIDTHS))


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """Cosines to the true direction at the start, at best and at the end, of both methods at one width."""
    width = int(cell)
    for seed in range(config.num_seeds):
        rng = np.random.default_rng([seed, width])
        student, better, worse = (_unit(rng, width, cosine) for cosine in (config.student, config.better, config.worse))
        inputs = rng.normal(size=(config.inputs, width))
        chosen, rejected = (np.sign(inputs @ teacher) for teacher in (better, worse))
        paths = _paths(student, inputs, chosen, chosen != rejected, config.learning_rate, config.steps)
        for method, path in zip(METHODS, map(np.asarray, paths), strict=True):
            cosine = path[:, 0] / np.linalg.norm(path, axis=1)
            values = {"start": config.student, "best": cosine.max(), "end": cosine[-1]}
            yield from by_column(f"{method} {width}", METRIC, values, seed, config.steps)


def _unit(rng: np.random.Generator, width: int, cosine: float) -> np.ndarray:
    """A unit vector with this cosine to the first axis."""
    rest = rng.normal(size=width - 1)
    return np.concatenate([[cosine], np.sqrt(1 - cosine**2) * rest / np.linalg.norm(rest)])


@functools.partial(jax.jit, static_argnums=5)
def _paths(student, inputs, chosen, differs, learning_rate, steps: int):
    """[steps, d] of both methods: the student after every step. A label y in {-1, 1} has the logit y x . theta."""
    dpo, sft = objective("dpo", beta=1.0), objective("sft", normalize="none")

    def logp(theta):
        both = jax.nn.log_softmax(jnp.stack([inputs @ theta / 2, -(inputs @ theta) / 2], axis=1), axis=1)
        return jnp.where(chosen[:, None] > 0, both, both[:, ::-1])

    def loss(thetas):  # no theta is in the loss of the other
        r = Responses(logp=logp(thetas[0]), reference_logp=logp(student))
        ours = logp(thetas[1])[:, :1]
        imitation = jnp.mean(sft.loss(Responses(logp=ours, length=jnp.ones_like(ours))))
        return jnp.sum(dpo.loss(r) * differs) / jnp.sum(differs) + imitation

    def step(thetas, _):
        thetas = thetas - learning_rate * jax.grad(loss)(thetas)
        return thetas, thetas

    return jnp.moveaxis(jax.lax.scan(step, jnp.stack([student, student]), length=steps)[1], 1, 0)


def _share_not_better(results: Results, s: Setting) -> float:
    """0.95 minus the share of seeds in which the best cosine along the way is above the start's."""
    best, start = (results.final(s.key, col, METRIC) for col in ("best", "start"))
    return 0.95 - float((best > start + 1e-9).mean())


CLAIMS = (
    Claim(
        "pairs_help",
        "on the pairs of two weaker teachers the student improves on the way, in 95 % of the seeds (0.95 minus that)",
        lambda s: s.labels["student learns from"] == "pairs" and s.labels["d"] == max(WIDTHS),
        _share_not_better,
        verdict=ORDER,
    ),
    Claim(
        "pairs_help_in_part",
        "with few dimensions it improves in fewer than 95 % of the seeds: what the teachers know of the other axes "
        "does not average out there (the share minus 0.95)",
        lambda s: s.labels["student learns from"] == "pairs" and s.labels["d"] < max(WIDTHS),
        lambda results, s: -_share_not_better(results, s),
        verdict=NOT_REPRODUCED,
    ),
    Claim(
        "imitation_hurts",
        "imitating the better teacher ends below the start (the end's mean minus the start's)",
        lambda s: s.labels["student learns from"] == "imitation",
        lambda results, s: results.mean(s.key, "end", METRIC) - results.mean(s.key, "start", METRIC),
        verdict=SIGN,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """The best cosine to the true direction, beside the start's: above it on pairs."""
    return figures.dots(results, SETTINGS, known="start", ours="best")
