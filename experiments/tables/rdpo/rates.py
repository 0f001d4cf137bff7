"""rDPO: with flipped labels its error falls as 1 / sqrt(n), DPO's and cDPO's do not fall (arXiv 2403.00409).

COMMAND  python -m experiments.run rdpo.rates
TIME     1 min on two CPU cores
RESULT   rDPO's error has slope -1/2 in log n at every flip rate, and the size that the sandwich variance predicts; from
         a flip rate of 0.2 on DPO and cDPO stay where they are, off by more than rDPO at any n.

PROTOCOL Feature differences x ~ N(0, I / d), d = 8, theta* of norm 3, beta = 1, Bradley-Terry labels, each flipped with
         probability e. The loss of theta . x fitted to its optimum by Newton steps, ridge 1e-4, norm at most 20 (the
         paper assumes a bound on the norm too: rDPO is convex, but not bounded below). n = 500, 1,000, ..., 64,000;
         12 seeds, the same data for all losses. float64.
COLUMNS  known: slope -1/2 or 0; the sandwich variance's error; 0 for the identity. ours: slope of the log of the mean
         error over the last six n, or the mean error at the largest n, in the norm of the covariance.

TRY      --config.width=32        errors grow as sqrt(d)
         --config.doublings=9     n up to 256,000
         --config.norm=1.0        weaker preferences: labels say less, DPO's bias is smaller
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import bandit, figures
from experiments.tables.harness import EXACT, Claim, Results, Row, Setting, Table, away_from, by_column
from prefjax.losses import Objective, Responses, objective

RATES = (0.0, 0.1, 0.2, 0.3, 0.4)
NOISY = RATES[2:]
LOSSES = {"rdpo": "flip_rate", "dpo": None, "cdpo": "label_smoothing"}
RIDGE, LARGEST = 1e-4, 20.0
_CHUNK = 6_000  # margins a compiled call; every number of them below is filled up to a multiple
Derivatives = Callable[[np.ndarray], tuple[np.ndarray, ...]]

TABLE = Table("The rate in the abstract, and section 3.1's unbiasedness", ("known", "ours"), 1.0, EXACT, float64=True)
SETTINGS = (
    *(Setting({"loss": "rdpo", "flip rate": rate}, "slope", "rate") for rate in RATES),
    *(Setting({"loss": loss, "flip rate": rate}, "slope") for loss in ("dpo", "cdpo") for rate in NOISY),
    *(Setting({"loss": "rdpo at the largest n", "flip rate": rate}, "error") for rate in RATES),
    *(Setting({"loss": "rdpo - dpo, mean over flips", "flip rate": rate}, "gap", "unbiased") for rate in RATES),
)
PROTOCOL = {"width": 8, "norm": 3.0, "smallest": 500, "doublings": 7, "num_seeds": 12}
SIZES = {"smoke": {"smallest": 2_000, "doublings": 4}, "long": {"num_seeds": 50}, "paper": {}}


def cells(config: ml_collections.ConfigDict) -> list[str]:
    return [*(f"{loss} {rate}" for loss in LOSSES for rate in (RATES if loss == "rdpo" else NOISY)), "unbiased"]


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    if cell == "unbiased":
        for rate in RATES:
            yield from by_column(f"rdpo - dpo, mean over flips {rate}", "gap", {"known": 0.0, "ours": _bias(rate)})
        return
    loss, rate = cell.split()[0], float(cell.split()[1])
    sizes = [config.smallest * 2**k for k in range(config.doublings + 1)]
    derivatives = _derivatives(_objective(loss, rate))
    errors = np.stack([_errors(config, derivatives, rate, n) for n in sizes], axis=1)
    for seed, (i, n) in ((seed, item) for seed in range(config.num_seeds) for item in enumerate(sizes)):
        yield Row(cell, "ours", "error", seed, n, float(errors[seed, i]))
    last = slice(-6, None)
    slope = np.polyfit(np.log(sizes[last]), np.log(errors.mean(0)[last]), 1)[0]
    yield from by_column(cell, "slope", {"known": -0.5 if loss == "rdpo" else 0.0, "ours": slope})
    if loss == "rdpo":
        key = f"rdpo at the largest n {rate}"
        yield Row(key, "known", "error", None, None, _sandwich(config, rate, sizes[-1]))
        for seed in range(config.num_seeds):
            yield Row(key, "ours", "error", seed, sizes[-1], float(errors[seed, -1]))


def _objective(loss: str, rate: float) -> Objective:
    return objective(loss, beta=1.0, **({LOSSES[loss]: rate} if LOSSES[loss] else {}))


def _bias(rate: float) -> float:
    """Largest |(1 - e) L(w, l) + e L(l, w) - DPO's loss| over margins."""
    margins = jnp.linspace(-30, 30, 241)
    r = Responses(logp=jnp.stack([margins, jnp.zeros_like(margins)], 1), reference_logp=jnp.zeros((241, 2)))
    own = _objective("rdpo", rate)
    mean = (1 - rate) * own.loss(r) + rate * own.loss(bandit.exchanged(r))
    return float(jnp.abs(mean - objective("dpo", beta=1.0).loss(r)).max())


