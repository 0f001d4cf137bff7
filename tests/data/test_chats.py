"""Chats: several turns in a response, system messages, tools and calls of them."""

import dataclasses

import numpy as np
import pytest

from prefjax.data.account import Finding, Rejection
from prefjax.data.encoding import EncodingPolicy, encode, encode_all
from prefjax.data.formats import parse
from prefjax.data.jsonl import to_row
from prefjax.data.records import Message, Record
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.rows.arrays import Branches, RowShape
from prefjax.rows.layout import build_rows
from prefjax.rows.parts import write_trees
from prefjax.rows.store import MemoryTrees
from prefjax.rows.trees import is_scored, token_ids
from tests.data.small_tokenizers import CHATML, TOOLS, small_tokenizer

BYTE = ByteTokenizer()
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
QUESTION = [{"role": "system", "content": "yes"}, {"role": "user", "content": "no"}]
CALLS = [
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "hello", "tool_call_id": "c1", "name": "weather"},
    {"role": "assistant", "content": "sure"},
]
ROW = {"prompt": QUESTION, "chosen": CALLS, "rejected": [{"role": "assistant", "content": "no"}], "tools": [WEATHER]}


@pytest.fixture
def make_tokenizer(tmp_path_factory):
    return lambda *args, **options: small_tokenizer(tmp_path_factory.mktemp("tokenizer"), *args, **options)


def chat(*turns: str) -> tuple[Message, ...]:
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return tuple(Message(roles[turn[0]], turn[2:]) for turn in turns)


def several(*turns: str) -> Record:
    return Record(chat("u:hello"), (chat(*turns), chat("a:no")), (1.0, 0.0), "pair", source="f:1")


def read(row) -> Record | Finding:
    """The record, or why there is none."""
    *_, last = parse(row, "f:1")
    return last


def marked(branch: np.ndarray, tokenizer) -> str:
    """Text in which what is not scored stands in braces."""
    ends = np.flatnonzero(np.diff(is_scored(branch))) + 1
    pieces = [(tokenizer.decode(token_ids(part)), is_scored(part)[0]) for part in np.split(branch, ends)]
    return "".join(text if scored else "{" + text + "}" for text, scored in pieces)


def test_only_the_assistants_turns_are_scored(make_tokenizer):
    record = several("a:yes", "u:why", "a:sure ", "u:to everything")
    assert marked(encode(record, BYTE).responses[0], BYTE) == " yes{\n\nuser: why\n\nassistant:} sure <eos>"
    tokenizer = make_tokenizer(CHATML)
    tree = encode(record, tokenizer)
    expected = "yes<|end|>{\n<|start|>user\nwhy<|end|>\n<|start|>assistant\n}sure <|end|>"
    assert marked(tree.responses[0], tokenizer) == expected
    assert marked(tree.responses[1], tokenizer) == "no<|end|>"
    # The pieces are the tokens of the whole conversation, since turns meet at special tokens.
    whole = tokenizer.render((*record.prompt, *record.responses[0][:3]), generate=False)
    assert [*tree.prompt, *token_ids(tree.responses[0])] == [tokenizer.bos_id, *tokenizer.encode(whole)][:-1]


def test_what_follows_the_last_answer_changes_nothing():
    with_question, without = (encode(several("a:yes", *more), BYTE) for more in (("u:why",), ()))
    np.testing.assert_array_equal(with_question.responses[0], without.responses[0])


def test_a_turn_that_the_template_shows_otherwise_later_is_read_and_not_scored(make_tokenizer):
    """Here earlier turns lose their thought, as in Qwen 3."""
    forgets = CHATML.replace("m.content", "(m.content.split('|')[-1] if not loop.last else m.content)")
    tokenizer = make_tokenizer(forgets)
    tree = encode(several("a:yes", "u:why", "a:sure|no"), tokenizer)
    text = marked(tree.responses[0], tokenizer)
    assert text.startswith("yes<|end|>{") and text.endswith("}sure|no<|end|>")
    trees, account = encode_all([several("a:yes|sure", "u:why", "a:sure")], tokenizer, progress=False)
    expected = "{sure<|end|>\n<|start|>user\nwhy<|end|>\n<|start|>assistant\n}sure<|end|>"
    assert marked(trees[0].responses[0], tokenizer) == expected and account["encode"].found == {"changed_turn": 1}


