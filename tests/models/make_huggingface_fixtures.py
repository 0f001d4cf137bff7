"""Made tests/models/fixtures: tiny random checkpoints of every family, with the logits that transformers computes.

Needs an environment of its own with torch and transformers, which neither prefjax nor its tests import:

    python tests/models/make_huggingface_fixtures.py make
    python tests/models/make_huggingface_fixtures.py check --python=PYTHON

`check` has prefjax (under the interpreter PYTHON) load every fixture and export it, from its own config alone and
after its source, then loads the exported folders in transformers and compares logits; and the same with a reward head
in place of the vocabulary's, where it compares scores.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(__file__).parent / "fixtures"
ROWS, LENGTH = 2, 24

SMALL = dict(
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    attn_implementation="eager",
)
GEMMA = dict(
    head_dim=8,
    query_pre_attn_scalar=12,
    sliding_window=5,
    tie_word_embeddings=True,
    attn_logit_softcapping=2.0,
    final_logit_softcapping=3.0,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
# name of the fixture -> (model type, changes to SMALL, type on disk, largest file)
MODELS = {
    "llama": ("llama", dict(rope_parameters=LLAMA3), "bfloat16", "1GB"),
    "llama_biased": (
        "llama",
        dict(
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=100.0),
        ),
        "bfloat16",
        "1GB",
    ),
    "mistral": ("mistral", dict(head_dim=6, sliding_window=5), "bfloat16", "1GB"),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True), "float16", "10KB"),
    "qwen3": ("qwen3", dict(head_dim=8, num_key_value_heads=1), "float32", "1GB"),
    "gemma2": ("gemma2", GEMMA, "bfloat16", "1GB"),
    "gemma3": (
        "gemma3_text",
        GEMMA
        | dict(
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000.0),
                sliding_attention=dict(rope_type="default", rope_theta=50.0),
            ),
        ),
        "bfloat16",
        "1GB",
    ),
    "olmo2": ("olmo2", dict(), "bfloat16", "1GB"),
    "phi3": ("phi3", dict(sliding_window=7), "bfloat16", "1GB"),
}


def make() -> None:
    for seed, (name, (model_type, changes, dtype, largest)) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SMALL, **changes}))
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                # Norms and biases too: at their initial values they would hide mistakes.
                scale = 1.0 if "embed" in path or "head" in path else 0.3
                parameter.copy_(scale * torch.randn_like(parameter) + float("norm" in path and "gemma" not in name))
        model = model.to(getattr(torch, dtype))
        model.save_pretrained(FIXTURES / name, max_shard_size=largest)
        (FIXTURES / name / "generation_config.json").unlink(missing_ok=True)
        tokens = torch.randint(3, SMALL["vocab_size"], (ROWS, LENGTH))
        logits = logits_of(FIXTURES / name, tokens)
        save_file({"tokens": tokens.int(), "logits": logits}, FIXTURES / name / "expected.safetensors")
        print(f"{name:14} {model.num_parameters():6} parameters, logits up to {logits.abs().max():.2f}")


def logits_of(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    unmatched = {kind: keys for kind, keys in report.items() if keys}
    assert not unmatched, f"{folder}: {unmatched}"
    with torch.no_grad():
        return model.eval()(tokens.long()).logits


EXPORT = """
import json, sys
from prefjax.models.huggingface import load_huggingface, save_huggingface
for source, target, like, shard_bytes in json.loads(sys.argv[1]):
    save_huggingface(target, *load_huggingface(source), like=like, shard_bytes=shard_bytes)
"""


# Scores at the last token of the fixture's sequences, the second of them cut short and padded.
EXPORT_REWARDS = """
import json, sys
import jax, numpy as np
from safetensors.numpy import load_file
from prefjax.models import apply
from prefjax.models.huggingface import load_huggingface, save_huggingface
for source, target, like in json.loads(sys.argv[1]):
    config, params = load_huggingface(source)
    tokens = load_file(f"{source}/expected.safetensors")["tokens"]
    rows, length = tokens.shape
    places = np.broadcast_to(np.arange(length)[None], tokens.shape)
    hidden = apply(config, params, tokens, places, np.full((rows, length), length))
    head = np.random.default_rng(0).normal(size=(config.width, 1)).astype(np.float32)
    params = {name: leaf for name, leaf in params.items() if name != "head"} | {"reward_head": head}
    save_huggingface(target, config, params, like=like, settings={"pad_token_id": 0})
    ends = np.array([length - 1, length - 6])
    np.save(f"{target}/scores.npy", np.asarray(hidden)[np.arange(2), ends] @ head[:, 0])
"""


def check_rewards(python: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        jobs = []
        for name in MODELS:
            source = str(FIXTURES / name)
            jobs += [(source, f"{scratch}/{name}_alone", None), (source, f"{scratch}/{name}_like", source)]
        subprocess.run([python, "-c", EXPORT_REWARDS, json.dumps(jobs)], check=True, cwd=ROOT)
        for source, target, _ in jobs:
            tokens = load_file(f"{source}/expected.safetensors")["tokens"].long()
            tokens[1, -5:] = 0
            model, report = AutoModelForSequenceClassification.from_pretrained(
                target, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
            )
            assert not {kind: keys for kind, keys in report.items() if keys}, report
            with torch.no_grad():
                scores = model.eval()(tokens, attention_mask=(tokens != 0).long()).logits
            expected = torch.from_numpy(numpy.load(f"{target}/scores.npy"))
            difference = (scores[:, 0] - expected).abs().max()
            print(f"{Path(target).name:20} {type(model).__name__:34} largest difference in scores {difference:.2e}")
            assert scores.shape == (2, 1) and difference < 1e-4, target


def check(python: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        jobs = []
        for name in MODELS:
            source, target = str(FIXTURES / name), f"{scratch}/{name}"
            jobs += [(source, f"{target}_alone", None, 10**9), (source, f"{target}_like", source, 10_000)]
        subprocess.run([python, "-c", EXPORT, json.dumps(jobs)], check=True, cwd=ROOT)
        for source, target, *_ in jobs:
            expected = load_file(f"{source}/expected.safetensors")
            difference = (logits_of(Path(target), expected["tokens"]) - expected["logits"]).abs().max()
            written = json.loads(Path(target, "config.json").read_text())["architectures"][0]
            print(f"{Path(target).name:20} {written:20} largest difference in logits {difference:.2e}")
            assert difference < 1e-5, target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["make", "check"])
    parser.add_argument("--python", help="an interpreter that has prefjax's requirements")
    arguments = parser.parse_args()
    if arguments.command == "make":
        make()
    else:
        check(arguments.python)
        check_rewards(arguments.python)
