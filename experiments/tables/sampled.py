"""What the tables of sampled pairs share: samples as records, so that the project's own data methods choose among them,
and policies trained on pairs.

In a loss of the gap log pi(a|x) - log pi(b|x) the sum over all responses, log Z(x), cancels: `fit_pairs` scores the two
responses of a pair alone, and takes objectives of that gap only.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.tables import enumerable, fitting
from experiments.tables.enumerable import Pairs, World
from prefjax.data.records import Record
from prefjax.losses import Objective, Responses, objective


def reward_model(world: World, pairs: Pairs) -> Float[np.ndarray, "D"]:
    """The direction of the reward of maximum likelihood on pairs, linear in the features."""
    seen = world.features[pairs.prompt[:, None], pairs.response]
    return enumerable.minimise(_bradley_terry, np.zeros(world.features.shape[-1]), seen)


@jax.jit
@jax.value_and_grad
def _bradley_terry(direction: Float[Array, "D"], seen: Float[Array, "N 2 D"]) -> Float[Array, ""]:
    return jnp.mean(objective("bt").loss(Responses(features=(seen @ direction)[..., None])))


def ranked_records(
    prompt: Int[np.ndarray, "N"], response: Int[np.ndarray, "N K"], reward: Float[np.ndarray, "N K"]
) -> Iterator[Record]:
    """K scored samples to a prompt as a ranking; their texts are the responses' numbers."""
    for x, ys, scores in zip(prompt.tolist(), response.tolist(), reward.tolist(), strict=True):
        yield Record(str(x), tuple(map(str, ys)), tuple(scores), "ranked", scores=tuple(scores))


def pair_records(pairs: Pairs, columns: Mapping[str, Sequence[float]] | None = None) -> Iterator[Record]:
    """Pairs as records, with a number for each in every one of `columns`; `source` is their place."""
    for i, (x, ys) in enumerate(zip(pairs.prompt.tolist(), pairs.response.tolist(), strict=True)):
        own = {name: float(values[i]) for name, values in (columns or {}).items()}
        yield Record(str(x), tuple(map(str, ys)), (1.0, 0.0), "pair", source=str(i), columns=own)


def records_of(outcomes: Iterable[tuple]) -> list[Record]:
    """The records that a data method made."""
    return [item for outcome in outcomes for item in outcome if isinstance(item, Record)]


def pairs_of(records: Iterable[Record]) -> Pairs:
    """The pairs of such records, chosen first."""
    found = [(int(record.prompt), tuple(map(int, record.responses))) for record in records]
    prompt, response = zip(*found, strict=True)
    return Pairs(np.array(prompt), np.array(response))


def reward_of(world: World, pairs: Pairs) -> Float[np.ndarray, "N 2"]:
    """The gold rewards of the responses of pairs."""
    return world.reward[pairs.prompt[:, None], pairs.response]


def fit_pairs(
    own: Objective,
    worlds: Sequence[World],
    runs: Sequence[Sequence[Pairs]],
    config: ml_collections.ConfigDict,
    more: Sequence[Sequence[Mapping[str, np.ndarray]]] | None = None,
) -> Float[np.ndarray, "seeds runs D"]:
    """theta of a policy for each run of each seed: Adam from the reference, batches drawn with replacement.

    Args:
        own: an objective of the gap, which reads reference_logp and length at most, and what `more` gives.
        runs: the pairs of every seed and run; of runs with as many pairs the batches are the same ones.
        config: learning_rate, batch_size and steps.
        more: further fields of `Responses` for every pair, by name.
    """
    return fit_pair_paths(own, worlds, runs, config, 1, more)[:, :, -1]


def fit_pair_paths(
    own: Objective,
    worlds: Sequence[World],
    runs: Sequence[Sequence[Pairs]],
    config: ml_collections.ConfigDict,
    points: int,
    more: Sequence[Sequence[Mapping[str, np.ndarray]]] | None = None,
    options: Mapping[str, Sequence[float]] | None = None,
) -> Float[np.ndarray, "seeds runs points D"]:
    """As `fit_pairs`, seen at `points` even distances on the way, the last at its end.

    Args:
        options: of the objective, with a value for every run.
    """
    count = config.steps * config.batch_size
    given = [
        [_drawn(seed, (pairs, dict(more[seed][i]) if more else {}), count) for i, pairs in enumerate(of_seed)]
        for seed, of_seed in enumerate(runs)
    ]
    data = [fitting.stack(of_seed) for of_seed in given]
    order = np.arange(count).reshape(points, config.steps // points, config.batch_size)

    values = [{name: of_runs[i] for name, of_runs in (options or {}).items()} for i in range(len(runs[0]))]

    def train(given):
        world, data = given

        def loss(theta, batch, **options):
            (prompt, response), fields = batch
            return jnp.mean(own.loss(enumerable.gap_responses(world, theta, prompt, response, **fields), **options))

        def total(thetas, batch):  # options are numbers of Python, so their runs cannot be one vectorised call
            parts = (jax.tree.map(lambda array, i=i: array[:, i], batch) for i in range(len(values)))
            return sum(loss(theta, part, **own) for theta, part, own in zip(thetas, parts, values, strict=True))

        if options is None:
            fit = lambda data: fitting.fit_path(loss, jnp.zeros(config.width), data, order, config.learning_rate)
            return jax.vmap(fit)(data)
        start = jnp.zeros((len(values), config.width))
        by_example = jax.tree.map(lambda array: jnp.moveaxis(array, 0, 1), data)
        return jnp.moveaxis(fitting.fit_path(total, start, by_example, order, config.learning_rate), 0, 1)

    return fitting.over_worlds(train, list(zip(worlds, data, strict=True)))


def _drawn(seed: int, data: Any, count: int) -> Any:
    """`count` examples, with replacement."""
    size = len(jax.tree.leaves(data)[0])
    at = np.random.default_rng([seed, 9]).integers(size, size=count)
    return jax.tree.map(lambda array: array[at], data)
