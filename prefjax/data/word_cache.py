"""Ids of words that came before. Byte-level tokenizers split a text into words by a pattern, and a word's ids depend on
the word alone, so most of a text needs no tokenizer but a look-up: about three times as fast, with the same ids.

It answers only where that is certain: for pipelines of a known form, and for texts of characters on which the pattern
here splits as the tokenizer's own does, which is tried out for every character when it first comes up.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Of Llama 3 and of Qwen, which differ in how many digits make a word. All cover every text.
_KNOWN = frozenset(
    f"{_CONTRACTIONS}|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|\\p{{N}}{digits}|{_REST}" for digits in ("{1,3}", "", "+")
) | {_GPT2}
_DIGITS = r"[0-9]|[^0-9]+"  # every digit alone
_WORDS = 2**17  # that are kept
_LONGEST = 64  # characters of one that is kept
# Every kind of neighbour that a pattern tells apart, around a character.
_PROBES = ("{c}", "a{c}a", "1{c}1", ".{c}.", " {c} ", "a {c}b", " {c}{c}", "\n{c}\n", "'{c} ", "x'{c}e", " .{c}\n{c} ")


class WordCache:
    """The ids of texts by their words.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        patterns: `patterns_of` it.
        added: its added tokens, as its file has them.
    """

    def __init__(self, tokenizer: Any, patterns: Iterable[str], added: Iterable[Mapping[str, Any]]):
        import regex  # here: comes with transformers, and the byte tokenizer needs neither

        self._tokenizer = tokenizer
        self._patterns = [regex.compile(pattern).findall for pattern in patterns]
        self._of_ascii = [re.compile(_in_ascii(pattern), re.ASCII).findall for pattern in patterns]
        self._tokens = {token["content"]: token["id"] for token in added if not token["normalized"]}
        self._split = any_of(self._tokens)
        # The tokenizer looks for these in what is left, once it is normalised.
        self._others = [token["content"] for token in added if token["normalized"]]
        self._ids: dict[str, tuple[int, ...]] = {}
        self._agreed = {character for character in map(chr, range(128)) if self._tried(character)}
        self._disagreed = set(map(chr, range(128))) - self._agreed
        self._doubtful = sorted(self._disagreed)  # of ASCII, which most texts are

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_ids": {}}

    def encode(self, text: str) -> list[int] | None:
        """Ids of a text, added tokens that it spells among them; None where only the tokenizer can tell."""
        if not self._agree(text) or any(other in text for other in self._others):
            return None
        if len(self._ids) > _WORDS:
            self._ids.clear()
        ids: list[int] = []
        end = 0
        for found in self._split.finditer(text):
            ids += self._of_words(text[end : found.start()])
            ids.append(self._tokens[found.group()])
            end = found.end()
        return ids + self._of_words(text[end:]) if end else self._of_words(text)

    def _of_words(self, text: str) -> list[int]:
        words = self._words(text)
        try:
            return list(itertools.chain.from_iterable(map(self._ids.__getitem__, words)))
        except KeyError:
            new = [word for word in dict.fromkeys(words) if word not in self._ids]
            encodings = self._tokenizer.encode_batch_fast(new, add_special_tokens=False)
            own = {word: tuple(encoding.ids) for word, encoding in zip(new, encodings, strict=True)}
            self._ids |= {word: ids for word, ids in own.items() if len(word) <= _LONGEST}
            long = {word: own[word] for word in new if len(word) > _LONGEST}
            return list(itertools.chain.from_iterable(long.get(word) or self._ids[word] for word in words))

    def _words(self, text: str) -> list[str]:
        words = [text] if text else []
        for find in self._of_ascii if text.isascii() else self._patterns:
            words = find(words[0]) if len(words) == 1 else [word for own in words for word in find(own)]
        return words

    def _agree(self, text: str) -> bool:
        """Whether the text is split here as the tokenizer splits it."""
        if text.isascii():
            return not any(character in text for character in self._doubtful)
        for character in (characters := set(text)) - self._agreed - self._disagreed:
            (self._agreed if self._tried(character) else self._disagreed).add(character)
        return characters <= self._agreed

    def _tried(self, character: str) -> bool:
        composes = unicodedata.category(character)[0] == "M" or "ᄀ" <= character <= "ᇿ"  # marks, and Hangul's parts
        if self._tokenizer.normalizer is not None:
            if composes or self._tokenizer.normalizer.normalize_str(character) != character:
                return False
        for probe in _PROBES:
            text = probe.replace("{c}", character)
            theirs = [text[a:b] for _, (a, b) in self._tokenizer.pre_tokenizer.pre_tokenize_str(text)]
            if theirs != self._words(text):
                return False
        return True


def cache_of(tokenizer: Any, backend: Mapping[str, Any]) -> WordCache | None:
    """A cache for a tokenizer whose file is `backend`; None where its pipeline is of another form."""
    patterns, added = patterns_of(backend), backend["added_tokens"]
    strict = any(token[option] for token in added for option in ("lstrip", "rstrip", "single_word"))
    return None if patterns is None or strict else WordCache(tokenizer, patterns, added)


def patterns_of(backend: Mapping[str, Any]) -> list[str] | None:
    """The patterns by which words are found, each in what the one before found; None where that is not all."""
    model, normalizer = backend["model"], backend["normalizer"]
    if (
        model["type"] != "BPE"
        or model.get("dropout")
        or any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix"))
    ):
        return None
    if normalizer is not None and normalizer["type"] != "NFC":
        return None
    steps = backend["pre_tokenizer"] or {"type": "none"}
    *before, last = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    patterns = list(map(_pattern, before)) + ([_GPT2] if last.get("use_regex", True) else [])
    return patterns if patterns and None not in patterns else None


def _pattern(step: Mapping[str, Any]) -> str | None:
    if step["type"] == "Digits" and step["individual_digits"]:
        return _DIGITS
    if step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        pattern = step["pattern"].get("Regex")
        return pattern if pattern in _KNOWN else None
    return None


def _in_ascii(pattern: str) -> str:
    """The same of text in ASCII, where Python's own engine is twice as fast."""
    for letters, written in ((r"\p{L}", "A-Za-z"), (r"\p{N}", "0-9")):
        pattern = re.sub(r"(\[[^\]]*)" + re.escape(letters), lambda found, own=written: found[1] + own, pattern)
        pattern = pattern.replace(letters, f"[{written}]")
    return pattern


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Any of the texts, the longest first; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)")
