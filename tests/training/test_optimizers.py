"""Optimisers: what precision their state has, and what that does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.training.optimizers import OptimizerConfig, make_optimizer


def moments(config, params):
    """(first, second) moments of adamw after one step with unit gradients."""
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(params)
    _, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    adam = next(part for part in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "nu")) if hasattr(part, "nu"))
    return adam.mu["kernel"], adam.nu["kernel"]


@pytest.mark.parametrize("params", ["float32", "bfloat16"])
@pytest.mark.parametrize("mu", ["float32", "bfloat16"])
def test_state_is_wide_whatever_the_parameters_are(params, mu):
    first, second = moments(OptimizerConfig(mu_dtype=mu), {"kernel": jnp.ones((4, 4), params)})
    assert (first.dtype, second.dtype) == (mu, "float32")


def test_bfloat16_parameters_get_the_updates_that_float32_ones_get():
    """In bfloat16 the second moment would stand still, and updates would be too large by its square root."""
    config = OptimizerConfig(learning_rate=1e-2, clip_norm=0.0)
    last = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = make_optimizer(config, 300)
        params = {"kernel": jnp.zeros((8,), dtype)}
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for size in (1.0, *[4.0] * 200):
            updates, state = update({"kernel": jnp.full((8,), size, dtype)}, state, params)
        last[dtype] = updates["kernel"]
    assert last["bfloat16"].dtype == jnp.float32
    np.testing.assert_allclose(last["bfloat16"], last["float32"], rtol=1e-5)


def test_a_low_precision_first_moment_stays_close():
    config = OptimizerConfig(learning_rate=1e-2, mu_dtype="bfloat16")
    first, _ = moments(config, {"kernel": jnp.ones((4, 4))})
    exact, _ = moments(OptimizerConfig(learning_rate=1e-2), {"kernel": jnp.ones((4, 4))})
    np.testing.assert_allclose(first.astype(jnp.float32), exact, rtol=1e-2)


def test_foreign_and_unknown_values_are_refused_by_name():
    with pytest.raises(ValueError, match="mu_dtype='float16'"):
        OptimizerConfig(mu_dtype="float16")
    with pytest.raises(ValueError, match="adafactor takes no mu_dtype"):
        make_optimizer(OptimizerConfig(name="adafactor", mu_dtype="bfloat16"), 10)
