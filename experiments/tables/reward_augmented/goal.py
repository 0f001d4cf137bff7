"""Reward-augmented data: pairs relabelled by the score as a goal (arXiv 2410.08067).

COMMAND  python -m experiments.run reward_augmented.goal
TIME     15 s on two CPU cores
RESULT   Asked for the highest score, the policy attains more reward than DPO's on the same pairs. Good rejected
         responses keep more probability than DPO leaves them where their own score is asked for, and less where the
         highest is.

PROTOCOL The enumerable policy: 64 prompts x 256 responses, log-linear in 32 features, gold reward of variance 1, which
         is the judge's score. 1,500 pairs of reference samples, the higher score chosen. DPO at beta = 0.1 on them, or
         on what `prefjax.data.methods.conditioning.reward_augmented` makes of them: each twice, under both scores as
         goals; the policy then is log-linear in the features and in goal times features, and is asked for the highest
         score in the data. Adam at 0.02, batch 64, 600 steps; 5 seeds, each a world. float64.
COLUMNS  DPO: the value of plain DPO. ours: of the row. reward: at the end, exact sums. rejected: mean log-ratio to the
         reference of the rejected responses whose score is in the upper quarter of all rejected ones, nats, when the
         highest score is asked for; "own goal": when theirs is.

TRY      --config.steps=2000     both go on: DPO unlearns further
         --config.pairs=300      few pairs
         --config.goal=0.0       ask for a score of 0, the mean, instead of the highest
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import matplotlib.figure
import ml_collections
import numpy as np
import scipy.special

from experiments.tables import enumerable, figures, fitting, sampled
from experiments.tables.enumerable import Pairs, World
from experiments.tables.harness import NOT_REPRODUCED, ORDER, Claim, Results, Row, Setting, Table, bootstrap_interval
from prefjax.data.methods.conditioning import reward_augmented
from prefjax.data.records import Record
from prefjax.losses import Responses, objective

REWARD, REJECTED, OWN = "reward", "rejected", "rejected, own goal"
TABLE = Table("The abstract's claims", ("DPO", "ours", "KL"), 0.4, ORDER, float64=True)
SETTINGS = tuple(Setting({"data": "reward-augmented", "what": what}, what) for what in (REWARD, REJECTED, OWN))
PROTOCOL = {
    **enumerable.SHAPE,
    "pairs": 1_500,
    "goal": float("inf"),
    "learning_rate": 0.02,
    "batch_size": 64,
    "steps": 600,
    "num_seeds": 5,
}
SIZES = {"smoke": {"pairs": 600, "steps": 300, "num_seeds": 2}, "long": {"num_seeds": 20}, "paper": {}}


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """Reward, and what is left of good rejected responses, of plain DPO and on reward-augmented pairs."""
    for seed, world in enumerate(enumerable.worlds(config)):
        pairs = _ranked(world, config, seed)
        augmented, goals = _augmented(world, pairs)
        highest = min(config.goal, float(world.reward[pairs.prompt[:, None], pairs.response].max()))
        plain = _fit(config, world, seed, pairs, np.zeros(config.pairs))
        asked = _fit(config, world, seed, augmented, goals)
        for col, theta in {"DPO": plain, "ours": asked}.items():
            logp = enumerable.listed_policy(world, theta[0] + highest * theta[1])
            for what, value in _measures(world, pairs, logp, theta).items():
                yield Row(f"reward-augmented {what}", col, what, seed, config.steps, value)
                if col == "ours":
                    far = enumerable.kl(logp, world.reference_logp)
                    yield Row(f"reward-augmented {what}", "KL", what, seed, config.steps, far)


def _ranked(world: World, config: ml_collections.ConfigDict, seed: int) -> Pairs:
    prompt, response = enumerable.draw(np.random.default_rng([seed, 1]), world, config.pairs, 2)
    first, second = world.reward[prompt[:, None], response].T
    return Pairs(prompt, np.where((first >= second)[:, None], response, response[:, ::-1]))


def _augmented(world: World, pairs: Pairs) -> tuple[Pairs, np.ndarray]:
    """The pairs under both goals, and the goals."""
    scores = world.reward[pairs.prompt[:, None], pairs.response].tolist()
    records = [
        Record(str(x), tuple(map(str, ys)), (1.0, 0.0), "pair", scores=tuple(of_pair))
        for x, ys, of_pair in zip(pairs.prompt.tolist(), pairs.response.tolist(), scores, strict=True)
    ]
    made = sampled.records_of(reward_augmented(records, template="{score}"))
    goals, prompts = zip(*(record.prompt.split() for record in made), strict=True)
    response = np.array([list(map(int, record.responses)) for record in made])
    return Pairs(np.array(prompts, int), response), np.array(goals, float)


def _fit(config: ml_collections.ConfigDict, world: World, seed: int, pairs: Pairs, goals: np.ndarray) -> np.ndarray:
    """[2, D]: theta and what a goal of 1 adds to it. log Z(x, goal) cancels in the gap of a pair."""
    batches = np.random.default_rng([seed, 9]).integers(len(goals), size=(config.steps, config.batch_size))
    seen = world.features[pairs.prompt[:, None], pairs.response]
    return np.asarray(_train(seen, goals, batches, config.learning_rate))


@jax.jit
def _train(seen, goals, batches, learning_rate):
    dpo = objective("dpo", beta=0.1)

    def loss(theta, batch):
        seen, goal = batch
        logp = seen @ theta[0] + goal[:, None] * (seen @ theta[1])
        return jnp.mean(dpo.loss(Responses(logp=logp, reference_logp=jnp.zeros_like(logp))))

    return fitting.fit(loss, jnp.zeros((2, seen.shape[-1])), (seen, goals), batches, learning_rate)


def _measures(world: World, pairs: Pairs, logp: np.ndarray, theta: np.ndarray) -> dict[str, float]:
    score = world.reward[pairs.prompt, pairs.response[:, 1]]
    good = score >= np.quantile(score, 0.75)
    x, y, goal = pairs.prompt[good], pairs.response[good, 1], score[good]
    own = np.einsum("nyd,nd->ny", world.features[x], theta[0] + goal[:, None] * theta[1])
    ratio = own[np.arange(len(y)), y] - scipy.special.logsumexp(world.reference_logp[x] + own, axis=1)
    return {
        REWARD: enumerable.mean_reward(world, logp),
        REJECTED: float((logp - world.reference_logp)[x, y].mean()),
        OWN: float(ratio.mean()),
    }


def _difference(results: Results, s: Setting) -> tuple[float, float]:
    """The 95 % interval of how much more there is than with plain DPO."""
    return bootstrap_interval(results.final(s.key, "ours", s.metric) - results.final(s.key, "DPO", s.metric))


def _gain(results: Results, s: Setting) -> float:
    return -_difference(results, s)[0]


CLAIMS = (
    Claim(
        "reward",
        "asked for the highest score the policy attains more reward than DPO's (minus the lower end of the interval)",
        lambda s: s.metric == REWARD,
        _gain,
        verdict=ORDER,
    ),
    Claim(
        "unlearning",
        "asked for what they are, good rejected responses lose less probability than with DPO (minus the lower end of "
        "the 95 % interval)",
        lambda s: s.metric == OWN,
        _gain,
        verdict=ORDER,
    ),
    Claim(
        "unlearning_when_asked_for_more",
        "asked for the highest score, good rejected responses lose more probability than with DPO: goal times features "
        "takes the policy farther, and they are not what was asked for (upper end of the interval of what is left)",
        lambda s: s.metric == REJECTED,
        lambda results, s: _difference(results, s)[1],
        verdict=NOT_REPRODUCED,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Reward, and the log-ratio of good rejected responses, of reward-augmented pairs beside plain DPO's."""
    return figures.dots(results, SETTINGS, known="DPO", ours="ours")
