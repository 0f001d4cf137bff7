"""The byte tokenizer and Hugging Face folders behind one protocol."""

import json
import mmap
import resource
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefjax.data import limits, tokenizers
from prefjax.data.encoding import encode_prompt
from prefjax.data.records import Message
from prefjax.data.tokenizer_files import write_tokenizer
from prefjax.data.tokenizers import ByteTokenizer, TemplateError, Tokenizer, load_tokenizer
from tests.data.small_tokenizers import CHATML, KINDS, WITH_BOS, small_tokenizer

BYTE = ByteTokenizer()


@pytest.fixture
def make_tokenizer(tmp_path_factory):
    return lambda *args, **options: small_tokenizer(tmp_path_factory.mktemp("tokenizer"), *args, **options)


@given(st.text())
def test_bytes_round_trip(text):
    ids = BYTE.encode(text)
    assert BYTE.decode(ids) == text and all(0 <= token < 256 for token in ids)


def test_byte_tokenizer():
    assert BYTE.decode([104, BYTE.bos_id, 0xC3, BYTE.eos_id]) == "h<bos>\N{REPLACEMENT CHARACTER}<eos>"
    assert len({BYTE.pad_id, BYTE.bos_id, BYTE.eos_id, *range(256)}) == BYTE.vocab_size
    assert load_tokenizer("byte").fingerprint == load_tokenizer("byte", "plain").fingerprint
    with pytest.raises(ValueError, match="chat_template"):
        load_tokenizer("byte", CHATML)
    with pytest.raises(FileNotFoundError, match="no tokenizer folder nowhere"):
        load_tokenizer("nowhere")


def test_both_tokenizers_keep_the_protocol(make_tokenizer):
    for tokenizer in (BYTE, make_tokenizer()):
        assert isinstance(tokenizer, Tokenizer)
        assert {tokenizer.bos_id, tokenizer.eos_id} <= tokenizer.special_ids
        assert max(tokenizer.special_ids) < tokenizer.vocab_size


def test_code_of_a_tokenizer_never_runs_and_nobody_is_asked(tmp_path, monkeypatch):
    """With or without somebody who would say yes."""
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\nclass C: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(ValueError, match=f"^{tmp_path}: its tokenizer cannot be read: "):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_named(tmp_path, name):
    small_tokenizer(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])
    with pytest.raises(ValueError, match=f"^{tmp_path}: its tokenizer cannot be read: "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "template,message",
    [
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ range(10 ** 9) | list }}", "OverflowError: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ 'a'.index('b') }}", "ValueError: substring"),
        ("{{ '%2000d' % 1 }}", "2000 characters of one conversation"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError"),
        ("{{ messages.x.y }}", "has no attribute 'x'"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% if %}", "Expected an expression"),
        ("{{ 9 ** (9 ** 9) }}", r":1: OverflowError: \*\* of numbers that are too large"),
        ("{{ 'a' * (10 ** (10 ** 8)) }}", "OverflowError: .. of"),
        ("{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}", "OverflowError"),
        ("{{ messages | length ** messages | length }}{{ (messages | length + 8) ** 99999999 }}", "OverflowError"),
        ("{{ ('f' * 9999) | int(base=16) % ('e' * 5000) | int(base=16) }}", "OverflowError: % of"),
        ("{{ 5 | round(-999999999) }}{{ 5 | round(999999999, 'ceil') }}", "OverflowError: round"),
        ("{{ 2.5 | round(999999999, 'ceil') }}", "OverflowError: round"),
    ],
)
def test_a_template_that_fails_rejects_the_conversation(make_tokenizer, monkeypatch, template, message):
    monkeypatch.setattr(tokenizers, "_RENDERED", 1000)
    tokenizer = make_tokenizer(template)
    with pytest.raises(TemplateError, match=message):
        tokenizer.render((Message("user", "a"),), generate=True)


