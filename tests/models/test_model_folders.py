"""Models' folders that are damaged, contradict themselves, or hold what the decoder does not compute: named."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from prefjax.models.huggingface import is_checkpoint, load_huggingface, read_config, read_params
from tests.models.test_huggingface import FIXTURES, copied


@pytest.mark.parametrize(
    "name,changes,message",
    [
        ("llama", dict(model_type="mixtral", architectures=["MixtralForCausalLM"]), "MixtralForCausalLM.*Qwen3ForC"),
        ("llama", dict(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
        ("llama", dict(hidden_size="wide"), "config.json: .*hidden_size"),
        ("llama", dict(hidden_act="relu"), "config.json: hidden_act='relu'"),
        ("gemma2", dict(hidden_activation="gelu"), "hidden_activation='gelu'"),
        ("llama", dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=4.0)), "'yarn' is not supported"),
        ("llama", dict(rope_parameters=None, rope_scaling=dict(type="dynamic", factor=2.0)), "'dynamic' is not sup"),
        (
            "phi3",
            dict(
                rope_parameters=dict(
                    rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 2, long_factor=[2.0] * 2
                )
            ),
            "'longrope' is not supported",
        ),
        ("phi3", dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
        ("llama", dict(quantization_config=dict(quant_method="awq")), "quantization_config="),
        ("llama", dict(attention_dropout=0.1), "attention_dropout=0.1"),
        ("gemma3", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True"),
        ("gemma2", dict(layer_types=["full_attention", "full_attention", "sliding_attention"]), "every n-th layer"),
        ("qwen2", dict(use_sliding_window=True, sliding_window=4, max_window_layers=1, layer_types=None), "every n-th"),
        ("mistral", dict(layer_types=["full_attention", "sliding_attention", "sliding_attention"]), "every n-th layer"),
        ("llama", dict(num_hidden_layers=10**8), "config.json: num_hidden_layers=100000000 must be .* at most 10000"),
        ("llama", dict(num_attention_heads=0), "config.json: num_attention_heads=0 must be at least 1"),
        (
            "llama",
            dict(vocab_size=2**29, hidden_size=2**29),
            r"embed_tokens.weight has shape .*, not \(536870912, 536870",
        ),
        ("llama", dict(model_type=["llama"]), r"config.json: architecture .*model_type \['llama'\]"),
        ("llama", dict(architectures=7), "config.json: architecture 7"),
        ("llama", dict(rms_norm_eps=float("nan")), "config.json: model.norm_epsilon=nan: set it to above 0"),
        ("llama", dict(rope_parameters=dict(rope_type="llama3", rope_theta=1e4)), "config.json: "),
        ("gemma2", dict(query_pre_attn_scalar=0), "config.json: ZeroDivisionError"),
        ("llama", dict(num_hidden_layers=4), "model.layers.3.self_attn.q_proj.weight is missing|layers.3.* is missing"),
        ("llama", dict(num_hidden_layers=2), "model.layers.2.input_layernorm.weight is not expected"),
        ("llama", dict(intermediate_size=20), r"mlp.gate_proj.weight has shape \(24, 16\), not \(20, 16\)"),
        ("phi3", dict(num_key_value_heads=4), r"self_attn.qkv_proj.weight has shape \(32, 16\), not \(48, 16\)"),
        ("llama", dict(attention_bias=True), "self_attn.q_proj.bias is missing"),
        ("llama_biased", dict(mlp_bias=False), "mlp.down_proj.bias is not expected"),
        ("llama_biased", dict(tie_word_embeddings=False), "lm_head.weight is missing"),
        ("llama", dict(tie_word_embeddings=True), "lm_head.weight differs from model.embed_tokens.weight"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_an_error_that_names_it(name, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_huggingface(copied(name, tmp_path / "folder", **changes))


@pytest.mark.parametrize(
    "file,content,message",
    [
        ("config.json", b"[1]", "config.json must hold a JSON object, not a list"),
        ("config.json", b'{"model_type"', "config.json is damaged: "),
        ("config.json", b"[" * 10**5, "config.json is damaged: "),
        ("config.json", b'{"model_type": "llam\xff"}', "config.json is damaged: 'utf-8' codec"),
        ("model.safetensors", b"\xff" * 100, "model.safetensors is damaged: "),
        ("model.safetensors", None, "model.safetensors is damaged: "),
        ("model.safetensors.index.json", b"{}", "index.json: None is no name of a file in this folder"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "../b.safetensors"}}',
            "json: '../b.safetensors' is no",
        ),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "/b.safetensors"}}',
            "json: '/b.safetensors' is no name",
        ),
        ("model.safetensors.index.json", b'{"weight_map": {"a": ["b"]}}', r"json: \['b'\] is no name"),
    ],
)
def test_a_damaged_or_hostile_file_is_named(file, content, message, tmp_path):
    folder = copied("llama", tmp_path / "folder")
    content = (folder / file).read_bytes()[:-1] if content is None else content
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{tmp_path}.*{message}"):
        load_huggingface(folder)


def test_numbers_that_are_no_floats_and_absent_files_are_named(tmp_path):
    folder = copied("llama", tmp_path / "folder")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": np.zeros((48, 16), np.int8)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="lm_head.weight has type I8"):
        load_huggingface(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        load_huggingface(folder)
    folder = copied("qwen2", tmp_path / "cut")
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002.safetensors"):
        load_huggingface(folder)
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load_huggingface(tmp_path)
    assert is_checkpoint(FIXTURES / "llama") and not is_checkpoint(tmp_path)


def test_a_config_that_contradicts_the_folder_names_its_fields():
    config = dataclasses.replace(read_config(FIXTURES / "llama"), rope_theta=7.0, mlp_width=99)
    with pytest.raises(ValueError, match="model.mlp_width=99, not 24; model.rope_theta=7.0, not 500.0"):
        read_params(FIXTURES / "llama", config)
    read_params(FIXTURES / "llama", dataclasses.replace(read_config(FIXTURES / "llama"), remat="full"))
