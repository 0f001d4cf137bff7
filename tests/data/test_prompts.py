"""Prompts alone: out of every shape of row, each once, with their tokens."""

import json

import pytest

from prefjax.data.encoding import decode_response
from prefjax.data.prompts import Prompt, encode_prompts, read_prompts
from prefjax.data.records import Message
from prefjax.data.tokenizers import ByteTokenizer
from tests.data.small_tokenizers import KINDS, small_tokenizer

USER, SAID = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
MORE = {"role": "user", "content": "and?"}


def read(tmp_path, rows):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read_prompts(str(file), progress=False)


def test_every_shape_gives_its_prompt_once(tmp_path):
    rows = [
        {"prompt": "alone", "id": 7, "other": 1},
        {"prompt": "pair", "chosen": "x", "rejected": "x"},  # no preference, but a prompt
        {"prompt": "alone", "completion": "again"},
        {"prompt": [USER], "completions": ["", "b"], "scores": [1, 2]},
        {"messages": [USER, SAID, MORE, SAID]},
        {"messages": [USER, SAID], "id": "hi again"},
        {"chosen": [USER, SAID, MORE, SAID], "rejected": [USER, SAID, MORE, USER]},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {"messages": [SAID]},
        {"prompt": "  "},
        {"completion": 3},
        "{",
        {"prompt": {"role": "prompter", "text": "tree", "replies": [{"role": "assistant", "text": "x", "rank": 0}]}},
    ]
    prompts, file = read(tmp_path, rows)
    hi, said, more = (Message(turn["role"], turn["content"]) for turn in (USER, SAID, MORE))
    assert [prompt.text for prompt in prompts] == [
        "alone",
        "pair",
        (hi,),
        (hi, said, more),
        "\n\nHuman: a\n\nAssistant:",
        (Message("user", "tree"),),
    ]
    assert [prompt.id for prompt in prompts] == [7, None, None, None, None, None]
    assert prompts[2].source.endswith("prompts.jsonl:4")
    dropped = file.account["prompts"].dropped
    assert file.account["prompts"].read == 13 and sum(dropped.values()) == 7
    assert dropped["repeated_prompt"] == 3 and dropped["empty_prompt"] == 2 and dropped["malformed_json"] == 1
    (digest,) = file.sources.values()
    assert len(digest) == 64
    with pytest.raises(ValueError, match="leave out the shares"):
        read_prompts("0.5 a.jsonl + 0.5 b.jsonl")


def test_text_becomes_a_turn_where_asked():
    tokenizer = ByteTokenizer()
    given = [Prompt("hello", "a:1"), Prompt((Message("user", "hello"),), "a:2"), Prompt("too long" * 9, "a:3")]
    plain, account = encode_prompts(given, tokenizer, chat=False, max_length=40)
    assert plain[0].text == "hello" and tokenizer.decode(plain[0].tokens) == "<bos>hello"
    assert tokenizer.decode(plain[1].tokens) == "<bos>user: hello\n\nassistant:"
    assert account["encode"].dropped == {"prompt_too_long": 1}
    turns, _ = encode_prompts(given, tokenizer, chat=True)
    assert turns[0].text == turns[1].text and (turns[0].tokens == turns[1].tokens).all() and len(turns) == 3


def test_a_sampled_response_is_the_text_after_the_prompt(tmp_path):
    """Also where a tokenizer would drop the space before its first word."""
    for tokenizer in (ByteTokenizer(), *(small_tokenizer(tmp_path, kind=kind) for kind in KINDS)):
        prompt = tokenizer.encode("the quick")
        response = [*tokenizer.encode(" brown fox", continues=True), tokenizer.eos_id]
        assert decode_response(prompt, response, tokenizer, chat=False) == " brown fox"
        assert decode_response(prompt, response, tokenizer, chat=True) == "brown fox"
        assert decode_response(prompt, [tokenizer.eos_id], tokenizer, chat=False) == ""
