"""Words looked up have the ids that the tokenizer gives them: on real text, on text made to tell engines apart."""

import itertools
import json
import pickle
import random
import time

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers

from prefjax.data.account import Account
from prefjax.data.limits import in_time
from prefjax.data.readers import stream_records
from prefjax.data.tokenizers import HuggingFaceTokenizer
from prefjax.data.word_cache import _KNOWN, cache_of, patterns_of

LLAMA3, QWEN = (next(p for p in _KNOWN if f"N}}{digits}| ?" in p) for digits in ("{1,3}", ""))
SPLIT = lambda pattern: pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
BYTES = lambda use_regex=False: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
PIPELINES = {
    "gpt2": (None, BYTES(True)),
    "smollm2": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES(True)])),
    "llama3": (None, pre_tokenizers.Sequence([SPLIT(LLAMA3), BYTES()])),
    "qwen": (normalizers.NFC(), pre_tokenizers.Sequence([SPLIT(QWEN), BYTES()])),
}
SAID = (
    "The quick brown fox's 123 foxes don't say \u201cyes\u201d\n\n  to 45.6% of it, d\u00e9j\u00e0 vu; "
    "\u4f60\u597d \u2014 I'M HE'LL"
)


def trained(name: str) -> tokenizers.Tokenizer:
    normalizer, pre_tokenizer = PIPELINES[name]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>", "<|endless|>"]
    tokenizer.train_from_iterator(
        [SAID] * 2,
        trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.add_tokens([AddedToken("<think>", normalized=True)])
    return tokenizer


@pytest.fixture(scope="module", params=PIPELINES)
def both(request):
    tokenizer = trained(request.param)
    cache = cache_of(tokenizer, json.loads(tokenizer.to_str()))
    assert cache is not None
    return tokenizer, cache


def same(both, text: str) -> bool:
    """Whether the cache answered; what it answers is right."""
    tokenizer, cache = both
    ids = cache.encode(text)
    assert ids is None or ids == tokenizer.encode(text, add_special_tokens=False).ids, repr(text)
    return ids is not None


# Spaces, line ends, marks and digits of other scripts, contractions, Hangul's parts, controls, tokens and their parts.
PIECES = [
    *" \n\r\t\u00a0\u2003\u3000\u2028\u0085\x1c\x1f\x0b\x00'sStT\u017fLlvVeE.,_-%#\u201c\u2019\u00bd\u2167\u0664\u0967",
    *"\u00df\u01c5\u0301\u0903\u1100\u1161\uac00\u4f60\u3042\U0001f600\U00010400\u200d\ufeff\ufffd\U000e0001",
    *("12", "word", "Word", " a", "  ", "\r\n", "\n\n", "'ll", "'RE", "e\u0301"),
    *("<|end|>", "<|endless|>", "<|end", "<think>"),
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(st.sampled_from(PIECES), max_size=12))
def test_text_on_which_engines_may_differ(both, parts):
    same(both, "".join(parts))


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=8))
def test_any_text(both, text):
    same(both, text)


@pytest.fixture(scope="module")
def texts(real_data):
    files = real_data / "ultrafeedback_1k_train.jsonl.gz"
    records = list(itertools.islice(stream_records(files, Account(), progress=False), 20))
    return [turn.content for record in records for text in (record.prompt, *record.responses) for turn in text]


def test_ordinary_text_is_answered(both, texts):
    assert all(same(both, text) for text in texts if text.isascii())
    assert same(both, f"<|end|>{SAID}<|endless|><|end|>\n") and same(both, "") and same(both, SAID * 2)
    assert not same(both, "I <think> so"), "a token that is looked for once the text is normalised"
    assert same(both, "x" * 200 + " y") and same(both, "x" * 200), "long words are not kept"


def test_what_is_kept_is_bounded_and_left_behind(both, monkeypatch):
    tokenizer, cache = both
    monkeypatch.setattr("prefjax.data.word_cache._WORDS", 50)
    for n in range(200):
        assert same((tokenizer, cache), f"word{n} and {random.Random(n).random()}")
        assert len(cache._ids) < 150
    copy = pickle.loads(pickle.dumps(cache))
    assert not copy._ids and same((tokenizer, copy), SAID)


def test_other_pipelines_are_left_to_the_tokenizer(both):
    tokenizer, _ = both
    backend = json.loads(tokenizer.to_str())
    assert patterns_of(backend)
    other = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
    for change in (
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "split": True}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [other, json.loads(BYTES().__getstate__())]}},
        {"model": backend["model"] | {"dropout": 0.1}},
        {"model": backend["model"] | {"end_of_word_suffix": "</w>"}},
    ):  # fmt: skip
        assert patterns_of(backend | change) is None
    strict = [token | {"lstrip": True} for token in backend["added_tokens"]]
    assert cache_of(tokenizer, backend | {"added_tokens": strict}) is None


def test_the_tokenizer_uses_it(tmp_path):
    trained("llama3").save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = HuggingFaceTokenizer(tmp_path)
    assert tokenizer.encode(SAID) == tokenizer._encoding(SAID, False).ids == tokenizer.encode(SAID, continues=True)
    assert tokenizer._words[True]._ids


def test_what_runs_too_long_is_stopped_and_the_rest_is_not():
    def forever():
        while True:
            pass

    assert in_time(lambda: 7, 0.05) == 7
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        in_time(forever, 0.05)
    assert time.monotonic() - started < 20

    def swallowed():
        try:
            forever()
        except TimeoutError:
            return 1

    with pytest.raises(TimeoutError):
        in_time(swallowed, 0.05)
    total = sum(in_time(lambda n=n: n, 0.05) for n in range(10_000))  # nothing comes up later, in other code
    assert total == 49_995_000
