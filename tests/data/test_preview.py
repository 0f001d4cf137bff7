"""What a preview shows of a tree: all that is read, marks for what is scored, and what is missing."""

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest

from prefjax.data.config import DataConfig
from prefjax.data.encoding import EncodingPolicy, encode
from prefjax.data.prepare import prepare, records_of
from prefjax.data.preview import legend, preview_tree, render, spans, tree_blocks
from prefjax.data.preview_page import preview_page
from prefjax.data.records import Message, Record
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.requirements import Requirements
from tests.data.small_tokenizers import CHATML, KINDS, small_tokenizer

BYTE, NO_LIMITS = ByteTokenizer(), EncodingPolicy()
PAIR = Record("Q: hi A:", (" yes, sure", " no"), (1.0, 0.0), "pair", source="f:1", scores=(4.0, 2.5), margin=1.5)
CHAT = Record(
    (Message("user", "hello"),),
    (
        (Message("assistant", "yes"), Message("user", "why"), Message("assistant", "sure")),
        (Message("assistant", "no"),),
    ),
    (1.0, 0.0),
    "pair",
    source="f:2",
)


def shown(record, tokenizer, policy=NO_LIMITS, **changes):
    tree = dataclasses.replace(encode(record, tokenizer, policy), example_id=3, **changes)
    return preview_tree(record, tree, tokenizer)


def test_bytes():
    assert shown(PAIR, BYTE, weight=0.5) == (
        "example 3, f:1, pair, weight 0.5, margin 1.5\n"
        "prompt: 9 tokens, not scored\n"
        "<bos>Q: hi A:\n"
        "chosen: target 1, score 4, 11 tokens, all scored; ends with <eos>\n"
        "[[ yes, sure<eos>]]\n"
        "rejected: target 0, score 2.5, 4 tokens, all scored; ends with <eos>\n"
        "[[ no<eos>]]"
    )


def test_a_conversation_with_a_tokenizer_folder(tmp_path):
    text = shown(CHAT, small_tokenizer(tmp_path, CHATML))
    assert "[[yes<|end|>]]\n<|start|>user\nwhy<|end|>\n<|start|>assistant\n[[sure<|end|>]]" in text
    assert "\n<s><|start|>user\nhello<|end|>\n<|start|>assistant\n" in text
    tokens, scored = map(int, re.search(r"chosen: target 1, (\d+) tokens, (\d+) of them scored", text).groups())
    assert 0 < scored < tokens


def test_what_the_policy_says_of_chats_is_shown():
    """A prompt that responses go on from, and one cut from the left, are measured against the same uncut tree."""
    said = lambda text: (Message("assistant", text),)
    record = Record((*CHAT.prompt, *said("yes, ")), (said("sure"), said("no")), (1.0, 0.0), "pair", source="f:3")
    policy = EncodingPolicy(prefill=True, max_prompt_length=29, truncation="trim_prompt_left")
    text = preview_tree(record, encode(record, BYTE, policy), BYTE, policy)
    assert "prompt: 29 tokens, not scored; 1 more were cut from the left\n<bos>ser: hello\n\nassistant: yes, \n" in text


def test_truncation_is_said():
    policy = EncodingPolicy(max_prompt_length=5, max_response_length=4, truncation="trim_both")
    text = shown(PAIR, BYTE, policy)
    assert "prompt: 5 tokens, not scored; 4 more were cut from the left\n<bos>i A:\n" in text
    assert "4 tokens, all scored; 7 more were cut from the right, so it does not end\n[[ yes]]" in text
    assert "4 tokens, all scored; ends with <eos>\n[[ no<eos>]]" in text


def test_other_branches_are_named():
    record = dataclasses.replace(PAIR, auxiliary=" maybe")
    text = shown(record, BYTE, baseline=np.array([*b" other", BYTE.eos_id], np.int32))
    assert "auxiliary response: 7 tokens, all scored; ends with <eos>\n[[ maybe<eos>]]" in text
    assert "baseline, a response to another prompt: 7 tokens, all scored; ends with <eos>\n[[ other<eos>]]" in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_keeps_the_space_before_it(kind, tmp_path):
    tokenizer = small_tokenizer(tmp_path, kind=kind)
    tree = encode(Record("hello", (" yes", " no"), (1.0, 0.0), "pair"), tokenizer)
    assert render(spans(tree.prompt, tree.responses[0], tokenizer), colour=False) == "[[ yes</s>]]"


