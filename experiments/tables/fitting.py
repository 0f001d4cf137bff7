"""Adam on an enumerable policy: the one way in which the tables of samples train."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Int


def fit(
    loss: Callable[[Any, Any], Array], start: Any, data: Any, batches: Int[Array, "steps batch"], learning_rate: float
) -> Any:
    """The parameters after one Adam step for each row of `batches`.

    Args:
        loss: (parameters, batch) -> a number; where it is a sum of losses of parts that share no parameter, each part
            is trained as if it were alone, as Adam is elementwise.
        data: arrays whose first axis is the example; a batch holds the rows that `batches` names.
    """
    optimizer = optax.adam(learning_rate)
    return jax.lax.scan(_update(loss, optimizer, data), (start, optimizer.init(start)), batches)[0][0]


def fit_path(
    loss: Callable[[Any, Any], Array],
    start: Any,
    data: Any,
    batches: Int[Array, "points steps batch"],
    learning_rate: float,
) -> Any:
    """As `fit`, the parameters after every one of `points` parts of the way."""
    optimizer = optax.adam(learning_rate)
    update = _update(loss, optimizer, data)

    def part(state, batches):
        state = jax.lax.scan(update, state, batches)[0]
        return state, state[0]

    return jax.lax.scan(part, (start, optimizer.init(start)), batches)[1]


def over_worlds(train: Callable[[Any], Array], given: Sequence[Any]) -> np.ndarray:
    """What `train` makes of the data of every seed, whose arrays have the same shapes, in one compiled call."""
    return np.asarray(jax.jit(jax.vmap(train))(stack(given)))


def stack(trees: Sequence[Any]) -> Any:
    """Arrays of one structure with a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _update(loss, optimizer: optax.GradientTransformation, data: Any):
    def update(state, drawn):
        parameters, moments = state
        gradient = jax.grad(loss)(parameters, jax.tree.map(lambda array: array[drawn], data))
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(parameters, updates), moments), None

    return update