def _data(config: ml_collections.ConfigDict, seed: int, rate: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """theta* [d], and x [n, d] of chosen minus rejected as labelled. Which labels flip depends on no loss."""
    rng = np.random.default_rng([seed, n])
    theta = rng.normal(size=config.width)
    theta *= config.norm / np.linalg.norm(theta)
    x = rng.normal(size=(n, config.width)) / np.sqrt(config.width)
    right = rng.random(n) < 1 / (1 + np.exp(-x @ theta))
    right ^= rng.random(n) < rate
    return theta, np.where(right, 1.0, -1.0)[:, None] * x


def _errors(config: ml_collections.ConfigDict, derivatives: Derivatives, rate: float, n: int) -> np.ndarray:
    """[seeds]: distance of the fitted theta from theta* in the norm of x's covariance, I / d."""
    drawn = [_data(config, seed, rate, n) for seed in range(config.num_seeds)]
    truth, x = (np.stack(part) for part in zip(*drawn, strict=True))
    return np.linalg.norm(_fit(derivatives, x) - truth, axis=1) / np.sqrt(config.width)


def _derivatives(own: Objective) -> Derivatives:
    """margins [...] -> first and second derivative of the loss in each, by one compiled call for all sizes."""

    def total(margins):
        r = Responses(logp=jnp.stack([margins, jnp.zeros_like(margins)], 1), reference_logp=jnp.zeros((_CHUNK, 2)))
        return own.loss(r).sum()

    slopes = jax.jit(lambda margins: jax.jvp(jax.grad(total), (margins,), (jnp.ones_like(margins),)))

    def of(margins):
        flat = np.zeros(-(-margins.size // _CHUNK) * _CHUNK)
        flat[: margins.size] = margins.ravel()
        parts = [slopes(chunk) for chunk in flat.reshape(-1, _CHUNK)]
        return tuple(np.concatenate(side)[: margins.size].reshape(margins.shape) for side in zip(*parts, strict=True))

    return of


def _fit(derivatives: Derivatives, x: np.ndarray, steps: int = 25) -> np.ndarray:
    """[seeds, d] that minimise the mean loss of x [seeds, n, d] . theta plus the ridge, within the norm."""
    seeds, n, width = x.shape
    theta = np.zeros((seeds, width))
    for _ in range(steps):
        first, second = derivatives((x @ theta[..., None])[..., 0])
        gradient = (first[:, None] @ x)[:, 0] / n + RIDGE * theta
        # One product a seed: NumPy hands stacks of transposed matrices to no BLAS.
        curvature = np.stack([(own * weight[:, None]).T @ own for own, weight in zip(x, second, strict=True)]) / n
        curvature += RIDGE * np.eye(width)
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        step *= np.minimum(1, 2 / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-12))
        theta = theta - step
        theta *= np.minimum(1, LARGEST / np.maximum(np.linalg.norm(theta, axis=1, keepdims=True), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return theta


def _sandwich(config: ml_collections.ConfigDict, rate: float, n: int) -> float:
    """The mean error that H^-1 G H^-1 / n predicts, H the curvature of the clean loss and G the variance of the slope.

    With z = x . theta* and s = sigmoid(z): the slope of rDPO in z for a label that is right is -(1 - s) - e / (1 - 2e),
    for one that is wrong, taken along -z, the opposite sign of -s - e / (1 - 2e). Expectations over 200,000 draws of x.
    """
    rng = np.random.default_rng(7)
    theta = np.eye(config.width)[0] * config.norm
    x = rng.normal(size=(200_000, config.width)) / np.sqrt(config.width)
    s = 1 / (1 + np.exp(-x @ theta))
    extra = rate / (1 - 2 * rate)
    seen = s * (1 - rate) + (1 - s) * rate
    square = seen * (1 - s + extra) ** 2 + (1 - seen) * (s + extra) ** 2
    curvature = (x * (s * (1 - s))[:, None]).T @ x / len(x)
    inverse = np.linalg.inv(curvature)
    covariance = inverse @ ((x * square[:, None]).T @ x / len(x)) @ inverse / n / config.width
    errors = rng.multivariate_normal(np.zeros(config.width), covariance, size=20_000)
    return float(np.linalg.norm(errors, axis=1).mean())


def _off_size(results: Results, setting: Setting) -> float:
    return abs(results.mean(setting.key, "ours", "error") / results.mean(setting.key, "known", "error") - 1)


def _best_of(results: Results, setting: Setting) -> float:
    """rDPO's error at the largest n minus this loss's smallest at any n."""
    rdpo = results.mean(f"rdpo {setting.labels['flip rate']}", "ours", "error")
    return rdpo - float(results.curve(setting.key, "ours", "error")[1].mean(axis=0).min())


CLAIMS = (
    Claim(
        "rate",
        "rDPO's error falls as n^-0.5 at every flip rate: slope within 0.1",
        lambda s: s.labels["loss"] == "rdpo",
        away_from("known"),
        0.1,
    ),
    Claim(
        "plateau",
        "DPO's and cDPO's errors stop falling: slope within 0.1 of 0 from a flip rate of 0.2 on",
        lambda s: s.labels["loss"] in ("dpo", "cdpo"),
        away_from("known"),
        0.1,
    ),
    Claim(
        "farther",
        "rDPO's error at the largest n is smaller than DPO's and cDPO's at any n",
        lambda s: s.labels["loss"] in ("dpo", "cdpo"),
        _best_of,
    ),
    Claim(
        "size",
        "rDPO's error at the largest n is within 15 % of what the sandwich variance predicts",
        lambda s: s.metric == "error",
        _off_size,
        0.15,
    ),
    Claim(
        "unbiased",
        "(1 - e) L(w, l) + e L(l, w) is the DPO loss",
        lambda s: s.metric == "gap",
        lambda results, s: results.mean(s.key, "ours", "gap"),
        1e-12,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Slopes of the error in log n: rDPO's near -1/2 at all five flip rates, DPO's and cDPO's near 0 from 0.2 on; and
    rDPO's error at the largest n beside what the sandwich variance predicts, growing with the flip rate."""
    shown = [setting for setting in SETTINGS if setting.metric != "gap"]
    return figures.dots(results, shown, known="known", ours="ours")