def test_colours_say_the_same():
    tree = encode(CHAT, BYTE)
    plain, coloured = (preview_tree(CHAT, tree, BYTE, colour=colour) for colour in (False, True))
    strip = lambda text: re.sub(r"\x1b\[\d+m", "", text)
    assert strip(coloured) == plain.replace("[[", "").replace("]]", "")
    assert "\x1b[32m yes\x1b[0m\n\nuser: why\n\nassistant:\x1b[0m\x1b[32m sure\x1b[0m\x1b[32m\x1b[7m<eos>" in coloured
    assert "scored" in strip(legend(colour=True)) and "[[scored]]" in legend(colour=False)


def test_text_cannot_steer_the_terminal():
    record = dataclasses.replace(PAIR, prompt="Q\x1b[2J\x07\t:\u202edne\n")
    text = shown(record, BYTE)
    assert "\x1b" not in text and "Q\N{SYMBOL FOR ESCAPE}[2J\N{SYMBOL FOR BELL}\t:[U+202E]dne\n" in text


def test_records_come_back_with_their_trees(tmp_path):
    """What is dropped, held out or made of a ranking keeps its place; a tokenizer that changed is found out."""
    file = tmp_path / "a.jsonl"
    rows = [f'{{"prompt": "q{i}", "completions": ["a{i}", "b", "c"], "scores": [3, 1, 2]}}' for i in range(30)]
    rows.insert(3, '{"prompt": "long", "completions": ["' + "x" * 99 + '", "b"], "scores": [2, 1]}')
    file.write_text("\n".join(rows) + "\n")
    config = DataConfig(train=str(file), holdout=0.3, rankings="all", encoding=EncodingPolicy(max_length=40))
    need = Requirements(2)
    for split in ("train", "eval"):
        trees = prepare(config, need, BYTE, tmp_path, split=split, progress=False)
        pairs = list(records_of(config, need, BYTE, tmp_path, trees))
        assert len(pairs) == len(trees) > 3
        for row, (record, tree) in enumerate(pairs):
            assert tree.example_id == row and record.kind == "pair"
            assert BYTE.decode(tree.responses[1]) == record.responses[1] + "<eos>"
    file.write_text("\n".join(rows[::-1]) + "\n")
    with pytest.raises(ValueError, match=r"a.jsonl:\d+\[\d,\d\] does not become tree 0 of .*: prepare them again"):
        list(records_of(config, need, BYTE, tmp_path, trees))


class Page(html.parser.HTMLParser):
    """Tags, and the text by the class of the element that it stands in."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self.open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(dict(attributes).get("class", tag))

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, text):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(text)


HOSTILE = "</pre><script>alert('1')</script><img src=x onerror=\"alert(2)\">&amp;\x1b[2J"


def test_a_page_shows_the_same_and_nothing_of_it_is_markup(tmp_path):
    """What is scored stands in its class, counts are those of the account, and hostile text stays text."""
    file = tmp_path / "<b>&.jsonl"
    rows = [{"prompt": HOSTILE, "chosen": f" yes {HOSTILE}", "rejected": " no"}, {"prompt": "p", "chosen": HOSTILE}]
    rows += [{"prompt": "q", "chosen": "x", "rejected": "x", HOSTILE: 1}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(train=str(file), eval=str(file))
    trees = prepare(config, Requirements(2), BYTE, tmp_path, split="train", progress=False)
    [(record, tree)] = records_of(config, Requirements(2), BYTE, tmp_path, trees)
    text = preview_page(f"1 of {HOSTILE}", [tree_blocks(record, tree, BYTE)], trees.manifest)
    page = Page(text)
    assert not page.open, "every element is closed"
    assert {tag for tag, _ in page.tags} <= set(
        "html head meta title style body h1 h2 h3 p span section pre table caption tr th td br code".split()
    )
    assert {name for _, attributes in page.tags for name in attributes} <= {
        "class",
        "lang",
        "charset",
        "name",
        "content",
    }
    visible = HOSTILE.replace("\x1b", "\N{SYMBOL FOR ESCAPE}")
    assert "".join(page.texts["scored"]) == f"scored yes {visible} no"
    assert page.texts["scored special"] == ["<eos>", "<eos>"] and page.texts["special"] == ["special token", "<bos>"]
    assert visible in "".join(page.texts["pre"]) and str(file) in page.texts["p"][0]
    assert page.texts["caption"][0] == "read: 3 in, kept 1, dropped 2"
    assert page.texts["number"] == ["found", "dropped", *"11", *"11", *"10"]
    assert {"identical_responses", "missing_field", "unread_column"} <= set(page.texts["td"])
    assert [place for place in page.texts["code"] if place.startswith(f"{file}:")] == page.texts["code"]
    style = "".join(page.texts["style"])
    assert "prefers-color-scheme: dark" in style
    assert all(f".{name} {{" in style for name in ("scored", "special")), "colours go by class"
    assert "style=" not in text and "http" not in text and "\x1b" not in text
