"""Answers to the same prompts at every evaluation: the most likely tokens, and no step twice after a restart."""

import numpy as np

import prefjax as px
from prefjax.models import SamplingOptions
from prefjax.policies.rollouts import Sampler, sample_responses
from prefjax.rows.store import MemoryTrees
from prefjax.rows.trees import TokenTree
from prefjax.state_files import read_lines
from prefjax.training.greedy_samples import LONGEST, GreedySamples

TOKENIZER = px.ByteTokenizer()
MODEL = px.ModelConfig(
    vocab_size=TOKENIZER.vocab_size, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_width=8, mlp_width=16
)
SETUP = px.Setup(MODEL, px.objective("dpo"))


def tree(text):
    ids = np.array(TOKENIZER.encode(text), np.int32)
    return TokenTree(ids, (ids, ids[::-1].copy()), np.array([1, 0], np.float32))


def samples(folder, step, count=2):
    trees = MemoryTrees(map(tree, ("A goat knocks.", "A goat knocks.", "A hare", "A bear")))
    ends = [TOKENIZER.eos_id]
    return GreedySamples(SETUP, trees, TOKENIZER, ends, count=count, workdir=folder, resume_step=step)


def test_they_are_what_sampling_at_temperature_0_says(tmp_path):
    params = px.init(MODEL, seed=0)
    made = samples(tmp_path, 0)
    made(0, params)
    rows = read_lines(tmp_path / "samples.jsonl")
    assert [(row["step"], row["prompt"]) for row in rows] == [(0, "A goat knocks."), (0, "A hare")]
    prompts = [np.array(TOKENIZER.encode(row["prompt"]), np.int32) for row in rows]
    sampler = Sampler(MODEL, params, [TOKENIZER.eos_id], TOKENIZER.pad_id)
    greedy = sample_responses(sampler, prompts, SamplingOptions(temperature=0.0, max_new_tokens=LONGEST), seed=0)
    special = TOKENIZER.special_ids
    said = [TOKENIZER.decode([one for one in own.tokens.tolist() if one not in special]) for own in greedy]
    assert [row["response"] for row in rows] == said and all(said)


def test_a_restart_repeats_no_step_and_forgets_those_it_takes_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(GreedySamples, "_answers", lambda self, params: [{"prompt": "q", "response": params}])
    first = samples(tmp_path, 0)
    for step in (0, 2, 4):
        first(step, "first")
    again = samples(tmp_path, 2)
    for step in (2, 3):
        again(step, "again")
    found = [(row["step"], row["response"]) for row in read_lines(tmp_path / "samples.jsonl")]
    assert found == [(0, "first"), (2, "first"), (3, "again")]
    none = samples(tmp_path, 9, count=0)
    assert not none and len(read_lines(tmp_path / "samples.jsonl")) == 3
