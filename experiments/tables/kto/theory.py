"""KTO, section 4.3: which examples it learns from, and what contradicting raters do to it (arXiv 2402.01306).

COMMAND  python -m experiments.run kto.theory
TIME     5 s on two CPU cores
RESULT   The push on a response is beta s (1 - s), s = sigma(beta (r - z0)): it fades both ways, for either label (4.1).
         A reward shifted by prompt has the same optimal policy and another KTO loss (4.2). Two raters who contradict
         each other leave KTO where it is, while DPO's minimisers lose any amount of mass on both responses (4.3).

PROTOCOL Proposition 4.1: the gradient of `prefjax.losses.kto` in logp at beta (a - z0) = -7 .. 7, z0 = 2 nats. Theorem
         4.2: three prompts with four responses each, uniform reference, reward r and r + (0, 2, -2). Theorem 4.3: three
         actions, each of two raters prefers another of the first two; for KTO four labelled examples. float64.
COLUMNS  closed form: what the statement says, computed without the loss. ours: gradient or value of the loss itself.

TRY      --config.beta=1.0   the same curve, ten times narrower in nats
         --config.z0=0.0     no reference point: the gradient is largest where policy == reference
         --config.mass=0.5   how far DPO's second minimiser moves the mass of both responses away
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import figures
from experiments.tables.harness import EXACT, Claim, Results, Row, Setting, Table, away_from, by_column
from prefjax.losses import Responses, objective

PLACES = (-7.0, -3.0, -1.0, 0.0, 1.0, 3.0, 7.0)  # beta (a - z0)
LABELS = {"desirable": 1.0, "undesirable": 0.0}
SHIFTS = np.array([0.0, 2.0, -2.0])

TABLE = Table("Proposition 4.1, Theorems 4.2 and 4.3", ("closed form", "ours"), 0.1, EXACT, float64=True)
_SHIFT, _CONTRADICTION = "r + h(x)", "contradiction"
SETTINGS = (
    *(
        Setting({"statement": "4.1", "about": f"{label} {place:g}"}, "dL/dlogp / beta", "prop41")
        for label in LABELS
        for place in PLACES
    ),
    Setting({"statement": "4.2", "about": f"{_SHIFT}, optimal policy"}, "largest change", "thm42"),
    Setting({"statement": "4.2", "about": f"{_SHIFT}, KTO loss"}, "change of the loss", "thm42"),
    Setting({"statement": "4.3", "about": f"{_CONTRADICTION}, KTO"}, "largest gradient", "thm43"),
    Setting({"statement": "4.3", "about": f"{_CONTRADICTION}, DPO"}, "loss above the minimum", "thm43"),
    Setting({"statement": "4.3", "about": f"{_CONTRADICTION}, DPO moved"}, "mass of both", "thm43"),
)
PROTOCOL = {"beta": 0.1, "z0": 2.0, "mass": 0.05}
SIZES: dict[str, dict] = {"smoke": {}, "long": {}, "paper": {}}


def cells(config: ml_collections.ConfigDict) -> list[str]:
    return ["4.1", "4.2", "4.3"]


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    rows = {"4.1": _saturation, "4.2": _shift, "4.3": _contradiction}[cell](config)
    for about, metric, closed, ours in rows:
        yield from by_column(f"{cell} {about}", metric, {"closed form": closed, "ours": ours})


def _loss(log_ratio, target, *, beta: float, z0: float = 0.0):
    """KTO's losses [B] of single responses with these log-ratios [B] and labels [B]."""
    zeros = jnp.zeros_like(log_ratio)
    r = Responses(
        logp=log_ratio[:, None],
        reference_logp=zeros[:, None],
        target=jnp.asarray(target)[:, None],
        baseline_logp=zeros + z0,
        baseline_reference_logp=zeros,
    )
    return objective("kto", beta=beta).loss(r)


