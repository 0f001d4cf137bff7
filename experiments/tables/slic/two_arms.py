"""SLiC-HF, equation 4 on two arms: where calibration and the likelihood of the targets balance (arXiv 2305.10425).

COMMAND  python -m experiments.run slic.two_arms
TIME     3 s on two CPU cores
RESULT   The policy ends with exactly the margin delta between the arms, unless the targets ask for more and no label
         contradicts; where the labels cancel each other, it ends on the targets, within delta.

PROTOCOL Two arms; raters prefer the first with probability p; the regulariser's target is the first arm with
         probability q (the SFT targets). Population loss of `prefjax.losses.slic` with the targets' mean
         log-likelihood, regularizer weight 0.1, delta 1; where its gradient changes sign, by bisection. float64.
COLUMNS  closed form: the hinges of both labels have a constant slope s on each side of +-delta, so the optimum is
         where pi(1) = q - s / weight on one of the three pieces, or a kink between two. ours: the minimiser.

TRY      --config.delta=5.0                 the margin that calibration asks for
         --config.regularizer_weight=10.0   the targets outweigh calibration
         --config.regularizer_weight=0.001  the same optima as at 0.1: the weight decides only what wins
"""

import math
from collections.abc import Iterator

import jax
import matplotlib.figure
import ml_collections

from experiments.tables import bandit, figures
from experiments.tables.harness import EXACT, Claim, Results, Row, Setting, Table, away_from, by_column
from prefjax.losses import objective

TARGETS = (0.2, 0.5, 0.9)
PREFER = (1.0, 0.8, 0.5)
TABLE = Table("Equation 4 (no table of the paper)", ("closed form", "ours"), 0.05, EXACT, float64=True)
SETTINGS = tuple(Setting({"p": p, "q": q}, "log pi(1) / pi(2)") for p in PREFER for q in TARGETS)
PROTOCOL = {"delta": 1.0, "regularizer_weight": 0.1}
SIZES: dict[str, dict] = {"smoke": {}, "long": {}, "paper": {}}


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    own = objective("slic", delta=config.delta, regularizer_weight=config.regularizer_weight)

    @jax.jit
    def slope(margin, prefer, target):
        def loss(margin):
            r = bandit.pair(margin)
            likelihood = target * r.logp[:, 0] + (1 - target) * r.logp[:, 1]
            sides = (x.replace(auxiliary_logp=likelihood) for x in (r, bandit.exchanged(r)))
            chosen, rejected = (own.loss(x)[0] for x in sides)
            return prefer * chosen + (1 - prefer) * rejected

        return jax.grad(loss)(margin)

    for p in PREFER:
        for q in TARGETS:
            ours = bandit.crossing(lambda margin, p=p, q=q: float(slope(margin, p, q)))
            known = closed_form(p, q, config.delta, config.regularizer_weight)
            yield from by_column(f"{p} {q}", "log pi(1) / pi(2)", {"closed form": known, "ours": ours})


def closed_form(p: float, q: float, delta: float, weight: float) -> float:
    """The log-ratio x at which p max(0, delta - x) + (1 - p) max(0, delta + x) plus weight times the cross-entropy of
    the targets is least: the latter's slope is weight (pi(1) - q)."""
    for low, high, slope in ((-math.inf, -delta, -p), (-delta, delta, 1 - 2 * p), (delta, math.inf, 1 - p)):
        share = q - slope / weight
        if share >= 1:
            continue  # falling all along this piece
        at = math.log(share / (1 - share)) if share > 0 else -math.inf
        if at <= high:
            return max(at, low)
    return math.inf


_TEXT = "the minimiser is where the closed form says"
CLAIMS = (Claim("optimum", _TEXT, lambda s: True, away_from("closed form"), 1e-6),)


def plot(results: Results) -> matplotlib.figure.Figure:
    """The log-ratio of the two arms at the optimum: delta = 1 wherever the labels agree, more where the targets ask for
    more, and the targets' own where the labels contradict each other; ours on the closed form."""
    return figures.dots(results, SETTINGS, known="closed form", ours="ours")
