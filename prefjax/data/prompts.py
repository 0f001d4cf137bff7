"""Prompts alone, to sample responses to: from rows of prompts or messages, and from preference data of any shape."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prefjax.data.account import Account, Finding, Notice, Rejection, collect
from prefjax.data.chats import is_begun
from prefjax.data.encoding import EncodingPolicy, beyond_vocabulary, encode_prompt, response_ending
from prefjax.data.formats import RecordFormat, parse
from prefjax.data.records import Message, Record, Text
from prefjax.data.sources import open_all
from prefjax.data.tokenizers import TemplateError, Tokenizer
from prefjax.data.tree_shapes import Node, is_conversation

_ANY = "."  # stands for the response, which is not read


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt. `id` is the row's own, or None; `source` is "file:line"; `given` is `Record.given` of a chat;
    `begun`: its last turn is one that responses go on in; `tokens` [P] int32 and `ending`, text that the template ends
    a response with, once encoded."""

    text: Text
    source: str
    id: str | int | None = None
    tokens: np.ndarray | None = None
    ending: str = ""
    given: Mapping[str, str] = dataclasses.field(default_factory=dict)
    begun: bool = False


@dataclasses.dataclass(frozen=True)
class PromptFile:
    """Where prompts were read from: names and sha256 of the sources, and what became of every row."""

    sources: Mapping[str, str]
    account: Account


def read_prompts(
    given: str, *, data_dir: str = "", manual_dir: str = "", prefill: bool = False, progress: bool = True
) -> tuple[list[Prompt], PromptFile]:
    """The prompts of some sources in order, each once.

    A row has `prompt` (text or messages; of a tree of replies its first message is taken), or `messages` or
    `conversations`, whole ones, or it is a pair whose prompt is implicit. Responses are not looked at where the prompt
    stands apart. The assistant's turns at the end are left out, which is counted of a prompt.

    Args:
        given: as `data.train`, without shares.
        data_dir, manual_dir: as of `OpenSource`; errors too.
        prefill: the assistant's turns at the end of a prompt stay, to be gone on from.
    Raises:
        ValueError: `given` has shares.
    """
    opened = open_all(given, data_dir=data_dir, manual_dir=manual_dir)
    seen: set[tuple[Text, ...]] = set()

    def step(numbered: tuple[str, Any]) -> Iterator[Prompt | Finding]:
        for item in _read(*numbered, prefill):
            if isinstance(item, Prompt):
                asked = (item.text, *item.given.values())
                if asked in seen:
                    item = Rejection("repeated_prompt", item.source, "prompt")
                else:
                    seen.add(asked)
            yield item

    rows = (row for source in opened for row in source.rows(progress=progress))
    prompts, account = collect("prompts", rows, step)
    return prompts, PromptFile({source.name: source.fingerprint().hex() for source in opened}, account)


def _read(source: str, row: Any, prefill: bool) -> Iterator[Prompt | Finding]:
    if isinstance(row, Rejection):
        yield row
        return
    own, name = None, None
    if isinstance(row, Mapping):
        own = row.get("id")
        name = next((name for name in ("prompt", "messages", "conversations") if row.get(name) is not None), None)
        if name is not None:
            more = {other: row[other] for other in ("tools", "chat_template_kwargs") if other in row}
            prompt = Node(name, row[name]).message(()) if is_conversation(row[name]) else row[name]
            row = {"prompt": prompt, "completion": _ANY, **more}
    for item in parse(row, source, RecordFormat(ties="keep")):
        if not isinstance(item, Record):
            if isinstance(item, Rejection):
                yield item
            continue
        text = item.prompt
        while (
            not isinstance(text, str) and text and text[-1].role == "assistant" and not (prefill and name == "prompt")
        ):
            text = text[:-1]
        if not text:
            yield Rejection("empty_prompt", source, "messages", "nothing but the assistant's turns")
            continue
        if name == "prompt" and len(text) < len(item.prompt):
            yield Notice("unread_answer", source, "prompt")
        yield Prompt(text, source, own if isinstance(own, str | int) else None, given=item.given)


def encode_prompts(
    prompts: Iterable[Prompt],
    tokenizer: Tokenizer,
    policy: EncodingPolicy = EncodingPolicy(),
    *,
    chat: bool,
    max_length: int | None = None,
) -> tuple[list[Prompt], Account]:
    """Prompts with their tokens, and an account with the stage "encode".

    Args:
        policy: how chats are read; its limits are not.
        chat: a prompt of plain text becomes a user's turn.
        max_length: longer prompts are dropped.
    """

    def step(prompt: Prompt) -> Iterable[Prompt | Finding]:
        text = prompt.text
        if chat and isinstance(text, str):
            text = (Message("user", text),)
        contents = (text,) if isinstance(text, str) else (message.content for message in text)
        if special := next(filter(None, map(tokenizer.special_in, contents)), None):
            return [Rejection("special_text", prompt.source, "prompt", special)]
        try:
            ids = encode_prompt(text, tokenizer, policy, given=prompt.given)
            ending = response_ending(text, tokenizer, policy, given=prompt.given)
        except TemplateError as error:
            return [Rejection("template_error", prompt.source, "prompt", str(error))]
        if tokenizer.special_ids.issuperset(ids):
            return [Rejection("empty_prompt", prompt.source, "prompt", "nothing but special tokens once encoded")]
        if detail := beyond_vocabulary(ids, tokenizer):
            return [Rejection("beyond_vocabulary", prompt.source, "prompt", detail)]
        if max_length is not None and len(ids) > max_length:
            return [Rejection("prompt_too_long", prompt.source, "prompt", f"{len(ids)} tokens")]
        tokens, begun = np.array(ids, np.int32), not isinstance(text, str) and is_begun(text, policy.of_chats)
        return [dataclasses.replace(prompt, text=text, tokens=tokens, ending=ending, begun=begun)]

    return collect("encode", prompts, step)


def prompt_of(record: Record, tokens: np.ndarray, tokenizer: Tokenizer, policy: EncodingPolicy) -> Prompt:
    """The prompt of a record that was encoded, with the id that its row has among its columns."""
    text, given, own = record.prompt, record.given, record.columns.get("id")
    ending, begun = "", False
    if not isinstance(text, str):
        ending, begun = response_ending(text, tokenizer, policy, given=given), is_begun(text, policy.of_chats)
    return Prompt(text, record.source, own, tokens, ending, given, begun)


def answer(prompt: Text, completion: str) -> Text:
    """A completion as the response of a record with this prompt."""
    return completion if isinstance(prompt, str) else (Message("assistant", completion),)


def answered(prompt: Text, completions: Sequence[str], scores: Sequence[float], source: str = "memory") -> Record:
    """A ranking of completions."""
    responses = tuple(answer(prompt, text) for text in completions)
    return Record(prompt, responses, tuple(scores), "ranked", tuple(scores), source=source)
