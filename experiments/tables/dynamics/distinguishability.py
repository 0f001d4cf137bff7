"""What is told apart easily is learned first, and unlearned fast (arXiv 2403.18742).

COMMAND  python -m experiments.run dynamics.distinguishability
TIME     15 s on two CPU cores
RESULT   The farther apart the clusters of a behaviour are, the faster DPO learns it, alone and beside another. Where
         features learn too, flipped labels are learned sooner from the aligned policy, though in the end no better;
         with features frozen both starts are the same.

PROTOCOL A prompt is a point of 32 dimensions from one of two Gaussian clusters of deviation 1, whose means are
         `separation` apart; in one of them response 0 is the chosen one, in the other response 1. The policy is
         softmax(head V x): with features frozen V = 1 and only the head is trained, else both are. DPO at beta = 0.1
         on 1,000 prompts, gradient descent on all of them at rate 1, 500 steps; 10 seeds. Mixed: 500 prompts of each of
         two behaviours, whose clusters are 4 and 1 apart along directions of their own. Flipped: all labels exchanged,
         from the reference or from the policy that DPO made of it, which then is the reference.
         float64.
COLUMNS  at the start: of the loss 1. ours: the training loss at the end over log 2; of "steps", after how many of them
         it is below 0.9 log 2.

TRY      --config.beta=1.0        a larger step in the margin: all faster
         --config.prompts=200     few prompts: small separations are learned by heart
         --config.steps=5000      what is told apart with difficulty, later
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np
from jaxtyping import Array, Bool, Float

from experiments.tables import figures
from experiments.tables.harness import EXACT, NOT_REPRODUCED, ORDER, Claim, Results, Row, Setting, Table, over_seeds
from prefjax.losses import Responses, objective

LOSS, STEPS = "loss / log 2", "steps to 0.9"
SEPARATIONS = (0.5, 1.0, 2.0, 4.0)
MIXED = (4.0, 1.0)
FLIPPED = (1.0, 2.0, 4.0)  # the separations there; with 0.5 no loss comes below nine tenths
STARTS = ("reference", "aligned")
ALONE, TOGETHER = "separation, alone", "separation, mixed"
TRAINED, FROZEN, SOON = "flipped, features trained, 2.0", "flipped, features frozen, 2.0", "flipped, features trained"
TABLE = Table("Theorem 4.1's rates, priorities, and misalignment", ("at the start", "ours"), 0.2, ORDER, float64=True)
SETTINGS = (
    *(Setting({"about": ALONE, "of": separation}, LOSS) for separation in SEPARATIONS),
    *(Setting({"about": TOGETHER, "of": separation}, STEPS) for separation in MIXED),
    *(Setting({"about": f"{SOON}, {x}", "of": start}, STEPS) for x in FLIPPED for start in STARTS),
    *(Setting({"about": f"{about}, at the end", "of": start}, LOSS) for about in (TRAINED, FROZEN) for start in STARTS),
)
PROTOCOL = {"width": 32, "prompts": 1_000, "beta": 0.1, "learning_rate": 1.0, "steps": 500, "num_seeds": 10}
SIZES = {"smoke": {"prompts": 400, "steps": 200, "num_seeds": 2}, "long": {"num_seeds": 100}, "paper": {}}


class Policy(NamedTuple):
    """head [2, D], features [D, D]: log pi(y | x) = log softmax(head features x)."""

    head: Float[Array, "2 D"]
    features: Float[Array, "D D"]

    def logp(self, x: Float[Array, "N D"]) -> Float[Array, "N 2"]:
        return jax.nn.log_softmax(x @ (self.head @ self.features).T)


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """Losses at the end, and when the behaviours of the mixture are below nine tenths of log 2."""
    found = over_seeds(lambda key: _experiment(config, key), config.num_seeds)
    for setting in SETTINGS:
        yield Row(setting.key, "at the start", setting.metric, None, None, float(setting.metric == LOSS))
        for seed, value in enumerate(found[setting.key].tolist()):
            yield Row(setting.key, "ours", setting.metric, seed, config.steps, value)


def _experiment(config: ml_collections.ConfigDict, key: jax.Array) -> dict[str, Float[Array, ""]]:
    """One seed: Setting.key -> what it shows."""
    noise = jax.random.normal(key, (config.prompts, config.width))
    first = jnp.arange(config.prompts) % 2 == 0  # whether response 0 is chosen
    head = jax.random.normal(jax.random.fold_in(key, 1), (2, config.width)) / jnp.sqrt(config.width)
    start = Policy(head, jnp.eye(config.width))
    side = jnp.where(first, 0.5, -0.5)

    def clusters(separation, axis=0):
        return noise.at[:, axis].add(separation * side)

    half = config.prompts // 2
    mixed = jnp.concatenate([clusters(separation, axis)[:half] for axis, separation in enumerate(MIXED)])
    flipped = list(map(clusters, FLIPPED))
    x = jnp.stack([*map(clusters, SEPARATIONS), mixed, *flipped])
    labels = jnp.stack([first] * len(SEPARATIONS) + [jnp.concatenate([first[:half]] * 2)] + [first] * len(FLIPPED))
    trained = jnp.arange(len(x)) > len(SEPARATIONS)
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(x)), start)
    policies, losses = _descend(config, starts, x, labels, trained)
    found = {f"{ALONE} {separation}": losses[-1, i].mean() for i, separation in enumerate(SEPARATIONS)}
    for separation, part in zip(MIXED, (slice(half), slice(half, None)), strict=True):
        found[f"{TOGETHER} {separation}"] = (losses[:, len(SEPARATIONS), part].mean(1) > 0.9).sum()
    return found | _flipped(config, start, policies, flipped, ~first)


def _flipped(
    config: ml_collections.ConfigDict, start: Policy, policies: Policy, x: list[Array], first: Array
) -> dict[str, Float[Array, ""]]:
    """What the labels' exchange shows, from the reference and from what DPO had made of it."""
    learned = [jax.tree.map(lambda leaf, i=i: leaf[i], policies) for i in range(-len(FLIPPED), 0)]
    frozen = jax.tree.map(lambda leaf: leaf[SEPARATIONS.index(2.0)], policies)
    runs = [(about, policy) for about in learned for policy in (start, about)] + [(frozen, start), (frozen, frozen)]
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(policy for _, policy in runs))
    points = jnp.stack([each for each in (*x, x[FLIPPED.index(2.0)]) for _ in STARTS])
    labels = jnp.broadcast_to(first, points.shape[:2])
    losses = _descend(config, starts, points, labels, jnp.arange(len(runs)) < 2 * len(FLIPPED))[1].mean(-1)
    found = {}
    for i, (separation, name) in enumerate(itertools.product(FLIPPED, STARTS)):
        found[f"{SOON}, {separation} {name}"] = (losses[:, i] > 0.9).sum()
        if separation == 2:
            found[f"{TRAINED}, at the end {name}"] = losses[-1, i]
    return found | {f"{FROZEN}, at the end {name}": losses[-1, i - 2] for i, name in enumerate(STARTS)}


