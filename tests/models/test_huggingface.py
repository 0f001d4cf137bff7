"""Hugging Face folders in and out: logits of every family equal transformers', and what does not fit is named.

The fixtures and the logits in them were made by `make_huggingface_fixtures.py`.
"""

import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from prefjax.data.tokenizers import load_tokenizer
from prefjax.models import ModelConfig, Prompts, SamplingOptions, init, plain_logits, sample
from prefjax.models import families as families_lib
from prefjax.models.huggingface import load_huggingface, read_config, save_huggingface
from prefjax.training.mesh import MeshConfig, make_mesh, parameter_shardings

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(path.name for path in FIXTURES.iterdir())


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def copied(name, folder, **changes):
    """A fixture that can be spoilt, with changes to its config.json."""
    shutil.copytree(FIXTURES / name, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(name, record_property):
    expected = load_file(FIXTURES / name / "expected.safetensors")
    config, params = load_huggingface(FIXTURES / name)
    difference = np.abs(plain_logits(config, params, expected["tokens"]) - expected["logits"]).max()
    record_property("largest_difference", float(difference))
    assert difference < 1e-5 * np.abs(expected["logits"]).max()


def test_the_fixtures_use_what_they_are_there_for():
    configs = {name: read_config(FIXTURES / name) for name in NAMES}
    length = load_file(FIXTURES / "llama" / "expected.safetensors")["tokens"].shape[1]
    windows = {name for name, c in configs.items() if c.sliding_window and c.sliding_window < length}
    assert windows == {"gemma2", "gemma3", "mistral", "phi3"}
    assert {name: c.rope_scaling.kind for name, c in configs.items() if c.rope_scaling} == {
        "llama": "llama3",
        "llama_biased": "linear",
        "gemma3": "linear",
    }
    assert {name for name, c in configs.items() if c.tie_embeddings} == {"llama_biased", "qwen2", "gemma2", "gemma3"}
    assert all(c.num_kv_heads < c.num_heads for c in configs.values())
    assert configs["gemma2"].attention_softcap == 2.0 and configs["gemma2"].logit_softcap == 3.0
    assert {name: c.qk_norm for name, c in configs.items() if c.qk_norm != "none"} == {
        "qwen3": "head",
        "gemma3": "head",
        "olmo2": "projection",
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["alone", "like"])
def test_export_then_import_is_bit_equal(name, source, tmp_path):
    config, params = load_huggingface(FIXTURES / name)
    like = FIXTURES / name if source == "like" else None
    # Small files, so that there are several.
    save_huggingface(tmp_path / "out", config, params, like=like, shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    again, params_again = load_huggingface(tmp_path / "out")
    assert families_lib.architecture(again) == families_lib.architecture(config)
    assert equal(params, params_again)
    if like:
        written, before = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "out", like))
        assert written["architectures"] == before["architectures"] and written["torch_dtype"] == "float32"
        assert {k: v for k, v in written.items() if k != "torch_dtype"} == {
            k: v for k, v in before.items() if k != "dtype"
        }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_types_on_disk_and_in_memory_are_free(dtype, tmp_path):
    config, params = load_huggingface(FIXTURES / "llama", param_dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    save_huggingface(tmp_path / "out", config, params, dtype=dtype)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype.name for tensor in stored.values()} == {dtype}
    again = load_huggingface(tmp_path / "out", param_dtype="float32")[1]
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=1e-2 if dtype == "float16" else 0, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gemma3"])
@pytest.mark.parametrize("sizes", [dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=8)], ids=str)
def test_import_onto_a_mesh_equals_import_onto_one_device(name, sizes):
    mesh = make_mesh(MeshConfig(**sizes))
    config, params = load_huggingface(FIXTURES / name)
    _, spread = load_huggingface(FIXTURES / name, shardings=functools.partial(parameter_shardings, mesh))
    shardings = parameter_shardings(mesh, params)
    assert equal(params, spread)
    assert jax.tree.map(lambda leaf: leaf.sharding, spread) == shardings
    kernel = spread["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.addressable_shards[0].data.size < kernel.size


def test_a_device_reads_its_own_share_only(monkeypatch):
    """The promise that makes a large model fit: no read is larger than a shard."""
    from prefjax.models import huggingface

    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    read, sizes = huggingface._Tensors.read, []

    def counting(self, name, index):
        block = read(self, name, index)
        sizes.append((name, block.size))
        return block

    monkeypatch.setattr(huggingface._Tensors, "read", counting)
    load_huggingface(FIXTURES / "phi3", shardings=functools.partial(parameter_shardings, mesh))
    config = read_config(FIXTURES / "phi3")
    qkv = [size for name, size in sizes if "layers.0" in name and "qkv" in name]
    whole = config.width * config.head_width * (config.num_heads + 2 * config.num_kv_heads)
    assert len(qkv) == 3 * 8 and sum(qkv) == whole and max(qkv) <= whole // 8 * 2


def test_a_model_made_here_is_exported_as_the_family_that_computes_the_same(tmp_path):
    small = ModelConfig(vocab_size=29, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_width=8, mlp_width=24)
    gemma = dict(activation="gelu", unit_offset_norm=True, post_norms=True, scale_embeddings=True, sliding_window=4)
    zeros = lambda c: jax.tree.map(
        lambda s: np.zeros(s.shape, s.dtype), jax.eval_shape(lambda: init(c, jax.random.key(0)))
    )
    cases = {
        "LlamaForCausalLM": small,
        "MistralForCausalLM": dataclasses.replace(small, sliding_window=7),
        "Qwen2ForCausalLM": dataclasses.replace(small, attention_bias=True),
        "Qwen3ForCausalLM": dataclasses.replace(small, qk_norm="head", width=20),
        "Gemma2ForCausalLM": dataclasses.replace(small, attention_softcap=3.0, global_every=2, **gemma),
        "Gemma3ForCausalLM": dataclasses.replace(small, local_rope_theta=7.0, qk_norm="head", **gemma),
        "Olmo2ForCausalLM": dataclasses.replace(small, qk_norm="projection", pre_norms=False, post_norms=True),
    }
    for number, (architecture, config) in enumerate(cases.items()):
        save_huggingface(tmp_path / str(number), config, zeros(config))
        assert json.loads((tmp_path / str(number) / "config.json").read_text())["architectures"] == [architecture]
    with pytest.raises(ValueError, match="no Hugging Face architecture .*'pre_norms': False"):
        odd = dataclasses.replace(small, pre_norms=False, post_norms=True)
        save_huggingface(tmp_path / "odd", odd, zeros(odd))
    assert not (tmp_path / "odd").exists()


def test_export_refuses_a_folder_in_use_and_another_architecture(tmp_path):
    config, params = load_huggingface(FIXTURES / "llama")
    with pytest.raises(ValueError, match="model.sliding_window=None, not 5"):
        save_huggingface(tmp_path / "out", config, params, like=FIXTURES / "mistral")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        save_huggingface(tmp_path, config, params)


def test_config_of_older_transformers_is_read_alike(tmp_path):
    """Before version 5, rope_theta and rope_scaling stood beside each other."""
    llama3 = json.loads((FIXTURES / "llama" / "config.json").read_text())["rope_parameters"]
    theta = llama3.pop("rope_theta")
    old = copied("llama", tmp_path / "llama", rope_parameters=None, rope_theta=theta, rope_scaling=llama3)
    assert read_config(old) == read_config(FIXTURES / "llama")
    old = copied(
        "gemma3",
        tmp_path / "gemma3",
        rope_parameters=None,
        rope_theta=1000.0,
        rope_local_base_freq=50.0,
        rope_scaling=dict(rope_type="linear", factor=8.0),
        layer_types=None,
        sliding_window_pattern=3,
    )
    assert read_config(old) == read_config(FIXTURES / "gemma3")


def test_layer_types_of_a_mistral_are_read_as_transformers_does(tmp_path):
    """There it becomes a Ministral, whose layers have the window that layer_types says."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = read_config(copied("mistral", tmp_path / "mixed", layer_types=kinds))
    assert (config.sliding_window, config.global_every) == (5, 2)
    assert read_config(copied("mistral", tmp_path / "full", layer_types=["full_attention"] * 3)).sliding_window is None


def test_gemma_3_has_no_cap_on_attention_as_in_transformers(tmp_path):
    config = read_config(copied("gemma3", tmp_path / "gemma3", attn_logit_softcapping=2.0, final_logit_softcapping=3.0))
    assert (config.attention_softcap, config.logit_softcap) == (None, 3.0)
    with pytest.raises(ValueError, match="no Hugging Face architecture computes"):
        families_lib.family_of(dataclasses.replace(config, attention_softcap=2.0))


def test_exported_files_have_the_mode_of_the_mask(tmp_path):
    before = os.umask(0o027)
    try:
        save_huggingface(tmp_path / "out", *load_huggingface(FIXTURES / "llama"))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o640}


def shape(vocab, width, mlp, layers, heads, kv, **more):
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return dict(zip(names, (vocab, width, mlp, layers, heads), strict=True), num_key_value_heads=kv, **more)


# What the config.json of published models says (as transformers 4 wrote it), and their number of parameters.
PUBLISHED = {
    "SmolLM2-135M": ("llama", shape(49152, 576, 1536, 30, 9, 3, tie_word_embeddings=True), 134_515_008),
    "Llama-3.2-1B": (
        "llama",
        shape(128256, 2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True, rope_theta=500000.0)
        | dict(
            rope_scaling=dict(
                rope_type="llama3",
                factor=32.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            )
        ),
        1_235_814_400,
    ),
    "Mistral-7B-v0.1": ("mistral", shape(32000, 4096, 14336, 32, 32, 8, sliding_window=4096), 7_241_732_096),
    "Qwen2.5-0.5B": (
        "qwen2",
        shape(151936, 896, 4864, 24, 14, 2, tie_word_embeddings=True, use_sliding_window=False, sliding_window=32768),
        494_032_768,
    ),
    "Qwen3-0.6B": ("qwen3", shape(151936, 1024, 3072, 28, 16, 8, head_dim=128, tie_word_embeddings=True), 596_049_920),
    "gemma-2-2b": ("gemma2", shape(256000, 2304, 9216, 26, 8, 4, head_dim=256), 2_614_341_888),
    "gemma-3-1b": (
        "gemma3_text",
        shape(262144, 1152, 6912, 26, 4, 1, head_dim=256, sliding_window=512, sliding_window_pattern=6),
        999_885_952,
    ),
    "OLMo-2-1124-7B": ("olmo2", shape(100352, 4096, 11008, 32, 32, 32, rope_theta=500000), 7_298_617_344),
    "Phi-3-mini-4k": (
        "phi3",
        shape(32064, 3072, 8192, 32, 32, 32, rope_scaling=None, sliding_window=2047),
        3_821_079_552,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_number_of_parameters(name, tmp_path):
    model_type, values, parameters = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **values}))
    config = read_config(tmp_path)
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_copies_and_buffers_that_old_files_hold_are_no_errors(tmp_path):
    folder = copied("llama_biased", tmp_path / "folder")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(tensors, folder / "model.safetensors")
    assert equal(load_huggingface(folder)[1], load_huggingface(FIXTURES / "llama_biased")[1])


@pytest.mark.parametrize("name", ["gemma3", "olmo2"])
def test_sampling_sees_what_the_forward_pass_sees(name):
    """The key/value cache, with each layer's own rotary frequencies and window."""
    config, params = load_huggingface(FIXTURES / name)
    # A head of its own: a tied one repeats the last token of so small a model.
    config = dataclasses.replace(config, tie_embeddings=False)
    params["head"] = jax.random.normal(jax.random.key(1), params["embedding"].shape)
    prompts = jnp.array([[5, 9, 17, 30, 4], [8, 3, 0, 0, 0]])
    lengths, greedy = jnp.array([5, 2]), SamplingOptions(temperature=0.0, max_new_tokens=12)
    asked = Prompts(prompts, lengths, jax.random.split(jax.random.key(0)))
    got = sample(config, params, asked, greedy, stop_ids=(), pad_id=0)
    for row in range(2):
        start = int(lengths[row])
        sequence = np.zeros((1, 17), np.int32)
        sequence[0, : start + 12] = [*prompts[row, :start], *got.tokens[row]]
        best = plain_logits(config, params, sequence)[0, start - 1 : start + 11].argmax(-1)
        np.testing.assert_array_equal(best, got.tokens[row])
        assert len(set(np.asarray(best).tolist())) > 2


def test_stories260k_writes_english(real_models):
    folder = real_models / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no stories260k in {real_models}")
    config, params = load_huggingface(folder)
    tokenizer = load_tokenizer(folder)
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside with her friends."
    ids = np.array([[tokenizer.bos_id, *tokenizer.encode(text)]])
    logps = jax.nn.log_softmax(plain_logits(config, params, jnp.array(ids)))
    nll = -np.take_along_axis(np.asarray(logps)[:, :-1], ids[:, 1:, None], axis=2).mean()
    assert nll < 1.2  # ln 512 = 6.2 would be a guess
    prompt = Prompts(jnp.array(ids[:, :5]), jnp.array([5]), jax.random.split(jax.random.key(0), 1))
    greedy = SamplingOptions(temperature=0.0, max_new_tokens=24)
    written = sample(config, params, prompt, greedy, stop_ids=(tokenizer.eos_id,), pad_id=tokenizer.pad_id)
    assert "Lily" in tokenizer.decode(np.asarray(written.tokens)[0])


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma3"])
def test_a_reward_model_is_a_sequence_classifier_of_one_label(name, tmp_path):
    """Its scores equal transformers' by `make_huggingface_fixtures.py check`."""
    config, params = load_huggingface(FIXTURES / name)
    trunk = {part: leaf for part, leaf in params.items() if part != "head"}
    head = jnp.arange(config.width, dtype=jnp.float32)[:, None]
    save_huggingface(tmp_path / "out", config, trunk | {"reward_head": head}, settings={"pad_token_id": 3})
    stored = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(stored["score.weight"], head.T)
    assert "lm_head.weight" not in stored and "model.embed_tokens.weight" in stored
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"][0].endswith("ForSequenceClassification")
    assert written["pad_token_id"] == 3 and len(written["id2label"]) == 1
    with pytest.raises(ValueError, match="ForSequenceClassification .* is not supported"):
        load_huggingface(tmp_path / "out")
