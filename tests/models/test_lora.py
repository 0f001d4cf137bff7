"""Low-rank adapters: what they start as, and that joined, merged and written-out forms agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.models import ModelConfig, apply, init, lora
from prefjax.models.lora import LoraConfig

MODEL = ModelConfig(
    vocab_size=31,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    mlp_width=24,
    attention_bias=True,
    dtype="float64",
    param_dtype="float64",
)
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 12)).astype(np.int32)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def hidden(params):
    positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
    return apply(MODEL, params, jnp.asarray(TOKENS), positions, jnp.full((2, 12), 12))


def lively(config):
    """(base, adapters with B away from 0)."""
    base = init(MODEL, jax.random.key(0))
    adapters = lora.init(config, base, jax.random.key(1))
    return base, jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), adapters)


@pytest.mark.slow
def test_fresh_adapters_change_nothing():
    config, base = LoraConfig(rank=3), init(MODEL, jax.random.key(0))
    adapters = lora.init(config, base, jax.random.key(1))
    np.testing.assert_array_equal(hidden(lora.join(config, base, adapters)), hidden(base))
    shapes = jax.tree.map(jnp.shape, adapters["layers"]["mlp"])
    assert shapes["down"] == {"lora_a": (2, 24, 3), "lora_b": (2, 3, 16)}
    bound = float(jnp.abs(adapters["layers"]["mlp"]["down"]["lora_a"]).max())
    assert 0.8 * 24**-0.5 < bound <= 24**-0.5


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["attention/|mlp/", "query|value", "down$"])
def test_joined_and_merged_parameters_compute_the_same(targets):
    config = LoraConfig(rank=3, alpha=5.0, targets=targets)
    base, adapters = lively(config)
    joined, merged = (hidden(make(config, base, adapters)) for make in (lora.join, lora.merge))
    np.testing.assert_allclose(joined, merged, rtol=1e-9, atol=1e-11)
    assert float(jnp.abs(joined - hidden(base)).max()) > 1e-2
    structure = jax.tree.structure(lora.merge(config, base, adapters))
    assert structure == jax.tree.structure(base)


@pytest.mark.slow
def test_gradients_are_those_of_the_written_out_product():
    config = LoraConfig(rank=3, alpha=5.0)
    base, adapters = lively(config)
    loss = lambda make: jax.grad(lambda a: (hidden(make(config, base, a)) ** 3).sum())(adapters)
    for a, b in zip(jax.tree.leaves(loss(lora.join)), jax.tree.leaves(loss(lora.merge)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)


def test_the_factor_is_alpha_over_rank():
    config = LoraConfig(rank=4, alpha=8.0, targets="query")
    base, adapters = lively(config)
    query, part = base["layers"]["attention"]["query"], adapters["layers"]["attention"]["query"]
    expected = query["kernel"] + 2 * part["lora_a"] @ part["lora_b"]
    got = lora.merge(config, base, adapters)["layers"]["attention"]["query"]
    np.testing.assert_allclose(got["kernel"], expected, rtol=1e-12)
    np.testing.assert_array_equal(got["bias"], query["bias"])


def test_options_are_refused_by_name():
    with pytest.raises(ValueError, match="lora.targets='router' matches none of attention/key"):
        lora.init(LoraConfig(rank=2, targets="router"), init(MODEL, jax.random.key(0)), jax.random.key(1))
    with pytest.raises(ValueError, match=r"lora.targets='\(query' is no regular expression: missing \), unterminated"):
        LoraConfig(rank=2, targets="(query")
    with pytest.raises(ValueError, match="lora.alpha has no effect"):
        LoraConfig(alpha=3.0)
    with pytest.raises(ValueError, match="lora.rank=-1"):
        LoraConfig(rank=-1)
