"""Text <-> token ids, and chats -> text: the built-in byte tokenizer, or any Hugging Face tokenizer folder."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, SupportsIndex, runtime_checkable

from prefjax.data.records import Message

PLAIN = "plain"  # names the chat template that is built in, in place of a tokenizer's own


class TemplateError(ValueError):
    """The chat template refuses a conversation, for instance because it wants roles to alternate."""


@runtime_checkable
class Tokenizer(Protocol):
    """What prefjax needs of a tokenizer. BOS, EOS and turns are put around text by `encoding`, never by `encode`.

    bos_id             the id that begins every sequence, or None if the tokenizer's own rule adds none
    eos_id, pad_id     ids; padding is marked by masks, so pad_id may equal eos_id
    vocab_size         number of ids
    special_ids        ids that stand for no text (BOS, EOS, ends of turns, ...)
    has_chat_template  whether `render` works
    fingerprint        hash of everything that decides which ids a text gets
    fingerprints       its parts by name, "tokenizer" and "template": to say which of them changed
    """

    bos_id: int | None
    eos_id: int
    pad_id: int
    vocab_size: int
    special_ids: frozenset[int]
    has_chat_template: bool
    fingerprint: str
    fingerprints: Mapping[str, str]

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        """Ids of a text. Special tokens spelled in it are parsed; none is added. `continues`: the text goes on from
        earlier text, so it gets no mark for a beginning (the space that SentencePiece puts before a first word)."""

    def offsets(self, text: str, *, continues: bool = False) -> list[tuple[int, int]]:
        """Characters [start, end) of the text that each of the ids of `encode` stands for."""

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text of ids, special tokens spelled out."""

    def special_in(self, text: str) -> str | None:
        """The first special token that the text spells, or None."""

    def render(self, messages: Sequence[Message], *, generate: bool, tools: str = "") -> str:
        """A chat as text; `generate` adds the header after which the assistant speaks, `tools` is `Record.tools`.
        Raises TemplateError."""


def load_tokenizer(name_or_path: str | Path, chat_template: str | None = None) -> Tokenizer:
    """The tokenizer of a run.

    Args:
        name_or_path: "byte", or a folder in the Hugging Face format.
        chat_template: in place of the folder's own: "plain" for the built-in one, or a Jinja template.
    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: chat_template with "byte", which has its one; or a folder that lacks EOS or a fast tokenizer.
    """
    if str(name_or_path) == "byte":
        if chat_template not in (None, PLAIN):
            raise ValueError("the byte tokenizer has the plain chat template only: drop chat_template")
        return ByteTokenizer()
    return HuggingFaceTokenizer(name_or_path, chat_template)


def render_plain(messages: Sequence[Message], *, generate: bool) -> str:
    """The built-in chat template: "user: Hello\\n\\nassistant:" is answered by " Hi" and EOS."""
    if any('"tool_calls"' in message.fields for message in messages):
        raise TemplateError("the plain template shows no calls of tools")
    turns = [f"{message.role}: {message.content}" for message in messages]
    return "\n\n".join([*turns, "assistant:"] if generate else turns)


class ByteTokenizer:
    """UTF-8 bytes are ids 0..255; padding, BOS and EOS follow. No training, no files; any text round-trips."""

    pad_id = 256
    bos_id = 257
    eos_id = 258
    vocab_size = 259
    special_ids = frozenset((256, 257, 258))
    has_chat_template = True
    fingerprint = hashlib.sha256(b"prefjax byte tokenizer, 1").hexdigest()
    fingerprints = {"tokenizer": fingerprint, "template": PLAIN}

    _NAMES = {256: "<pad>", 257: "<bos>", 258: "<eos>"}

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        return list(text.encode())

    def offsets(self, text: str, *, continues: bool = False) -> list[tuple[int, int]]:
        return [(at, at + 1) for at, character in enumerate(text) for _ in character.encode()]

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        data = b"".join(self._NAMES[i].encode() if i in self._NAMES else bytes((i,)) for i in map(int, ids))
        return data.decode(errors="replace")  # a truncated or sampled response may end inside a character

    def special_in(self, text: str) -> str | None:
        return None

    def render(self, messages: Sequence[Message], *, generate: bool, tools: str = "") -> str:
        return render_plain(messages, generate=generate)


