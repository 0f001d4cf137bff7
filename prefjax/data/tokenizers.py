"""Text <-> token ids, and chats -> text: the built-in byte tokenizer, or any Hugging Face tokenizer folder."""

import copy
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

from prefjax.data.chat_templates import (
    CLOCK,
    FROZEN_CLOCK,
    arguments_read,
    arguments_text,
    check_given,
    clock_of,
    refuse_unread,
    template_file,
    today,
    wants_parts,
    what_failed,
)
from prefjax.data.limits import bounded_memory, in_time
from prefjax.data.records import Message
from prefjax.data.word_cache import any_of, cache_of

_PLAIN_TURN = {"role", "content"}
PLAIN = "plain"  # names the chat template that is built in, in place of a tokenizer's own
_RENDERING = 5.0  # seconds of one thread that a template may take for one conversation
_MEMORY = 1 << 31  # bytes that it may take beside
_RENDERED = 2**26  # characters that it may make of it


class TemplateError(ValueError):
    """The chat template refuses a conversation, for instance because it wants roles to alternate."""


@runtime_checkable
class Tokenizer(Protocol):
    """What prefjax needs of a tokenizer. BOS, EOS and turns are put around text by `encoding`, never by `encode`.

    bos_id             the id that begins every sequence, or None if the tokenizer's own rule adds none
    eos_id, pad_id     ids; padding is marked by masks, so pad_id may equal eos_id
    vocab_size         number of ids that the model has; records with an id from there on are rejected
    special_ids        ids that stand for no text (BOS, EOS, ends of turns, ...)
    has_chat_template  whether `render` works
    template           source of the chat template, of all its variants one after the other; empty: the built-in one
    date               the day, as 2026-11-29, that a template which reads the clock is told; empty: it reads none
    fingerprint        hash of everything that decides which ids a text gets, but for a date that nobody set
    fingerprints       its parts by name, "tokenizer" and "template": to say which of them changed
    """

    bos_id: int | None
    eos_id: int
    pad_id: int
    vocab_size: int
    special_ids: frozenset[int]
    has_chat_template: bool
    template: str
    date: str
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

    def ends_in(self, text: str) -> list[tuple[int, int]]:
        """Characters [start, end) of tokens that can end a turn: special ones, or where there are none, other added
        ones, which some tokenizers end turns with."""

    def render(
        self, messages: Sequence[Message], *, generate: bool, tools: str = "", chat_template_kwargs: str = ""
    ) -> str:
        """A chat as text; `generate` adds the header after which the assistant speaks, `tools` and
        `chat_template_kwargs` are those of a `Record`. Raises TemplateError."""

    def on_day(self, date: str) -> "Tokenizer":
        """The same tokenizer, with a template that is told another day."""


def load_tokenizer(
    name_or_path: str | Path,
    chat_template: str | None = None,
    *,
    vocab_size: int = 0,
    chat_template_kwargs: str = "",
    date: str = "",
) -> Tokenizer:
    """The tokenizer of a run.

    Args:
        name_or_path: "byte", or a folder in the Hugging Face format.
        chat_template: in place of the folder's own: "plain" for the built-in one, or a Jinja template.
        vocab_size: of the model, which may lack the tokenizer's last ids as Gemma 3 1B lacks that of images; 0: it has
            all of them.
        chat_template_kwargs: what the template is given besides the turns, a JSON object as text; empty: nothing.
        date: what a template that reads the clock is told, as 2026-11-29; empty: today.
    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: chat_template with "byte", which has its one; or a folder that lacks EOS or a fast tokenizer, that
            is damaged, or that wants code of its own to run, which never does; or a model without its BOS or EOS; or
            arguments, or a date, that are not of their form, or arguments that the template does not read.
    """
    check_given(chat_template_kwargs, date)
    tokenizer: Tokenizer
    if str(name_or_path) == "byte":
        if chat_template not in (None, PLAIN):
            raise ValueError("the byte tokenizer has the plain chat template only: drop chat_template")
        refuse_unread(arguments_text(chat_template_kwargs), "", "the plain chat template")
        tokenizer = ByteTokenizer()
    else:
        told = dict(chat_template_kwargs=chat_template_kwargs, date=date)
        tokenizer = HuggingFaceTokenizer(name_or_path, chat_template, vocab_size=vocab_size, **told)
    last = max(tokenizer.eos_id, tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id)
    if 0 < vocab_size <= last:
        raise ValueError(
            f"model.vocab_size={vocab_size}, but {name_or_path} begins or ends sequences with id {last}: raise it "
            "above, or give data.tokenizer the folder that belongs to the checkpoint"
        )
    return tokenizer


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
    template = date = ""
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

    def ends_in(self, text: str) -> list[tuple[int, int]]:
        return []

    def render(
        self, messages: Sequence[Message], *, generate: bool, tools: str = "", chat_template_kwargs: str = ""
    ) -> str:
        return render_plain(messages, generate=generate)

    def on_day(self, date: str) -> Tokenizer:
        return self


