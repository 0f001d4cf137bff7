"""What offline pairs do not cover: three actions of which two are compared (arXiv 2406.01462).

COMMAND  python -m experiments.run coverage.toy
TIME     15 s on two CPU cores
RESULT   DPO's loss is the same whatever mass the action without data gets, so its KL to the reference can be anything;
         with the policy's own KL beside it (HyPO) there is one minimiser. Where actions share features, DPO raises the
         unseen best action while both actions of the data lose mass; with a logit for each action it does not.

PROTOCOL Three actions a, b, c; pairs of a and b alone. "logits": one for each action, the reference is 1e-8 for c and
         halves the rest; labels prefer a with probability 0.7 (`prefjax.losses.soft_ce`, DPO with that as its target),
         beta = 0.5. HyPO: the same loss plus 0.1 KL(policy || reference), a sum over the actions, as an endless sample
         of the policy would give it. Minimised by L-BFGS from 20 starts of deviation 3. "features": of two dimensions,
         reward along the first: b at 0, a at 1, c at 2, plus noise of deviation 0.1; uniform reference; a always wins;
         DPO at beta = 0.1, gradient descent at rate 1, 500 steps; 10 seeds, and the same with a logit for each action.
COLUMNS  known: what it must be, or 0. ours: mean and 95 % interval over seeds where there are some. Nats.

TRY      --config.unseen=1e-3      a reference that knows c: the KL is bounded by its logarithm
         --config.kl_weight=0.01   a weaker KL, another minimiser, still one
         --config.steps=5000       c takes all
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np
import scipy.special
from jaxtyping import Array, Float

from experiments.tables import enumerable, figures
from experiments.tables.harness import EXACT, ORDER, Claim, Results, Row, Setting, Table, bootstrap_interval, over_seeds
from prefjax.losses import Responses, objective

RAY, KL_THERE, DPO_SPREAD, HYPO_SPREAD = "loss along the ray", "KL there", "minimisers of DPO", "minimisers of HyPO"
ACTIONS = ("chosen a", "rejected b", "unseen c")
FEATURES, LOGITS = "features", "logits"
GAP, NATS, SPREAD, CHANGE = "largest difference", "nats", "largest difference of a probability", "change of log pi"
TABLE = Table("Coverage, HyPO, and Figures 4 and 5's extrapolation", ("known", "ours"), 0.3, EXACT, float64=True)
SETTINGS = (
    Setting({"about": RAY, "of": "DPO"}, GAP),
    Setting({"about": KL_THERE, "of": "DPO"}, NATS),
    Setting({"about": "from 20 starts", "of": DPO_SPREAD}, SPREAD),
    Setting({"about": "from 20 starts", "of": HYPO_SPREAD}, SPREAD),
    *(Setting({"about": about, "of": action}, CHANGE) for about in (FEATURES, LOGITS) for action in ACTIONS),
)
PROTOCOL = {
    "unseen": 1e-8,
    "preference": 0.7,
    "beta": 0.5,
    "kl_weight": 0.1,
    "starts": 20,
    "noise": 0.1,
    "dpo_beta": 0.1,
    "learning_rate": 1.0,
    "steps": 500,
    "num_seeds": 10,
}
SIZES = {"smoke": {"starts": 5, "num_seeds": 3}, "long": {"num_seeds": 100}, "paper": {}}


def cells(config: ml_collections.ConfigDict) -> list[str]:
    return [LOGITS, "descent"]


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    if cell == LOGITS:
        known = {RAY: 0.0, KL_THERE: -np.log(config.unseen), "spread": 0.0}
        for key, metric, value, at in _logits(config):
            yield Row(key, "known", metric, None, None, float(known[at]))
            yield Row(key, "ours", metric, None, None, value)
        return
    for about in (FEATURES, LOGITS):
        changes = over_seeds(lambda key, about=about: _descend(config, key, about == FEATURES), config.num_seeds)
        for i, action in enumerate(ACTIONS):
            yield Row(f"{about} {action}", "known", CHANGE, None, None, 0.0)
            for seed, change in enumerate(changes[:, i].tolist()):
                yield Row(f"{about} {action}", "ours", CHANGE, seed, config.steps, change)


def _reference(config: ml_collections.ConfigDict) -> Float[np.ndarray, "3"]:
    return np.log([(1 - config.unseen) / 2, (1 - config.unseen) / 2, config.unseen])


def _logits(config: ml_collections.ConfigDict) -> Iterator[tuple[str, str, float, str]]:
    """(Setting.key, metric, number, which of the known ones) of the policies with a logit for each action."""
    reference, dpo = _reference(config), objective("soft_ce", beta=config.beta)
    target = jnp.array([config.preference])

    def loss(logp: Float[Array, "3"]):
        pair = Responses(
            logp=logp[None, :2], reference_logp=jnp.asarray(reference)[None, :2], target_probability=target
        )
        return dpo.loss(pair)[0]

    def kl(logp):
        return jnp.dot(jnp.exp(logp), logp - reference)

    margin = np.log(config.preference / (1 - config.preference)) / config.beta  # where the loss is least
    rest = np.linspace(-40.0, 40.0, 81)  # the logit of c on the way from none of the mass to all of it

    @jax.jit
    @jax.vmap
    def there(c):
        logp = jax.nn.log_softmax(jnp.stack([margin, 0.0, c]))
        return loss(logp), kl(logp)

    losses, kls = map(np.asarray, there(rest))
    yield f"{RAY} DPO", GAP, float(np.abs(losses - losses[0]).max()), RAY
    yield f"{KL_THERE} DPO", NATS, float(kls.max()), KL_THERE
    for name, weight in ((DPO_SPREAD, 0.0), (HYPO_SPREAD, config.kl_weight)):
        value_and_gradient = jax.jit(jax.value_and_grad(_objective(loss, kl, weight)))
        starts = 3 * np.random.default_rng(0).normal(size=(config.starts, 3))
        ends = [enumerable.minimise(value_and_gradient, start, steps=200) for start in starts]
        found = scipy.special.softmax(ends, axis=1)
        yield f"from 20 starts {name}", SPREAD, float(np.ptp(found, axis=0).max()), "spread"


def _objective(loss, kl, weight: float):
    def total(logits):
        logp = jax.nn.log_softmax(logits)
        return loss(logp) + weight * kl(logp)

    return total


def _descend(config: ml_collections.ConfigDict, key: jax.Array, shared: bool) -> Float[Array, "3"]:
    """The change of every action's log-prob by DPO on pairs of a and b, from a uniform reference."""
    features = jnp.array([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]]) + config.noise * jax.random.normal(key, (3, 2))
    features = features if shared else jnp.eye(3)
    dpo, reference = objective("dpo", beta=config.dpo_beta), jnp.full(3, -jnp.log(3.0))
    logp = lambda theta: jax.nn.log_softmax(features @ theta)

    def loss(theta):
        return dpo.loss(Responses(logp=logp(theta)[None, :2], reference_logp=reference[None, :2]))[0]

    step = lambda theta, _: (theta - config.learning_rate * jax.grad(loss)(theta), None)
    return logp(jax.lax.scan(step, jnp.zeros(features.shape[1]), length=config.steps)[0]) - reference


