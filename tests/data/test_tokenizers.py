"""The byte tokenizer and Hugging Face folders behind one protocol."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefjax.data.encoding import encode_prompt
from prefjax.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
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
