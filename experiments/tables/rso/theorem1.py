"""RSO, Theorem 1 and Algorithm 1: what rejection sampling accepts, and where both losses end (arXiv 2309.06657).

COMMAND  python -m experiments.run rso.theorem1
TIME     15 s on two CPU cores
RESULT   beta to 0 accepts the best 8 of 64 candidates, beta to infinity the first 8; in between the acceptance rate is
         E[exp((r - r_max) / beta)], and what is accepted follows the optimal policy. The sigmoid loss of two arms ends
         at log(p / (1 - p)) / gamma, the hinge loss at 1 / gamma.

PROTOCOL `prefjax.data.methods.sampling.rejection_sample`. Limits: 64 candidates, rewards N(0, 1), choose 8; 500 draws.
         Rate: how long the first acceptance takes. Law: eight actions, reference of random log-odds, 256 candidates
         from it, accept one; 20,000 draws; chi-square against the optimal policy. Losses: `prefjax.losses.rso_sigmoid`
         and `rso_hinge` on two arms of which 80 % of raters prefer the first; where the gradient changes sign.
COLUMNS  closed form: from the same candidates in the limits (so equal to rounding), by formula elsewhere.

TRY      --config.draws=5000          ten times the draws: the rates agree to another half digit
         --config.candidates=256      more candidates: the best 8 are better, and beta = 0.5 accepts fewer of them
         --config.gamma=0.5           the losses ask for a tenth of the margin
"""

from collections.abc import Callable, Iterator

import matplotlib.figure
import ml_collections
import numpy as np
import scipy.stats

from experiments.tables import bandit, figures
from experiments.tables.harness import EXACT, Claim, Results, Row, Setting, Table, away_from, by_column
from prefjax.data.methods.sampling import rejection_sample
from prefjax.losses import objective

BETAS = (1e-6, 0.5, 5.0, 1e6)
LOSSES = ("rso_sigmoid", "rso_hinge")
PREFER = 0.8
TABLE = Table("Theorem 1, Algorithm 1, equations 8 and 10", ("closed form", "ours"), 0.25, EXACT, float64=True)
SETTINGS = (
    Setting({"about": "mean reward of the accepted", "beta": BETAS[0]}, "value", "limit_0"),
    Setting({"about": "mean reward of the accepted", "beta": BETAS[-1]}, "value", "limit_infinity"),
    *(Setting({"about": "first-round acceptance rate", "beta": beta}, "value", "rate") for beta in BETAS[1:3]),
    *(Setting({"about": "law of the accepted, distance", "beta": beta}, "value", "law") for beta in BETAS[1:3]),
    *(Setting({"about": f"margin at the optimum of {loss}", "beta": "—"}, "value") for loss in LOSSES),
)
PROTOCOL = {"candidates": 64, "count": 8, "draws": 500, "law_draws": 20_000, "gamma": 0.05}
SIZES = {"smoke": {"draws": 200, "law_draws": 2_000}, "long": {"draws": 20_000, "law_draws": 200_000}, "paper": {}}


def cells(config: ml_collections.ConfigDict) -> list[str]:
    return ["limits", "rates", "law", "losses"]


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    for about, beta, closed, ours, more in {"limits": _limits, "rates": _rates, "law": _law, "losses": _losses}[cell](
        config
    ):
        key = f"{about} {beta}"
        yield from by_column(key, "value", {"closed form": closed, "ours": ours})
        for metric, value in more.items():
            yield Row(key, "ours", metric, None, None, float(value))


def _limits(config):
    """The mean reward of the accepted, and of the best and of the first of the same candidates."""
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(config.draws, config.candidates))
    for beta, known in (
        (BETAS[0], np.sort(reward, axis=1)[:, -config.count :].mean()),
        (BETAS[-1], reward[:, : config.count].mean()),
    ):
        accepted = [row[rejection_sample(row, config.count, beta, rng)].mean() for row in reward]
        yield "mean reward of the accepted", beta, known, np.mean(accepted), {}


def _rates(config):
    """Candidates tried until the first is accepted are geometric with the acceptance rate of the first round."""
    rng = np.random.default_rng(1)
    actions = rng.normal(size=config.candidates)  # one pool: the best reward is the same in every draw
    for beta in BETAS[1:3]:
        rate = np.exp((actions - actions.max()) / beta).mean()
        tried = []
        for _ in range(10 * config.draws):
            stream = np.concatenate([rng.choice(actions, size=40 * config.candidates), [actions.max()]])
            tried.append(rejection_sample(stream, 1, beta, rng)[0] + 1)
        ours = 1 / np.mean(tried)
        error = rate * np.sqrt((1 - rate) / len(tried))
        yield "first-round acceptance rate", beta, rate, ours, {"standard errors": abs(ours - rate) / error}


def _law(config):
    """Total variation between what is accepted and ref exp(reward / beta) / Z, and chi-square's p."""
    rng = np.random.default_rng(2)
    reward, reference = rng.normal(size=8), rng.dirichlet(np.full(8, 4.0))
    for beta in BETAS[1:3]:
        best = reference * np.exp(reward / beta)
        best /= best.sum()
        seen = np.zeros(8)
        for _ in range(config.law_draws):
            stream = rng.choice(8, size=256, p=reference)
            seen[stream[rejection_sample(reward[stream], 1, beta, rng)[0]]] += 1
        p = scipy.stats.chisquare(seen, best * config.law_draws).pvalue
        distance = np.abs(seen / config.law_draws - best).sum() / 2
        yield "law of the accepted, distance", beta, 0.0, distance, {"p": p}


def _losses(config):
    known = {"rso_sigmoid": np.log(PREFER / (1 - PREFER)) / config.gamma, "rso_hinge": 1 / config.gamma}
    for loss in LOSSES:
        margin = bandit.minimiser(bandit.population_loss(objective(loss, gamma=config.gamma), PREFER))
        yield f"margin at the optimum of {loss}", "—", known[loss], margin, {}


def _about(words: str) -> Callable[[Setting], bool]:
    return lambda s: words in s.labels["about"]


CLAIMS = (
    Claim(
        "limits",
        "beta to 0 accepts the best by reward, beta to infinity the first that come: equal on the same candidates",
        _about("mean reward"),
        away_from("closed form"),
        1e-12,
    ),
    Claim(
        "rate",
        "a candidate is accepted with probability E[exp((r - r_max) / beta)]: within 3 standard errors",
        _about("rate"),
        lambda results, s: results.mean(s.key, "ours", "standard errors"),
        3.0,
    ),
    Claim(
        "law",
        "what is accepted follows the optimal policy: chi-square's p is above 0.01 (0.01 - p)",
        _about("law"),
        lambda results, s: 0.01 - results.mean(s.key, "ours", "p"),
    ),
    Claim(
        "losses",
        "the sigmoid loss is least at log(p / (1 - p)) / gamma, the hinge loss at 1 / gamma",
        _about("margin"),
        away_from("closed form"),
        1e-6,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Mean reward of the accepted in both limits, acceptance rates and distances from the optimal policy, each on its
    closed form."""
    return figures.dots(results, SETTINGS[:-2], known="closed form", ours="ours")
