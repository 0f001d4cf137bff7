"""IPO, section 5.3.1: two arms, one of which always wins (arXiv 2310.12036v2).

COMMAND  python -m experiments.run ipo.asymptotic
TIME     5 s on two CPU cores
RESULT   IPO's minimiser is sigma(0.5 / tau) to rounding, and the optimum of equation 9 with it; DPO's margin grows by
         log(10) / beta with every ten times the steps, whatever beta is: it has no minimiser.

PROTOCOL Two arms, p(y1 beats y2) = 1, uniform reference, uniform mu. Then p(y1 beats mu) = 3/4 and p(y2 beats mu) =
         1/4, and equation 9 is the softmax of these over tau. IPO: where the gradient of the population loss of
         `prefjax.losses.ipo` changes sign, by bisection. DPO: gradient descent on the margin from 0, step size
         1 / beta^2; beta is the paper's tau. float64.
COLUMNS  closed form: sigma(0.5 / tau) for IPO, the limit 1 for DPO. ours: pi(y1) at the minimiser, or after the last
         step.

TRY      --config.steps=1000000   DPO comes closer to 1 at every beta; the IPO rows stay
         --config.prefer=0.9      raters who err: IPO's target shrinks to (2 p - 1) / (2 tau), DPO stops moving
         --config.decades=2       fewer checkpoints of DPO's way
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import bandit, figures
from experiments.tables.harness import EXACT, SIGN, Claim, Results, Row, Setting, Table
from prefjax.losses import objective

TAUS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 10.0)
TABLE = Table("Section 5.3.1, the asymptotic setting", ("closed form", "ours"), 0.1, EXACT, float64=True)
SETTINGS = tuple(
    Setting({"loss": loss, "tau": tau}, "pi(y1)", f"asymptotic_{loss}") for loss in ("ipo", "dpo") for tau in TAUS
)
PROTOCOL = {"prefer": 1.0, "steps": 100_000, "decades": 3}
SIZES = {"smoke": {"steps": 1_000, "decades": 2}, "long": {"steps": 1_000_000, "decades": 4}, "paper": {}}


def cells(config: ml_collections.ConfigDict) -> list[str]:
    return ["ipo", "dpo"]


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """pi(y1) and the margin h: at IPO's minimiser; of DPO at every power of ten of steps."""
    if cell == "ipo":
        for tau in TAUS:
            margin = bandit.minimiser(bandit.population_loss(objective("ipo", tau=tau), config.prefer))
            equation_9 = np.exp(np.array([0.25 + config.prefer / 2, 0.75 - config.prefer / 2]) / tau)
            yield Row(f"ipo {tau}", "closed form", "pi(y1)", None, None, _share((config.prefer - 0.5) / tau))
            yield Row(f"ipo {tau}", "equation 9", "pi(y1)", None, None, float(equation_9[0] / equation_9.sum()))
            yield Row(f"ipo {tau}", "ours", "pi(y1)", None, None, _share(margin))
        return
    stops = [round(config.steps / 10**back) for back in reversed(range(config.decades))]
    for tau, margins in zip(TAUS, _descend(stops, config.prefer), strict=True):
        yield Row(f"dpo {tau}", "closed form", "pi(y1)", None, None, 1.0)
        for step, margin in zip(stops, margins, strict=True):
            yield Row(f"dpo {tau}", "ours", "pi(y1)", None, step, _share(margin))
            yield Row(f"dpo {tau}", "ours", "beta h", None, step, float(margin * tau))


def _share(margin: float) -> float:
    """pi(y1) at a margin over the uniform reference."""
    return float(1 / (1 + np.exp(-margin)))


def _descend(stops: list[int], prefer: float) -> np.ndarray:
    """[taus, stops]: DPO's margin after so many steps of gradient descent, for every beta at once."""
    losses = [bandit.population_loss(objective("dpo", beta=beta), prefer) for beta in TAUS]

    def step(margins):
        slopes = [jax.grad(loss)(margin) / beta**2 for loss, margin, beta in zip(losses, margins, TAUS, strict=True)]
        return margins - jnp.stack(slopes)

    @jax.jit
    def walk(margins, count):
        return jax.lax.fori_loop(0, count, lambda _, margins: step(margins), margins)

    margins, reached, seen = jnp.zeros(len(TAUS)), 0, []
    for stop in stops:
        margins, reached = walk(margins, stop - reached), stop
        seen.append(np.asarray(margins))
    return np.stack(seen, axis=1)


def _off(results: Results, setting: Setting) -> float:
    values = [results.mean(setting.key, col, "pi(y1)") for col in ("ours", "closed form", "equation 9")]
    return max(values) - min(values)


def _off_log10(results: Results, setting: Setting) -> float:
    """How far the growth of beta h per ten times the steps is from log 10, at worst."""
    return float(np.abs(np.diff(results.curve(setting.key, "ours", "beta h")[1][0]) - np.log(10)).max())


CLAIMS = (
    Claim(
        "ipo_closed_form",
        "IPO's minimiser, sigma(0.5 / tau) and the optimum of equation 9 are one number",
        lambda s: s.labels["loss"] == "ipo",
        _off,
        1e-8,
    ),
    Claim(
        "dpo_grows",
        "DPO's beta h grows by log 10 = 2.303 with every ten times the steps, so pi(y1) goes to 1 at every beta",
        lambda s: s.labels["loss"] == "dpo",
        _off_log10,
        0.05,
        SIGN,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """pi(y1) of every loss and tau: IPO's lie in the middle of their closed forms, from nearly 1 at tau = 0.05 down to
    0.51 at tau = 10; DPO's are near their limit 1 for small beta and below it for large beta, still moving."""
    return figures.dots(results, SETTINGS, known="closed form", ours="ours")