def _saturation(config):
    places = np.array(PLACES)
    share = 1 / (1 + np.exp(-places))
    for label, target in LABELS.items():
        total = lambda a, target=target: _loss(a, jnp.full(a.shape, target), beta=config.beta, z0=config.z0).sum()
        gradient = jax.jit(jax.grad(total))(places / config.beta + config.z0) / config.beta
        closed = (1 - 2 * target) * share * (1 - share)
        for place, known, ours in zip(PLACES, closed, gradient, strict=True):
            yield f"{label} {place:g}", "dL/dlogp / beta", known, ours


def _shift(config):
    """r and r' = r + h(x), both as the implicit reward beta log pi / ref of all twelve responses."""
    reward = np.linspace(-1.0, 1.0, 12).reshape(3, 4)
    shifted = reward + SHIFTS[:, None]
    policies = [np.exp(r / config.beta - (r / config.beta).max(1, keepdims=True)) for r in (reward, shifted)]
    policies = [p / p.sum(1, keepdims=True) for p in policies]
    yield f"{_SHIFT}, optimal policy", "largest change", 0.0, np.abs(policies[0] - policies[1]).max()
    desirable = np.ones(12)
    mean_loss = jax.jit(lambda ratios: _loss(ratios, desirable, beta=config.beta).mean())
    losses = [float(mean_loss(r.ravel() / config.beta)) for r in (reward, shifted)]
    human = [np.mean(1 / (1 + np.exp(r))) for r in (reward, shifted)]
    yield f"{_SHIFT}, KTO loss", "change of the loss", human[1] - human[0], losses[1] - losses[0]


def _contradiction(config):
    """Three actions, uniform reference; rater 1 prefers the first to the second, rater 2 the second to the first."""
    uniform = np.full(3, -np.log(3.0))
    seen, target = np.array([0, 1, 1, 0]), np.array([1.0, 0.0, 1.0, 0.0])

    def of_raters(theta):
        return _loss((jax.nn.log_softmax(theta) - uniform)[seen], target, beta=config.beta).sum()

    def of_pairs(logp):
        pairs = np.array([[0, 1], [1, 0]])
        r = Responses(logp=logp[pairs], reference_logp=jnp.asarray(uniform[pairs]))
        return objective("dpo", beta=config.beta).loss(r).mean()

    moved = np.log(np.array([config.mass / 2, config.mass / 2, 1 - config.mass]))
    gradient = np.asarray(jax.jit(jax.grad(of_raters))(np.zeros(3)))
    yield f"{_CONTRADICTION}, KTO", "largest gradient", 0.0, np.abs(gradient).max()
    yield f"{_CONTRADICTION}, DPO", "loss above the minimum", 0.0, float(jax.jit(of_pairs)(moved)) - np.log(2)
    yield f"{_CONTRADICTION}, DPO moved", "mass of both", config.mass, np.exp(moved)[:2].sum()


def _about(statement: str, words: str = "") -> Callable[[Setting], bool]:
    return lambda s: s.labels["statement"] == statement and words in s.labels["about"]


_off = away_from("closed form")
CLAIMS = (
    Claim("saturates", "the gradient is -+beta s (1 - s), largest at a = z0 (beta / 4)", _about("4.1"), _off, 1e-12),
    Claim(
        "same_policy",
        "r and r + h(x) have one optimal policy, and the KTO loss changes by what the value function says",
        _about("4.2"),
        _off,
        1e-12,
    ),
    Claim(
        "another_loss",
        "r and r + h(x) have different KTO losses (bound on minus the size of the change)",
        _about("4.2", "KTO loss"),
        lambda results, s: -abs(results.mean(s.key, "ours", s.metric)),
        -0.01,
    ),
    Claim(
        "contradiction",
        "two contradicting raters give KTO no gradient at the reference, and DPO the same minimal loss log 2 with 5 % "
        "of the mass left on both responses as with two thirds",
        _about("4.3"),
        _off,
        1e-12,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """The gradient of KTO in the log-prob over beta at seven places for either label: a bell around a = z0 that fades
    to nothing at 7, down for desirable and up for undesirable responses; every number on its closed form."""
    shown = [setting for setting in SETTINGS if setting.labels["statement"] == "4.1"]
    return figures.dots(results, shown, known="closed form", ours="ours")