def test_rows_read_what_they_do_not_score(tmp_path):
    tree = encode(several("a:yes", "u:why", "a:sure"), BYTE)
    stored = write_trees(tmp_path / "trees", [tree], manifest={})[0]
    np.testing.assert_array_equal(stored.responses[0], MemoryTrees([tree])[0].responses[0])
    for layout in ("pairs", "packed_pairs", "shared", "shared_packed"):
        rows = build_rows([[dataclasses.replace(stored, example_id=0)]], RowShape(layout, 1, 128, 128, 1, Branches(2)))
        scored = rows.target_weights > 0
        assert rows.tokens.min() >= 0 and rows.target_ids.min() >= 0
        for slot, text in ((0, " yes sure<eos>"), (1, " no<eos>")):
            assert BYTE.decode(rows.target_ids[scored & (rows.response_slots == slot)]) == text
        later = rows.target_ids == ord("s")  # of "sure": its predictor has seen the question
        before = rows.tokens[np.nonzero(later & scored)[0][-1], rows.predictors[later & scored][-1]]
        assert chr(before) == " "


def test_truncation_counts_all_that_is_read():
    policy = EncodingPolicy(max_response_length=12, truncation="trim_responses")
    tree = encode(several("a:yes", "u:why", "a:sure"), BYTE, policy)
    assert marked(tree.responses[0], BYTE) == " yes{\n\nuser: }"


def test_tools_and_calls_reach_the_template(make_tokenizer):
    record, tokenizer = read(ROW), make_tokenizer(TOOLS)
    assert isinstance(record, Record)
    tree = encode(record, tokenizer)
    prompt = tokenizer.decode(tree.prompt)
    assert prompt.startswith('<s><|start|>system\n{"type": "function", "function": {"name": "weather"')
    assert prompt.endswith("<|start|>system\nyes<|end|>\n<|start|>user\nno<|end|>\n<|start|>assistant\n")
    assert marked(tree.responses[0], tokenizer) == (
        'CALL weather {"city": "Rome"}<|end|>{\n<|start|>tool\n[c1] hello<|end|>\n<|start|>assistant\n}sure<|end|>'
    )


def test_tools_are_written_as_they_were_read():
    record = read(ROW)
    again = read(to_row(record))
    assert again == record and again.tools and again.responses[0][0].fields
    assert read({**ROW, "tools": '[{"name": "f"}]'}).tools == '[{"name": "f"}]', "a list as JSON text"
    assert read({**ROW, "tools": []}).tools == "" == read({**ROW, "tools": " "}).tools


@pytest.mark.parametrize(
    "change, reason, field",
    [
        ({"tools": [{"description": "no name"}]}, "bad_tools", "tools[0]"),
        ({"tools": {"name": "f"}}, "bad_tools", "tools"),
        ({"tools": "[{"}, "bad_tools", "tools"),
        ({"chosen": [{"role": "assistant", "tool_calls": ["f"]}]}, "bad_tools", "chosen[0].tool_calls[0]"),
        ({"chosen": [{"role": "assistant", "tool_calls": CALL}]}, "bad_tools", "chosen[0].tool_calls"),
        (
            {"prompt": [{"role": "user", "content": "a", "tool_calls": [CALL]}]},
            "bad_tools",
            "prompt[0].tool_calls",
        ),
        ({"prompt": [{"role": "tool", "content": "a", "tool_call_id": 3}]}, "bad_tools", "prompt[0].tool_call_id"),
        ({"chosen": [{"role": "assistant", "tool_calls": []}]}, "missing_field", "chosen[0].content"),
        ({"chosen": [{"role": "assistant", "content": ""}]}, "empty_response", "chosen"),
        ({"prompt": [{"role": "system", "content": " "}]}, "empty_prompt", "prompt"),
        ({"chosen": [{"role": "user", "content": "a"}]}, "bad_role", "chosen"),
    ],
)
def test_malformed_chats_are_counted(change, reason, field):
    found = next(item for item in parse({**ROW, **change}, "f:1") if isinstance(item, Rejection))
    assert (found.reason, found.field) == (reason, field)


def test_a_template_without_tools_is_said(make_tokenizer):
    _, account = encode_all([read({**ROW, "chosen": "yes"})], make_tokenizer(CHATML), progress=False)
    assert account["encode"].found == {"tools_not_shown": 1} and account["encode"].kept == 1
    assert encode(read(ROW), BYTE).reason == "template_error", "the plain template shows no calls"


def test_a_special_token_in_a_call_is_found(make_tokenizer):
    call = {"function": {"name": "f", "arguments": {"x": "<|end|>"}}}
    record = read({**ROW, "chosen": [{"role": "assistant", "tool_calls": [call]}]})
    assert encode(record, make_tokenizer(TOOLS)).reason == "special_text"
    record = read({**ROW, "tools": [{"name": "f", "description": "</s>"}]})
    assert encode(record, make_tokenizer(TOOLS)).reason == "special_text"


def test_plain_text_leaves_a_column_of_tools_unread():
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "tools": [WEATHER]}
    assert [item.reason for item in parse(row, "f:1") if isinstance(item, Finding)] == ["unread_column"]
    assert read(row).tools == ""
