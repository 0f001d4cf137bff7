"""IPO, Figures 1 and 2: DPO forgets the reference policy, IPO does not (arXiv 2310.12036v2, section 5.4).

COMMAND  python -m experiments.run ipo.fig1_fig2
TIME     15 s on two CPU cores (2 s of it training; the rest is compiling, plotting and writing)
RESULT   IPO ends on its closed form for every tau; DPO ends deterministic whatever tau is, except tau = 5, where it is
         still on its way after 18,000 steps; D3 as printed in the paper cannot give Figure 2 (erratum, see NOTES.md).

PROTOCOL Three actions a, b, c; policy softmax(theta), uniform reference, theta = 0 at the start. A data set is a list
         of pairs (winner, loser). 18,000 Adam steps at learning rate 0.01 on minibatches of 9 pairs drawn uniformly
         with replacement; 10 seeds, each with the same minibatches for both losses and every tau. tau is IPO's tau and
         DPO's beta. Training in float32, closed forms in float64.
COLUMNS  closed form: for IPO the least-squares solution of theta_winner - theta_loser = 1 / (2 tau), for DPO the limit
         of infinitely many steps. ours: mean and 95 % confidence interval (Student's t) over seeds at the last step.

TRY      --config.learning_rate=0.001  the same ends with a third of the noise; DPO is farther from its limit by then
         --config.batch_size=90        ten times the pairs a step, and much less gain: Adam rescales the noise it sees
         --config.steps=100000         DPO at tau = 5 reaches pi(a) = 0.996 on D1; IPO stays where it was
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.tables import figures
from experiments.tables.harness import (
    EXACT,
    NOT_REPRODUCED,
    ORDER,
    SIGN,
    Claim,
    Results,
    Row,
    Setting,
    Table,
    UsageError,
    mean_interval,
    over_seeds,
)
from prefjax.losses import OBJECTIVES, Responses

ACTIONS = "abc"
PROBABILITIES = tuple(f"pi({action})" for action in ACTIONS)
DATA = {  # (winner, loser) by letter
    "D1": ("ab", "bc", "ac"),
    "D2": ("ab", "bc", "ca"),
    "D3 as printed": ("ab", "ba"),
    "D3 tie + loss": ("ab", "ba", "bc"),
    "D3 chain": ("ab", "bc"),
}
STRENGTH = {"dpo": "beta", "ipo": "tau"}  # the loss's option that the paper calls tau
TAUS = (0.1, 0.5, 1.0, 5.0)

TABLE = Table(shows="Figures 1 and 2", columns=("closed form", "ours"), minutes=0.25, verdict=EXACT)


def _setting(data: str, loss: str, tau: float) -> Setting:
    """D1 is about the winner a, D3 about the loser c; the paper says nothing of D2 that would go into a cell."""
    fact = None if data == "D2" else f"{data[:2].lower()}_{loss}"
    return Setting({"data": data, "loss": loss, "tau": tau}, "pi(c)" if data.startswith("D3") else "pi(a)", fact)


SETTINGS = tuple(itertools.starmap(_setting, itertools.product(DATA, STRENGTH, TAUS)))


# The paper's protocol. :smoke takes bigger steps on bigger minibatches, and fewer of them.
PROTOCOL = {"steps": 18_000, "record_every": 100, "learning_rate": 0.01, "batch_size": 9, "num_seeds": 10}
SIZES = {
    "smoke": {"steps": 2_000, "learning_rate": 0.03, "batch_size": 256, "num_seeds": 3},
    "long": {"num_seeds": 50},
    "paper": {},
}


def _actions(data: str) -> np.ndarray:
    """[pairs, 2]: the winner and the loser of each pair as action numbers."""
    return np.array([[ACTIONS.index(action) for action in pair] for pair in DATA[data]])


def ipo_closed_form(pairs: np.ndarray, tau: float) -> Float[np.ndarray, "3"]:
    """The policy that minimises the mean IPO loss over `pairs` [pairs, 2]; the reference is uniform.

    The loss is a sum of squares in theta, one per pair: (theta_winner - theta_loser - 1 / (2 tau))^2. Where that leaves
    directions free, gradient steps from 0 do not move along them: the solution of least norm.
    """
    differences = np.eye(len(ACTIONS))[pairs[:, 0]] - np.eye(len(ACTIONS))[pairs[:, 1]]
    theta = np.linalg.lstsq(differences, np.full(len(pairs), 1 / (2 * tau)))[0]
    return np.exp(theta) / np.exp(theta).sum()


def dpo_limit(pairs: np.ndarray) -> Float[np.ndarray, "3"]:
    """The policy that the mean DPO loss over `pairs` [pairs, 2] is driven to, whatever beta; the reference is uniform.

    An action that another one beats, directly or through others, and never the other way round, falls behind that one
    without bound. The actions that are left share the probability, and equally, as in every data set here each of them
    beats the others as often as it is beaten.
    """
    beats = np.zeros((len(ACTIONS), len(ACTIONS)), dtype=bool)
    beats[pairs[:, 0], pairs[:, 1]] = True
    for _ in ACTIONS:
        beats |= beats @ beats
    left = ~np.any(beats & ~beats.T, axis=0)
    return left / left.sum()


def _train(key: jax.Array, config: ml_collections.ConfigDict) -> Float[Array, "records settings data 3"]:
    """One seed: policies of every (loss, tau) on every data set, after 0, record_every, ... steps."""
    num_pairs = jnp.array([len(pairs) for pairs in DATA.values()])
    most = max(len(pairs) for pairs in DATA.values())
    # Every data set as `most` pairs; those beyond its own are never drawn.
    pairs = jnp.array([np.resize(_actions(data), (most, 2)) for data in DATA])
    settings = tuple(itertools.product(STRENGTH, TAUS))
    optimizer = optax.adam(config.learning_rate)

    def batch_loss(logp, pairs, share, *, loss, tau):
        responses = Responses(logp=logp[pairs], reference_logp=jnp.full(pairs.shape, -jnp.log(float(len(ACTIONS)))))
        return jnp.dot(share, OBJECTIVES[loss].loss(responses, **{STRENGTH[loss]: tau}))

    def total_loss(theta, shares):
        logp = jax.nn.log_softmax(theta)
        # No theta is in the loss of another setting, and Adam is elementwise: each is trained as if it were alone.
        return sum(
            jax.vmap(functools.partial(batch_loss, loss=loss, tau=tau))(logp[i], pairs, shares).sum()
            for i, (loss, tau) in enumerate(settings)
        )

    def update(state, key):
        theta, moments = state
        drawn = jax.random.randint(key, (len(DATA), config.batch_size), 0, num_pairs[:, None])
        # All that a minibatch says is how often it holds each pair.
        shares = jnp.mean(drawn[:, :, None] == jnp.arange(most)[None, None, :], axis=1, dtype=jnp.float32)
        updates, moments = optimizer.update(jax.grad(total_loss)(theta, shares), moments)
        return (optax.apply_updates(theta, updates), moments), None

    def record(state, keys):
        return jax.lax.scan(update, state, keys)[0], jax.nn.softmax(state[0])

    theta = jnp.zeros((len(settings), len(DATA), len(ACTIONS)))
    keys = jax.random.split(key, (config.steps // config.record_every, config.record_every))
    (theta, _), policies = jax.lax.scan(record, (theta, optimizer.init(theta)), keys)
    return jnp.concatenate([policies, jax.nn.softmax(theta)[None]])


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """The closed forms and the learning curves of every setting.

    Raises:
        UsageError: config.steps is not a multiple of config.record_every.
    """
    if config.steps < config.record_every or config.steps % config.record_every:
        raise UsageError(f"config.steps={config.steps} must be a multiple of record_every={config.record_every}")
    curves = over_seeds(functools.partial(_train, config=config), config.num_seeds)
    curves = curves.reshape(*curves.shape[:2], len(STRENGTH), len(TAUS), len(DATA), len(ACTIONS))
    for (d, data), (i, loss), (j, tau) in itertools.product(enumerate(DATA), enumerate(STRENGTH), enumerate(TAUS)):
        key = _setting(data, loss, tau).key
        exact = ipo_closed_form(_actions(data), tau) if loss == "ipo" else dpo_limit(_actions(data))
        for a, metric in enumerate(PROBABILITIES):
            yield Row(key, "closed form", metric, None, None, float(exact[a]))
            for (seed, t), value in np.ndenumerate(curves[:, :, i, j, d, a]):
                yield Row(key, "ours", metric, seed, t * config.record_every, float(value))


def _gap(results: Results, setting: Setting, metrics: Sequence[str] = PROBABILITIES) -> float:
    """Largest distance of our mean from the closed form."""
    return max(abs(results.mean(setting.key, "ours", m) - results.mean(setting.key, "closed form", m)) for m in metrics)


def _shown_gap(results: Results, setting: Setting) -> float:
    return _gap(results, setting, (setting.metric,))


def _still_moving(results: Results, setting: Setting) -> float:
    """Upper end of the 95 % interval of the change in the second half of training, counted towards the limit."""
    curve = results.curve(setting.key, "ours", setting.metric)[1]
    distance = np.abs(curve - results.mean(setting.key, "closed form", setting.metric))
    mean, half = mean_interval(distance[:, -1] - distance[:, distance.shape[1] // 2])
    return float(mean + half)


def _farther_than_smaller_tau(results: Results, setting: Setting) -> float:
    """Total variation distance from the uniform reference, minus the same at the next smaller tau."""
    data, loss, tau = setting.labels.values()
    smaller = _setting(data, loss, TAUS[TAUS.index(tau) - 1])
    here, there = (
        sum(abs(results.mean(s.key, "ours", m) - 1 / len(ACTIONS)) for m in PROBABILITIES) / 2
        for s in (setting, smaller)
    )
    return here - there


def _about(loss: str, data: Sequence[str], taus: Sequence[float] = TAUS) -> Callable[[Setting], bool]:
    """Selects settings: one loss, some data sets, some values of tau."""
    return lambda s: s.labels["loss"] == loss and s.labels["data"] in data and s.labels["tau"] in taus


_ORDERED = ("D1", "D3 tie + loss", "D3 chain")
CLAIMS = (
    Claim(
        "ipo_closed_form",
        "IPO ends on its closed form: every probability within 0.03 of it",
        _about("ipo", ("D2", *_ORDERED)),
        _gap,
        0.03,
    ),
    Claim(
        "ipo_regularised",
        "IPO ends nearer to the reference the larger tau is (change of the distance from one tau to the next)",
        _about("ipo", _ORDERED, TAUS[1:]),
        _farther_than_smaller_tau,
        verdict=ORDER,
    ),
    Claim(
        "dpo_saturates",
        "DPO forgets the reference: within 0.01 of its deterministic limit, the same for tau = 0.1, 0.5 and 1",
        _about("dpo", _ORDERED, TAUS[:3]),
        _shown_gap,
        0.01,
    ),
    Claim(
        "dpo_still_moving",
        "DPO at tau = 5 is not there yet but still moving: its distance to the limit shrinks over the second half",
        _about("dpo", _ORDERED, TAUS[3:]),
        _still_moving,
        verdict=SIGN,
    ),
    Claim(
        "dpo_cycle",
        "on the cycle D2 DPO has a finite optimum, the reference: the shown probability within 0.03 of it",
        _about("dpo", ("D2",)),
        _shown_gap,
        0.03,
    ),
    Claim(
        "erratum_d3",
        "erratum: D3 as printed, {(a,b), (b,a)}, has no gradient on c, so pi(c) stays within 0.005 of 1/3 for both "
        "losses and every tau; Figure 2 cannot come from it",
        lambda s: s.labels["data"] == "D3 as printed",
        lambda results, s: abs(results.mean(s.key, "ours", "pi(c)") - 1 / 3),
        0.005,
        NOT_REPRODUCED,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Learning curves of the three action probabilities. On D1 the curves of DPO go to 1 for a and to 0 for b and c at
    every tau, those of IPO level off on the dashed closed form, ever closer to 1/3 as tau grows. On D3, read as tie +
    loss, DPO takes everything from c; IPO leaves c the share that the closed form says."""
    return figures.curve_grid(
        results,
        {
            f"{figure}  ({title})": [
                [(f"{loss.upper()}, τ = {tau:g}", _setting(data, loss, tau).key) for tau in TAUS] for loss in STRENGTH
            ]
            for figure, title, data in (
                ("Figure 1", "D1: a beats b, b beats c, a beats c", "D1"),
                ("Figure 2", "D3 read as: a and b tie, b beats c", "D3 tie + loss"),
            )
        },
        curve="ours",
        line="closed form",
        metrics=PROBABILITIES,
        ylim=(-0.03, 1.03),
    )