class HuggingFaceTokenizer:
    """A tokenizer folder of the Hugging Face format (tokenizer.json), read by transformers; no network, no torch."""

    def __init__(
        self,
        folder: str | Path,
        chat_template: str | None = None,
        *,
        vocab_size: int = 0,
        chat_template_kwargs: str = "",
        date: str = "",
    ):
        """Args and errors as in `load_tokenizer`."""
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"no tokenizer folder {folder}: give 'byte', or download the model's folder first")
        # transformers would advise to install torch, which prefjax has no use for.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        import tokenizers
        from transformers import AutoTokenizer

        try:
            self._wrapped = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # of every kind, as the files of a stranger's folder may hold anything
            raise ValueError(f"{folder}: its tokenizer cannot be read: {type(error).__name__}: {error}") from error
        if not self._wrapped.is_fast:
            raise ValueError(f"{folder}: needs a fast tokenizer (tokenizer.json); save it once with use_fast=True")
        if self._wrapped.eos_token_id is None:
            raise ValueError(f"{folder}: the tokenizer declares no eos_token, so no response could end")
        if chat_template not in (None, PLAIN):
            self._wrapped.chat_template = chat_template
        self._plain = chat_template == PLAIN
        self._folder = folder
        self._written = template_file(folder) if chat_template in (None, PLAIN) else "data.chat_template"

        backend = json.loads(self._wrapped.backend_tokenizer.to_str())
        backend["truncation"] = backend["padding"] = None
        self._beginning = tokenizers.Tokenizer.from_str(json.dumps(backend))
        continuing = _without_leading_space(backend)
        self._continuing = tokenizers.Tokenizer.from_str(json.dumps(continuing))
        self._words = {
            False: cache_of(self._beginning, backend),
            True: cache_of(self._continuing, continuing),
        }

        self._special_tokens = self._wrapped.special_tokens_map
        self.eos_id: int = self._wrapped.eos_token_id
        self.vocab_size = min(len(self._wrapped), vocab_size or len(self._wrapped))
        pad = self._wrapped.pad_token_id
        self.pad_id: int = pad if pad is not None and pad < self.vocab_size else self.eos_id
        self.bos_id = self._first_id_added()
        lacks = [self.vocab_size] if self.vocab_size < len(self._wrapped) else []
        special = {i: token.content for i, token in self._wrapped.added_tokens_decoder.items() if token.special}
        # The unknown token is special to transformers, yet it stands for text.
        self.special_ids = frozenset(special) - {self._wrapped.unk_token_id} | {self.eos_id}
        self._special_pattern = any_of(special.values())
        self._added_pattern = any_of(token.content for token in self._wrapped.added_tokens_decoder.values())
        self.has_chat_template = self._plain or self._wrapped.chat_template is not None
        template = PLAIN if self._plain else self._wrapped.chat_template
        self._arguments = arguments_text(chat_template_kwargs)
        self._stop_clock(template, date)
        given = [self._arguments, date and self.date]
        shown = [template, *(given if any(given) else [])]
        identity = json.dumps([backend, *shown, self.bos_id, self.eos_id, self.pad_id, *lacks], sort_keys=True)
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        without = json.dumps([backend, self.bos_id, self.eos_id, self.pad_id, *lacks], sort_keys=True)
        whole = json.dumps(shown if any(given) else template)
        self.fingerprints = {
            "tokenizer": hashlib.sha256(without.encode()).hexdigest(),
            "template": PLAIN if self._plain else hashlib.sha256(whole.encode()).hexdigest(),
        }

    def _stop_clock(self, template: str | dict[str, str] | None, date: str) -> None:
        """Looks at what the template reads besides the turns, and puts a clock into it that stands still."""
        named = {} if self._plain or template is None else {"": template} if isinstance(template, str) else template
        self.template = "\n".join(named.values())
        refuse_unread(self._arguments, self.template, "the plain chat template" if self._plain else self._written)
        self.date = (date or today()) if CLOCK in self.template else ""
        if self.date:
            frozen = {name: FROZEN_CLOCK + text if CLOCK in text else text for name, text in named.items()}
            self._wrapped.chat_template = frozen if isinstance(template, dict) else frozen[""]

    def on_day(self, date: str) -> Tokenizer:
        if not self.date or date == self.date:
            return self
        other = copy.copy(self)
        other.date = date
        return other

    def _first_id_added(self) -> int | None:
        """BOS, if the tokenizer puts it before a text. A declared bos_token proves nothing: GPT-2 and SmolLM2 declare
        one that no sequence begins with."""
        ids = self._wrapped("a")["input_ids"]
        return self._wrapped.bos_token_id if ids and ids[0] == self._wrapped.bos_token_id else None

    def encode(self, text: str, *, continues: bool = False) -> list[int]:
        words = self._words[continues]
        known = None if words is None else words.encode(text)
        return self._encoding(text, continues).ids if known is None else known

    def offsets(self, text: str, *, continues: bool = False) -> list[tuple[int, int]]:
        return self._encoding(text, continues).offsets

    def _encoding(self, text: str, continues: bool):
        return (self._continuing if continues else self._beginning).encode(text, add_special_tokens=False)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        return self._beginning.decode([int(i) for i in ids], skip_special_tokens=False)

    def special_in(self, text: str) -> str | None:
        found = self._special_pattern.search(text)
        return found.group() if found else None

    def ends_in(self, text: str) -> list[tuple[int, int]]:
        special = [found.span() for found in self._special_pattern.finditer(text)]
        return special or [found.span() for found in self._added_pattern.finditer(text)]

    def _through(self, turns: list[dict], tools: list | None, generate: bool, arguments: Mapping[str, Any]) -> str:
        """What `apply_chat_template` renders. Of plain turns without what it does to others and looks up each time."""
        compile_template = _compiler()
        if compile_template and turns and tools is None and all(turn.keys() == _PLAIN_TURN for turn in turns):
            given = {**self._special_tokens, **arguments}
            template = compile_template(self._wrapped.get_chat_template())
            return template.render(messages=turns, tools=None, documents=None, add_generation_prompt=generate, **given)
        return self._wrapped.apply_chat_template(
            turns, tools=tools, tokenize=False, add_generation_prompt=generate, **arguments
        )

    def render(
        self, messages: Sequence[Message], *, generate: bool, tools: str = "", chat_template_kwargs: str = ""
    ) -> str:
        if self._plain:
            return render_plain(messages, generate=generate)
        if not self.has_chat_template:
            raise ValueError(
                f"{self._folder} has no chat template, so it cannot encode messages: give chat_template='plain' (the "
                "built-in one) or a Jinja template, or use records of plain text"
            )
        arguments = dict(arguments_read(self._arguments, chat_template_kwargs, self.template))
        if self.date:
            arguments["frozen_clock"] = clock_of(self.date, self.template)

        def apply() -> str:
            turns, offered = [message.as_dict() for message in messages], json.loads(tools) if tools else None
            for turn in turns if wants_parts(self.template) else ():
                turn["content"] = [{"type": "text", "text": turn["content"]}] if turn["content"] else []
            text = self._through(turns, offered, generate, arguments)
            if len(text) > _RENDERED:
                raise ValueError(f"it makes {len(text)} characters of one conversation, more than {_RENDERED}")
            text.encode()
            return text

        try:
            with bounded_memory(_MEMORY):
                return in_time(apply, _RENDERING)
        except (TimeoutError, MemoryError) as error:
            seconds = f"ran for more than {_RENDERING:g} s"
            what = seconds if isinstance(error, TimeoutError) else f"took more than {_MEMORY / 2**30:.3g} GiB of memory"
            raise ValueError(
                f"{self._written}: its chat template {what} on one conversation: give chat_template='plain' or a Jinja "
                "template that ends"
            ) from error
        except Exception as error:  # a template is a program, and may fail as any
            raise TemplateError(f"{self._written}{what_failed(error, bool(self.date))}") from error


@functools.cache
def _compiler() -> Callable[[str], Any] | None:
    """How transformers compiles a chat template, once for each, from here on with bounded arithmetic; None where it
    keeps that elsewhere."""
    from transformers.utils import chat_template_utils

    from prefjax.data.template_arithmetic import BoundedEnvironment

    chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment
    return getattr(chat_template_utils, "_compile_jinja_template", None)


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