class HuggingFaceTokenizer:
    """A tokenizer folder of the Hugging Face format (tokenizer.json), read by transformers; no network, no torch."""

    def __init__(self, folder: str | Path, chat_template: str | None = None):
        """Args and errors as in `load_tokenizer`."""
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"no tokenizer folder {folder}: give 'byte', or download the model's folder first")
        # transformers would advise to install torch, which prefjax has no use for.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        import tokenizers
        from transformers import AutoTokenizer

        self._wrapped = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        if not self._wrapped.is_fast:
            raise ValueError(f"{folder}: needs a fast tokenizer (tokenizer.json); save it once with use_fast=True")
        if self._wrapped.eos_token_id is None:
            raise ValueError(f"{folder}: the tokenizer declares no eos_token, so no response could end")
        if chat_template not in (None, PLAIN):
            self._wrapped.chat_template = chat_template
        self._plain = chat_template == PLAIN
        self._folder = folder

        backend = json.loads(self._wrapped.backend_tokenizer.to_str())
        backend["truncation"] = backend["padding"] = None
        self._beginning = tokenizers.Tokenizer.from_str(json.dumps(backend))
        self._continuing = tokenizers.Tokenizer.from_str(json.dumps(_without_leading_space(backend)))

        self.eos_id: int = self._wrapped.eos_token_id
        self.pad_id: int = self.eos_id if self._wrapped.pad_token_id is None else self._wrapped.pad_token_id
        self.bos_id = self._first_id_added()
        self.vocab_size = len(self._wrapped)
        special = {i: token.content for i, token in self._wrapped.added_tokens_decoder.items() if token.special}
        # The unknown token is special to transformers, yet it stands for text.
        self.special_ids = frozenset(special) - {self._wrapped.unk_token_id} | {self.eos_id}
        self._special_pattern = re.compile("|".join(map(re.escape, special.values())) or "(?!)")
        self.has_chat_template = self._plain or self._wrapped.chat_template is not None
        template = PLAIN if self._plain else self._wrapped.chat_template
        identity = json.dumps([backend, template, self.bos_id, self.eos_id, self.pad_id], sort_keys=True)
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        without = json.dumps([backend, self.bos_id, self.eos_id, self.pad_id], sort_keys=True)
        self.fingerprints = {
            "tokenizer": hashlib.sha256(without.encode()).hexdigest(),
            "template": PLAIN if self._plain else hashlib.sha256(json.dumps(template).encode()).hexdigest(),
        }

    def _first_id_added(self) -> int | None:
        """BOS, if the tokenizer puts it before a text. A declared bos_token proves nothing: GPT-2 and SmolLM2 declare
        one that no sequence begins with."""
        ids = self._wrapped("a")["input_ids"]
        return self._wrapped.bos_token_id if ids and ids[0] == self._wrapped.bos_token_id else None

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        return self._encoding(text, continues).ids

    def offsets(self, text: str, *, continues: bool = False) -> list[tuple[int, int]]:
        return self._encoding(text, continues).offsets

    def _encoding(self, text: str, continues: bool):
        return (self._continuing if continues else self._beginning).encode(text, add_special_tokens=False)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        return self._beginning.decode([int(i) for i in ids], skip_special_tokens=False)

    def special_in(self, text: str) -> str | None:
        found = self._special_pattern.search(text)
        return found.group() if found else None

    def render(self, messages: Sequence[Message], *, generate: bool, tools: str = "") -> str:
        if self._plain:
            return render_plain(messages, generate=generate)
        if not self.has_chat_template:
            raise ValueError(
                f"{self._folder} has no chat template, so it cannot encode messages: give chat_template='plain' (the "
                "built-in one) or a Jinja template, or use records of plain text"
            )
        import jinja2

        turns, given = [message.as_dict() for message in messages], json.loads(tools) if tools else None
        try:
            return self._wrapped.apply_chat_template(turns, tools=given, tokenize=False, add_generation_prompt=generate)
        except (jinja2.exceptions.TemplateError, TypeError) as error:  # of a field of another type than it expects
            raise TemplateError(str(error)) from error


def _without_leading_space(backend: dict) -> dict:
    """The same tokenizer, for text that goes on: without the space that some put before the first word."""
    backend = json.loads(json.dumps(backend))

    def edit(part):
        if part is None:
            return None
        if part["type"] == "Prepend":
            return None
        if part["type"] == "Metaspace":
            part["prepend_scheme"] = "never"
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
        for group in ("normalizers", "pretokenizers"):
            if group in part:
                part[group] = [kept for kept in map(edit, part[group]) if kept is not None]
        return part

    backend["normalizer"] = edit(backend["normalizer"])
    backend["pre_tokenizer"] = edit(backend["pre_tokenizer"])
    return backend
