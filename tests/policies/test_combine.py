"""Preference vectors on tiny models: exact at c = 0 and 1, linear between, and refused where parameters differ."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.data.tokenizer_files import write_tokenizer
from prefjax.models import ModelConfig, init
from prefjax.models.huggingface import load_huggingface, save_huggingface
from prefjax.policies.combine import PreferenceVector, combine, parse_vector, weighted_sum
from prefjax.policies.open import open_policy

SMALL = ModelConfig(
    vocab_size=264, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_width=8, mlp_width=24, qk_norm="head"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three policies of one architecture, and one that is wider."""
    made = {}
    for seed, name in enumerate(("base", "helpful", "unhelpful", "wide")):
        model = dataclasses.replace(SMALL, mlp_width=32) if name == "wide" else SMALL
        folder = tmp_path_factory.mktemp("models") / name
        rng = np.random.default_rng(seed)
        shapes = jax.eval_shape(functools.partial(init, model), jax.random.key(0))
        params = jax.tree.map(lambda leaf, rng=rng: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
        save_huggingface(folder, model, params, settings=dict(max_position_embeddings=512))
        write_tokenizer(folder, "byte")
        made[name] = str(folder)
    return made


def leaves(folder):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(load_huggingface(folder)[1])]


def combined(folders, vectors, out):
    return combine(folders["base"], vectors, out)


@pytest.mark.parametrize("coefficient, same", [(1.0, "helpful"), (0.0, "base")])
def test_all_of_a_vector_is_the_aligned_policy_and_none_the_base_bit_for_bit(coefficient, same, folders, tmp_path):
    used = combined(folders, [PreferenceVector(coefficient, folders["helpful"])], tmp_path / "out")
    assert used == {folders[same]: 1.0}
    for a, b in zip(leaves(tmp_path / "out"), leaves(folders[same]), strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_vectors_add_up_parameter_by_parameter(folders, tmp_path):
    texts = [f"0.5 {folders['helpful']} - {folders['unhelpful']}", f"-2e-1 {folders['helpful']}"]
    used = combined(folders, [parse_vector(text) for text in texts], tmp_path / "out")
    assert used == pytest.approx({folders["base"]: 1.2, folders["helpful"]: 0.3, folders["unhelpful"]: -0.5})
    base, helpful, unhelpful = (leaves(folders[name]) for name in ("base", "helpful", "unhelpful"))
    for found, b, h, u in zip(leaves(tmp_path / "out"), base, helpful, unhelpful, strict=True):
        expected = b + 0.5 * (h.astype(np.float64) - u) - 0.2 * (h - b)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_opposite_of_a_vector_undoes_it(folders, tmp_path):
    there = parse_vector(f"0.7 {folders['helpful']} - {folders['unhelpful']}")
    back = parse_vector(f"0.7 {folders['unhelpful']} - {folders['helpful']}")
    assert combined(folders, [there, back], tmp_path / "out") == {folders["base"]: 1.0}


def test_bfloat16_parameters_are_summed_in_float32():
    """At 1 the steps of bfloat16 are 2^-7: four times 2^-9 make one, but one at a time each would be lost."""
    small = jnp.full(3, 2.0**-9, jnp.bfloat16)
    terms = [("one", 1.0, {"w": jnp.ones(3, jnp.bfloat16)}), *[("small", 1.0, {"w": small})] * 4]
    found = weighted_sum(iter(terms))["w"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(jnp.float32), 1 + 2.0**-7)


def test_other_parameters_are_refused_by_name(folders, tmp_path):
    vector = PreferenceVector(0.5, folders["wide"])
    with pytest.raises(
        ValueError, match=r"parameter layers/mlp/down/kernel is \[1, 24, 16\] in .*base and \[1, 32, 16\]"
    ):
        combined(folders, [vector], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="parameter b of two is missing in one"):
        weighted_sum([("one", 1.0, {"a": jnp.ones(1)}), ("two", 1.0, {"a": jnp.ones(1), "b": jnp.ones(1)})])
    with pytest.raises(ValueError, match="at least one term"):
        weighted_sum([])


@pytest.mark.parametrize("text", ["runs/a", "0.5", "half runs/a", "0.5runs/a"])
def test_vectors_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match="COEFFICIENT POLICY - OPPOSITE"):
        parse_vector(text)


def test_what_is_no_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither a run's --workdir nor a Hugging Face folder"):
        open_policy(str(tmp_path))