def _descend(
    config: ml_collections.ConfigDict,
    start: Policy,
    x: Float[Array, "R N D"],
    first: Bool[Array, "R N"],
    trained: Bool[Array, "R"],
) -> tuple[Policy, Float[Array, "steps R N"]]:
    """R runs of DPO from policies that are their own references: where they end, and before every step each prompt's
    loss over log 2. `first`: whether response 0 is chosen; `trained`: whether features learn too."""
    dpo = objective("dpo", beta=config.beta)
    chosen_first = lambda logp: jnp.where(first[..., None], logp, logp[..., ::-1])
    reference = chosen_first(jax.vmap(Policy.logp)(start, x))

    def losses(policy):
        logp = chosen_first(jax.vmap(Policy.logp)(policy, x))
        each = jax.vmap(lambda *of_run: dpo.loss(Responses(logp=of_run[0], reference_logp=of_run[1])))(logp, reference)
        return each.mean(1).sum(), each / jnp.log(2)

    def step(policy, _):
        gradient, each = jax.grad(losses, has_aux=True)(policy)
        gradient = gradient._replace(features=gradient.features * trained[:, None, None])
        return jax.tree.map(lambda p, g: p - config.learning_rate * g, policy, gradient), each

    return jax.lax.scan(step, start, length=config.steps)


def _lead_over(results: Results, s: Setting, other: str, metric: str) -> float:
    """Upper end of the 95 % interval of how much more this row has than another of its kind, paired by seed."""
    return results.lead(s.key, f"{s.labels['about']} {other}", "ours", metric)[1]


def _slower_than(results: Results, s: Setting) -> float:
    """Of a separation against the next smaller one; of the smallest against where all start."""
    at = SEPARATIONS.index(s.labels["of"])
    return _lead_over(results, s, SEPARATIONS[at - 1], LOSS) if at else results.mean(s.key, "ours", LOSS) - 1


def _aligned_and_reference(s: Setting) -> list[str]:
    return [f"{s.labels['about']} {start}" for start in STARTS[::-1]]


CLAIMS = (
    Claim(
        "separation",
        "the farther apart the clusters are, the less loss is left after as many steps (upper end of the 95 % interval "
        "of its lead over the next smaller separation)",
        lambda s: s.labels["about"] == ALONE,
        _slower_than,
        verdict=ORDER,
    ),
    Claim(
        "priority",
        "of two behaviours learned together the one that is told apart more easily is learned first (upper end of the "
        "95 % interval of the difference in steps)",
        lambda s: s.labels["about"] == TOGETHER,
        lambda results, s: results.lead(*(f"{TOGETHER} {x}" for x in MIXED), "ours", STEPS)[1],
        verdict=ORDER,
    ),
    Claim(
        "misalignment",
        "with features trained too, flipped labels are learned sooner from the aligned policy than from the reference "
        "(upper end of the 95 % interval of the difference in steps)",
        lambda s: s.labels["about"].startswith(SOON) and s.metric == STEPS,
        lambda results, s: results.lead(*_aligned_and_reference(s), "ours", STEPS)[1],
        verdict=ORDER,
    ),
    Claim(
        "misalignment_at_the_end",
        "after all steps as much loss on flipped labels is left from the aligned policy as from the reference: it is "
        "no better aligned with them, only sooner (size of the difference in loss)",
        lambda s: s.labels["about"].startswith(TRAINED) and s.metric == LOSS,
        lambda results, s: abs(np.subtract(*(results.mean(key, "ours", LOSS) for key in _aligned_and_reference(s)))),
        0.01,
        NOT_REPRODUCED,
    ),
    Claim(
        "frozen",
        "with features frozen both starts are equally fast: DPO sees the change of the head alone (largest difference)",
        lambda s: s.labels["about"].startswith(FROZEN),
        lambda results, s: abs(np.subtract(*(results.final(x, "ours", LOSS) for x in _aligned_and_reference(s)))).max(),
        1e-9,
        EXACT,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """The loss after all steps by separation, and how many steps behaviours take: what is farther apart is learned
    sooner, and its flipped labels are from the aligned policy."""
    return figures.dots(results, SETTINGS, known="at the start", ours="ours")