def test_arithmetic_of_a_template_is_as_ever(make_tokenizer):
    """Where tools are offered too, which go another way through transformers."""
    tokenizer = make_tokenizer("{{ 2 ** 10 }} {{ -7 // 2 }} {{ -7 % 4 }} {{ 3 / 2 }} {{ 'ab' * 2 }} {{ 2.0 ** -1 }} ")
    huge = make_tokenizer("{{ 9 ** (9 ** 9) }}{{ tools }}")
    for tools in ("", '[{"type": "function"}]'):
        turns = dict(messages=(Message("user", "a"),), generate=True, tools=tools)
        assert tokenizer.render(**turns) == "1024 -4 1 1.5 abab 0.5 "
        with pytest.raises(TemplateError, match="OverflowError"):
            huge.render(**turns)
    rounds = make_tokenizer("{{ 2.567 | round(2) }} {{ 42 | round(-1) | int }} {{ 2.1 | round(0, 'ceil') }}")
    assert rounds.render((Message("user", "a"),), generate=True) == "2.57 40 3.0"


@pytest.mark.parametrize("body", ["{{ messages[0].content }}", ""])
def test_a_template_that_does_not_end_is_refused(make_tokenizer, monkeypatch, body):
    monkeypatch.setattr(tokenizers, "_RENDERING", 0.2)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}"
    tokenizer = make_tokenizer(loops + body + "{% endfor %}" * 3)
    with pytest.raises(ValueError, match="its chat template ran for more than 0.2 s on one conversation: give"):
        tokenizer.render((Message("user", ""),), generate=True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    ],
)
def test_a_template_that_takes_all_memory_is_refused(make_tokenizer, monkeypatch, template):
    monkeypatch.setattr(tokenizers, "_MEMORY", 1 << 28)
    tokenizer = make_tokenizer(template)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ValueError, match="its chat template took more than 0.25 GiB of memory on one"):
        tokenizer.render((Message("user", ""),), generate=True)
    assert resource.getrlimit(resource.RLIMIT_AS) == limit


def test_named_templates_go_with_an_export(make_tokenizer, tmp_path):
    folder = make_tokenizer(CHATML)._folder
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "brief.jinja").write_text("{{ messages[0].content }}")
    write_tokenizer(tmp_path, folder)
    assert load_tokenizer(tmp_path).fingerprint == load_tokenizer(folder).fingerprint
    assert load_tokenizer(folder).fingerprint != make_tokenizer(CHATML).fingerprint


def test_fingerprint_is_of_the_content(make_tokenizer):
    prints = [make_tokenizer(t).fingerprint for t in (CHATML, CHATML, WITH_BOS, None)]
    assert prints[0] == prints[1] and len(set(prints)) == 3
    assert make_tokenizer(chat_template=CHATML).fingerprint == prints[0]
    assert make_tokenizer(CHATML, chat_template="plain").fingerprint not in prints
    assert make_tokenizer(CHATML, adds_bos=False).fingerprint not in prints


def test_a_declared_bos_that_the_tokenizer_does_not_add_is_none(make_tokenizer):
    tokenizer = make_tokenizer(CHATML, adds_bos=False)
    assert tokenizer.bos_id is None and make_tokenizer(CHATML).bos_id == 1
    assert tokenizer.decode(encode_prompt("Q: hi A:", tokenizer)) == "Q: hi A:"


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_goes_on_gets_no_mark_of_a_beginning(make_tokenizer, kind):
    """Prompt ids + response ids read as the one text, wherever the boundary falls."""
    tokenizer = make_tokenizer(kind=kind)
    for prompt, response in (("hello", " yes"), ("hello ", "yes"), ("hel", "lo"), ("hello", "\nyes")):
        ids = tokenizer.encode(prompt) + tokenizer.encode(response, continues=True)
        assert tokenizer.decode(ids) == prompt + response
    if kind != "bytes":
        whole = tokenizer.encode("hello yes")
        assert tokenizer.encode("hello") + tokenizer.encode(" yes", continues=True) == whole
        assert tokenizer.encode("yes", continues=True) != tokenizer.encode("yes")


def test_memory_is_bounded_beside_what_the_process_has_grown_to():
    """By training between two renders, say, which took more than a template may."""
    with limits.bounded_memory(2**28):
        pass
    grown = mmap.mmap(-1, 2**30)
    time.sleep(0.1)
    with limits.bounded_memory(2**28):
        assert len(bytearray(2**26)) == 2**26
    with pytest.raises(MemoryError), limits.bounded_memory(2**28):
        bytearray(2**30)
    grown.close()
