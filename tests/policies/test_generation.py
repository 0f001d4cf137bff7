"""Files of responses: what they hold, that the reader takes them, and that a killed command continues exactly."""

import dataclasses
import gzip
import json
from collections import Counter

import jax
import numpy as np
import pytest

from prefjax.data.config import DataConfig
from prefjax.data.encoding import EncodingPolicy, encode_prompt
from prefjax.data.prompts import Prompt, encode_prompts
from prefjax.data.readers import read_records
from prefjax.data.records import Message
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.models import ModelConfig, SamplingOptions, init
from prefjax.policies.generate import GenerationConfig, Policy, generate_file, respond, rows_of
from prefjax.policies.judge import answers_in
from prefjax.policies.rollouts import Response, sequence_logps
from prefjax.policies.scorers import Candidates, _tree
from prefjax.training.mesh import MeshConfig, make_mesh, parameter_shardings
from tests.data.small_tokenizers import TOOLS, small_tokenizer
from tests.training.examples import setup_for

MODEL = ModelConfig(259, 1, 16, 2, 1, 8, 24, tie_embeddings=False)
CONFIG = GenerationConfig(SamplingOptions(0.7, max_new_tokens=5), samples=2, batch=8)
TOKENIZER = ByteTokenizer()


@pytest.fixture(scope="module")
def policy():
    """It speaks in letters and ends now and then."""
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    params = init(MODEL, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.asarray(x) + 0.3 * rng.normal(size=x.shape).astype(x.dtype), params)
    spoken = np.isin(np.arange(259), [*range(97, 123), 258])
    params["head"] = np.where(spoken[:, None], params["head"] + 0.5, -1.0).astype(np.float32)
    params["final_norm"]["scale"] = np.abs(params["final_norm"]["scale"])
    params = jax.device_put(params, parameter_shardings(mesh, params))
    return Policy(MODEL, params, mesh, TOKENIZER, (TOKENIZER.eos_id,))


def prompts(count=40):
    texts = [("abc" * (1 + i % 7) + str(i)) if i % 3 else (Message("user", str(i)),) for i in range(count)]
    given = [Prompt(text, f"mine.jsonl:{i + 1}", i or None) for i, text in enumerate(texts)]
    return encode_prompts(given, TOKENIZER, chat=False)[0]


def by_length(candidates):
    return [[float(len(text)) for text in own.completions] for own in candidates]


def test_rows_hold_what_was_sampled():
    """Special tokens leave the text, blank responses the row; scores, log-probs and lengths stay with their own."""
    (text, chat), _ = encode_prompts(
        [Prompt("p", "f:1", "x"), Prompt((Message("user", "q"),), "f:2")], TOKENIZER, chat=False
    )
    say = lambda text, ended=True, logp=-1.0: Response(
        np.array([*text.encode(), *[258] * ended], np.int32), np.full(len(text) + ended, logp, np.float32), ended
    )
    responses = [[say(" no"), say(""), say("longer", False, -2.0)], [say(" hi"), say(" "), say("  ")]]
    rows, counts = rows_of(TOKENIZER, [text, chat], responses, by_length, best=True)
    assert rows[0] == {
        "id": "x",
        "from": "f:1",
        "prompt": "p",
        "completions": (" no", "longer"),
        "scores": [3.0, 6.0],
        "logps": (-4.0, -12.0),
        "lengths": (4, 6),
        "finished": [True, False],
        "best": 1,
    }
    assert rows[1]["completions"] == ("hi",) and rows[1]["prompt"] == [{"role": "user", "content": "q"}]
    assert counts == Counter(prompts=2, responses=6, tokens=20, unfinished=1, blank=3)
    rows, _ = rows_of(TOKENIZER, [text], responses[:1], None)
    assert [row["completion"] for row in rows] == [" no", "longer"] and rows[1]["logp"] == -12.0


@pytest.mark.parametrize("bad", [[[1.0]], [[1.0, np.nan]], []])
def test_a_scorer_must_score_everything(bad):
    response = Response(np.array([97, 258], np.int32), np.zeros(2, np.float32), True)
    with pytest.raises(ValueError, match="scorer gave"):
        rows_of(TOKENIZER, prompts(1), [[response] * 2], lambda candidates: bad)