def _change(results: Results, s: Setting) -> tuple[float, float]:
    return bootstrap_interval(results.final(s.key, "ours", CHANGE))


CLAIMS = (
    Claim(
        "flat",
        "along the ray from none of the mass on c to all of it DPO's loss does not change",
        lambda s: s.labels["about"] == RAY,
        lambda results, s: results.mean(s.key, "ours", GAP),
        1e-12,
    ),
    Claim(
        "unbounded",
        "the KL there comes within 1e-6 of that of c alone, - log of its reference, which is above 10",
        lambda s: s.labels["about"] == KL_THERE,
        lambda results, s: max(
            abs(results.mean(s.key, "ours", NATS) - results.mean(s.key, "known", NATS)),
            10 - results.mean(s.key, "ours", NATS),
        ),
        1e-6,
    ),
    Claim(
        "many_minimisers",
        "from different starts DPO ends on policies more than 0.5 apart in a probability (0.5 minus it)",
        lambda s: s.labels["of"] == DPO_SPREAD,
        lambda results, s: 0.5 - results.mean(s.key, "ours", SPREAD),
        verdict=ORDER,
    ),
    Claim(
        "one_minimiser",
        "from different starts HyPO ends on one policy",
        lambda s: s.labels["of"] == HYPO_SPREAD,
        lambda results, s: results.mean(s.key, "ours", SPREAD),
        1e-5,
    ),
    Claim(
        "unseen_rises",
        "with shared features the unseen best action gains (minus the lower end of the 95 % interval)",
        lambda s: s.key == f"{FEATURES} {ACTIONS[2]}",
        lambda results, s: -_change(results, s)[0],
        verdict=ORDER,
    ),
    Claim(
        "seen_fall",
        "and both actions of the data lose (upper end of the 95 % interval of the change)",
        lambda s: s.labels["about"] == FEATURES and s.labels["of"] in ACTIONS[:2],
        lambda results, s: _change(results, s)[1],
        verdict=ORDER,
    ),
    Claim(
        "logits",
        "with a logit for each action the chosen gains, the rejected and the unseen lose (change, its sign turned for "
        "those that lose)",
        lambda s: s.labels["about"] == LOGITS,
        lambda results, s: -results.mean(s.key, "ours", CHANGE) * (1 if s.labels["of"] == ACTIONS[0] else -1),
        verdict=ORDER,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """How DPO on pairs of a and b changes the log-probs of a, b and the unseen better c: with shared features c rises
    and both others fall; with a logit each, a rises and c falls."""
    return figures.dots(results, [s for s in SETTINGS if s.metric == CHANGE], known="known", ours="ours")
