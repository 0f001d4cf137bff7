"""A quantised base: its codes, and that a decoder on codes computes what it computes on the kernels they mean."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.models import apply, init, lora, quantized
from prefjax.models.lora import LoraConfig
from tests.models.test_lora import MODEL, TOKENS

# arXiv 2305.14314, appendix E, printed there to this precision.
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
NF4 += [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
NF4 += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
WIDE = dataclasses.replace(MODEL, width=128, mlp_width=192)  # blocks of 64 inputs, and of all 32 where 64 is too many


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def test_nf4_keeps_the_nearest_of_the_papers_sixteen_values():
    kernel = np.random.default_rng(0).normal(size=(2, 128, 3))
    codes, scale = quantized._encode(jnp.asarray(kernel), "nf4")
    assert codes.dtype == jnp.uint4 and scale.shape == (2, 2, 3)
    blocks = kernel.reshape(2, 2, 64, 3)
    largest = np.abs(blocks).max(2, keepdims=True)
    nearest = np.abs(blocks[..., None] / largest[..., None] - NF4).argmin(-1)
    expected = np.array(NF4)[nearest] * largest
    np.testing.assert_allclose(quantized.decode(codes, scale), expected.reshape(kernel.shape), rtol=1e-6, atol=1e-7)


def test_int8_is_off_by_half_a_step_at_most():
    kernel = np.random.default_rng(1).normal(size=(128, 5)) * np.array([1e-3, 1.0, 5.0, 1e3, 0.2])
    codes, scale = quantized._encode(jnp.asarray(kernel), "int8")
    error = np.abs(quantized.decode(codes, scale) - kernel).reshape(2, 64, 5)
    assert codes.dtype == jnp.int8 and (error <= np.asarray(scale)[:, None] * 0.5000001).all()
    np.testing.assert_allclose(scale, np.abs(kernel).reshape(2, 64, 5).max(1) / 127.5, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("form", quantized.FORMATS)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_codes_compute_what_the_kernels_they_mean_compute(form, remat):
    model = dataclasses.replace(WIDE, remat=remat)
    config = LoraConfig(rank=3, alpha=6.0, quantize=form)
    base = init(model, jax.random.key(0))
    coded = lora.freeze(config, base)
    adapters = lora.init(config, coded, jax.random.key(1))
    adapters = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), adapters)

    def hidden(adapters, base, embedding):
        positions = jnp.broadcast_to(jnp.arange(12), (2, 12))
        params = lora.join(config, base, adapters) | {"embedding": embedding}
        out = apply(model, params, jnp.asarray(TOKENS), positions, jnp.full((2, 12), 12))
        return jnp.sum(jnp.sin(out)), out

    # The embedding's gradient passes through every kernel.
    differentiate = jax.jit(jax.value_and_grad(hidden, argnums=(0, 2), has_aux=True))
    found = differentiate(adapters, coded, base["embedding"])
    plain = quantized.dequantize(coded)
    expected = differentiate(adapters, plain, base["embedding"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), found, expected)
    merged = lora.merge(config, coded, adapters)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    out = hidden(lora.init(config, coded, jax.random.key(1)), merged, base["embedding"])[1]
    np.testing.assert_allclose(out, found[0][1], rtol=1e-6, atol=1e-8)
    away = hidden(adapters, base, base["embedding"])[1]
    assert np.abs(away - found[0][1]).max() > 1e-6, "nothing was quantised"


def test_only_projections_of_the_layers_are_coded():
    base = init(WIDE, jax.random.key(0))
    coded = quantized.quantize(base, "int8")
    assert coded["embedding"] is base["embedding"]
    assert set(coded["layers"]["attention"]["query"]) == {"kernel_codes", "kernel_scale", "bias"}
    kernels = [leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(base) if "kernel" in str(path[-1])]
    codes = [leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(coded) if "codes" in str(path[-1])]
    assert sum(codes) == sum(kernels) and len(codes) == 7


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match=r"lora.quantize='int3'.*nf4"):
        LoraConfig(rank=4, quantize="int3")
    with pytest.raises(ValueError, match="lora.quantize has no effect with lora.rank=0"):
        LoraConfig(quantize="nf4")
