"""The decoder's options and the mask it computes under."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.models import ModelConfig, apply, init

SMALL = ModelConfig(
    vocab_size=29, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_width=8, mlp_width=24, tie_embeddings=False
)
FAMILIES = {
    "llama": SMALL,
    "qwen2": dataclasses.replace(SMALL, attention_bias=True),
    "qwen3": dataclasses.replace(SMALL, qk_norm="head"),
    "gemma2": dataclasses.replace(
        SMALL,
        tie_embeddings=True,
        activation="gelu",
        unit_offset_norm=True,
        post_norms=True,
        scale_embeddings=True,
        query_scale=0.4,
        attention_softcap=5.0,
        logit_softcap=3.0,
        sliding_window=3,
        global_every=2,
    ),
}


def lively(config, seed=0):
    """Parameters at which no option is neutral (fresh norms and biases would be)."""
    rng = np.random.default_rng(seed)
    params = init(config, jax.random.key(seed))
    return jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(x.dtype), params)


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, tokens):
    length = tokens.shape[1]
    return apply(config, params, tokens, jnp.arange(length)[None], jnp.full((1, length), length))


def causal(config, params, tokens):
    """Hidden states of one plain sequence, padded behind so that one compilation serves all lengths."""
    padded = np.zeros((1, 16), np.int32)
    padded[0, : len(tokens)] = tokens
    return forward(config, params, padded)[:, : len(tokens)]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_option_changes_the_output(family):
    """A field that does nothing would be a dead option."""
    config, tokens = FAMILIES[family], np.arange(3, 15)
    base = causal(config, lively(config), tokens)
    for field in dataclasses.fields(ModelConfig):
        default = getattr(SMALL, field.name)
        if field.name == "tie_embeddings" or getattr(config, field.name) == default or field.name == "logit_softcap":
            continue  # the head is not part of the hidden states
        change = {field.name: default}
        if field.name == "sliding_window":
            change["global_every"] = 0
        plain = dataclasses.replace(config, **change)
        kept = {name: leaf for name, leaf in lively(config).items()}
        assert np.abs(causal(plain, kept, tokens) - base).max() > 1e-4, field.name


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_remat_changes_nothing(family):
    config = FAMILIES[family]
    params, tokens = lively(config), np.arange(3, 15)
    gradient = lambda c: jax.jit(jax.grad(lambda p: jnp.sin(causal(c, p, tokens)).sum()))(params)
    base = gradient(config)
    for remat in ("full", "dots"):
        for a, b in zip(
            jax.tree.leaves(gradient(dataclasses.replace(config, remat=remat))), jax.tree.leaves(base), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(num_kv_heads=3), "multiple of num_kv_heads"),
        (dict(head_width=7), "head_width=7"),
        (dict(activation="relu"), "activation='relu'"),
        (dict(remat="some"), "remat='some'"),
        (dict(global_every=2), "global_every"),
    ],
)
def test_bad_configs_name_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