@pytest.mark.slow
def test_a_killed_command_continues_byte_for_byte(policy, tmp_path):
    make = lambda path, scorer=by_length, config=CONFIG, name="m": generate_file(
        policy, prompts(), config, path, identity={"model": name}, about={"command": "c"}, scorer=scorer
    )
    whole = make(tmp_path / "whole.jsonl.gz")
    assert whole["counts"]["prompts"] == 40 and whole["counts"]["responses"] == 80 and whole["command"] == "c"
    assert 0 < whole["counts"]["unfinished"] < 80

    calls = []

    def killed(candidates):
        calls.append(len(candidates))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return by_length(candidates)

    path = tmp_path / "killed.jsonl.gz"
    with pytest.raises(KeyboardInterrupt):
        make(path, killed)
    partial = tmp_path / "killed.jsonl.gz.partial"
    with partial.open("a") as file:
        file.write('{"rows": [')  # as a machine that loses power leaves it
    with pytest.raises(ValueError, match="model: 'm' there, 'other' now"):
        make(path, name="other")
    with pytest.raises(ValueError, match=r"generation\.seed: 0 there, 1 now"):
        make(path, config=dataclasses.replace(CONFIG, seed=1))
    before = len(calls)
    assert make(path, lambda candidates: calls.append(0) or by_length(candidates)) == whole
    assert len(calls) - before == 2, "the finished chunk of 16 prompts is not made again"
    assert path.read_bytes() == (tmp_path / "whole.jsonl.gz").read_bytes() and not partial.exists()
    assert make(path, killed) == whole, "what is finished is left alone"
    (tmp_path / "mine.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="is another's"):
        make(tmp_path / "mine.jsonl")
    with pytest.raises(ValueError, match="suffix"):
        make(tmp_path / "a.json")


def test_the_reader_takes_the_file(policy, tmp_path):
    path = tmp_path / "scored.jsonl.gz"
    generate_file(policy, prompts(), CONFIG, path, identity={}, about={}, scorer=by_length)
    rows = [json.loads(line) for line in gzip.open(path)]
    records, report = read_records(path, progress=False)
    assert report["read"].read == len(rows) and set(report["read"].dropped) <= {"identical_responses"}
    texts = {tuple(row["completions"]): row["scores"] for row in rows}
    assert len(records) > 30
    for record in records:
        said = tuple(r if isinstance(r, str) else r[0].content for r in record.responses)
        assert record.kind == "ranked" and list(record.targets) == texts[said]
    alone = tmp_path / "alone.jsonl"
    counts = generate_file(policy, prompts(), CONFIG, alone, identity={}, about={})["counts"]
    records, _ = read_records(alone, progress=False)
    assert {record.kind for record in records} == {"demonstration"}
    assert len(records) == 80 - counts.get("blank", 0)
    # In chunks as at once: the number of a prompt in the file decides its random numbers.
    rows, _ = rows_of(TOKENIZER, prompts(), respond(policy, prompts(), CONFIG), None)
    written = [json.loads(line) for line in alone.read_text().splitlines()]
    assert [row["completion"] for row in written] == [row["completion"] for row in rows]


def test_responses_do_not_depend_on_how_many_are_asked_for(policy):
    """And their log-probs are those of the training's own scoring."""
    asked = prompts(12)
    several = respond(policy, asked, CONFIG)
    single = respond(policy, asked[5:7], dataclasses.replace(CONFIG, samples=1), first=5)
    for one, of_two in zip(single, several[5:7], strict=True):
        np.testing.assert_array_equal(one[0].tokens, of_two[0].tokens)
    assert any(a.tokens.tolist() != b.tokens.tolist() for a, b in several)
    setup = setup_for("dpo", model=MODEL, mesh=policy.mesh)
    (scored,) = sequence_logps(
        setup, [policy.params], [prompt.tokens for prompt in asked], [own[0].tokens for own in several]
    )
    np.testing.assert_allclose(scored, [own[0].logps.sum() for own in several], rtol=1e-4, atol=1e-4)


def test_answers_of_another_model_are_rows_with_their_prompt(tmp_path):
    file, prompts = tmp_path / "answers.jsonl", [Prompt("a", "f:1"), Prompt("b", "f:2")]
    file.write_text(json.dumps({"prompt": "b", "completions": ["x", "y"], "best": 1}) + "\n")
    assert answers_in(str(file), prompts) == [None, "y"]
    for row, hint in (
        (3, "needs prompt"),
        ({"prompt": "b"}, "needs prompt"),
        ({"prompt": "c", "completion": "x"}, "none"),
    ):
        file.write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=hint):
            answers_in(str(file), prompts)


def test_candidates_are_scored_after_the_prompt_that_was_answered(tmp_path):
    """With its tools, and going on where it was begun, as the run's options say."""
    data, tokenizer = DataConfig(encoding=EncodingPolicy(prefill=True)), small_tokenizer(tmp_path, TOOLS)
    prompt = (Message("user", "yes?"), Message("assistant", "I say"))
    given = {"tools": '[{"name": "look"}]', "chat_template_kwargs": ""}
    own = Candidates(prompt, (" no", " yes"), (-1.0, -2.0), (2, 2), given)
    tree = _tree(own, Policy(MODEL, {}, make_mesh(MeshConfig()), tokenizer, (4,), data))
    assert tree.prompt.tolist() == encode_prompt(prompt, tokenizer, data.encoding, given=given)
    shown = tokenizer.decode(tree.prompt)
    assert "look" in shown and shown.endswith("I say")
    assert [tokenizer.decode(response) for response in tree.responses] == [" no<|end|>", " yes<|end|>"]
