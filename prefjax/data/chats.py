"""Chats -> ids: the prompt up to where the model begins to speak, its turns, and what of them is scored."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from prefjax.data.account import Notice, Refused
from prefjax.data.chat_templates import unread_arguments
from prefjax.data.message_forms import calls_missing, in_form, thought_of
from prefjax.data.messages import THOUGHTS
from prefjax.data.records import Message, Record
from prefjax.data.tokenizers import TemplateError, Tokenizer
from prefjax.data.turns import Render, Spoken, Turn, UnclearTurn, go_on, gone_on, open_turn, read_response, unfinished

_LOOKED_AT = 20  # words of a turn, of which one has to be shown


@dataclasses.dataclass(frozen=True)
class ChatRules:
    """What `EncodingPolicy` says of chats.

    unscored_thoughts  thoughts are read and not scored
    marks              texts before and after a thought that stands in a message's text
    prefill            responses go on in a last turn of the assistant's that the prompt ends in
    """

    unscored_thoughts: bool = False
    marks: tuple[str, ...] = ("<think>", "</think>")
    prefill: bool = False


class _Piece(NamedTuple):
    """A turn of the render: what lies from `opens` to `says` is read, to `closes` scored."""

    opens: int
    says: int
    closes: int


@dataclasses.dataclass(frozen=True)
class EncodedChat:
    """A chat before its prompt is tokenised.

    prompt    as text, up to where the responses begin
    bare      makes what of it is messages before the turn that the model speaks in
    branches  ids by field, ~id where a token is not scored
    said      the same responses as text
    notices   what is to be counted
    """

    prompt: str
    bare: Callable[[], str]
    branches: dict[str, list[int]]
    said: dict[str, str]
    notices: list[Notice]


def encode_chat(
    record: Record, texts: Mapping[str, tuple[Message, ...]], tokenizer: Tokenizer, rules: ChatRules
) -> EncodedChat:
    """The record's prompt and its responses by field through the chat template.

    Raises:
        Refused: the template refuses it, or shows it so that turns or thoughts cannot be told.
    """
    render = functools.cache(functools.partial(tokenizer.render, **record.given))
    field, read, found = "prompt", {}, []
    begun = record.begun or is_begun(record.prompt, rules)
    steps = {record.field(k) for k in range(len(record.responses)) if not record.is_ended(k)}
    try:
        for field, turns in texts.items():
            formed = in_form((*record.prompt, *turns), render, tokenizer.template, rules.marks)
            found += [Notice(reason, record.source, field, text) for reason, text in formed.found.items()]
            prompt, turns = formed.turns[: len(record.prompt)], formed.turns[len(record.prompt) :]
            start = prompt[-1] if begun else None
            if start is not None:
                prompt, turns = prompt[:-1], (go_on(start, turns[0]), *turns[1:])
            read[field] = (_read_step if field in steps else _read)(prompt, turns, start, render, tokenizer)
        found += _unused(record, render, tokenizer)
    except TemplateError as error:
        raise Refused("template_error", "prompt", str(error)) from error
    except UnclearTurn as unclear:
        raise Refused("unstable_template", field, str(unclear)) from unclear
    # A response that speaks its thought begins later than one for which the header was cut.
    before = min((turn.text[: turn.opens] for turn, _ in read.values()), key=len)
    branches, said = {}, {}
    for field, (turn, spoken) in read.items():
        if not turn.text.startswith(before):
            raise Refused("unstable_template", field, f"its prompt {turn.text[: turn.opens]!r} is not {before!r}")
        if spoken[0].opens == turn.opens:
            spoken = [spoken[0]._replace(opens=len(before)), *spoken[1:]]
        pieces = [_piece(one, turn.text, field, rules) for one in spoken]
        branches[field] = _piece_ids(turn, len(before), pieces, tokenizer)
        said[field] = turn.text[len(before) : turn.closes]
        found += [Notice(reason, record.source, field, repr(text)) for reason, text in turn.found.items()]
        if missing := calls_missing([one.message for one in spoken], said[field]):
            raise Refused("call_not_shown", field, ", ".join(missing))
        thought = thought_of(spoken[-1].message, rules.marks)
        if thought and thought not in said[field]:
            found.append(Notice("thought_not_shown", record.source, field, thought))
    if missing := calls_missing(record.prompt, before):
        found.append(Notice("call_not_shown", record.source, "prompt", ", ".join(missing)))
    if unshown := _not_shown(record.prompt, before):
        found.append(Notice("turn_not_shown", record.source, "prompt", unshown))
    if record.prompt and record.prompt[-1].role == "assistant" and not record.begun:
        found.append(Notice("prefilled" if begun else "answered_prompt", record.source, "prompt"))
    return EncodedChat(before, functools.partial(render, prompt, generate=False), branches, said, found)


def open_prompt(
    prompt: Sequence[Message], tokenizer: Tokenizer, rules: ChatRules, given: Mapping[str, str]
) -> tuple[str, str]:
    """A prompt as text up to where a response begins, and what will stand after the response's own text.

    Args:
        given: `Record.given` of the prompt.
    Raises: TemplateError.
    """
    render = functools.cache(functools.partial(tokenizer.render, **given))
    formed = in_form(prompt, render, tokenizer.template, rules.marks)
    return open_turn(formed.turns, render, tokenizer, prefill=is_begun(prompt, rules))


def is_begun(prompt: Sequence[Message], rules: ChatRules) -> bool:
    """Whether responses go on in the prompt's last turn; calls of tools end theirs."""
    return rules.prefill and bool(prompt) and prompt[-1].role == "assistant" and "tool_calls" not in prompt[-1].more


def _read(
    prompt: Sequence[Message], turns: Sequence[Message], begun: Message | None, render: Render, tokenizer: Tokenizer
) -> tuple[Turn, list[Spoken]]:
    """`read_response`, which begins after what the first turn was begun with."""
    turn, spoken = read_response(prompt, turns, render, tokenizer)
    if begun is None:
        return turn, spoken
    if spoken[0].opens != turn.opens:
        raise UnclearTurn("the template shows the turn that the prompt begins otherwise once the conversation goes on")
    opens = gone_on(turn, spoken[0].says, begun)
    return dataclasses.replace(turn, opens=opens), [spoken[0]._replace(opens=opens), *spoken[1:]]


def _read_step(
    prompt: Sequence[Message], turns: Sequence[Message], begun: Message | None, render: Render, tokenizer: Tokenizer
) -> tuple[Turn, list[Spoken]]:
    """`_read` of a response whose last turn goes on: up to the end of its text, as it stands where more follows."""
    turn, spoken = _read(prompt, (*turns[:-1], unfinished(turns[-1])), begun, render, tokenizer)
    closes = gone_on(turn, spoken[-1].says, turns[-1])
    found = {reason: text for reason, text in turn.found.items() if reason not in ("text_ends_turn", "cut_after_turn")}
    last = spoken[-1]._replace(closes=closes, message=turns[-1])
    return dataclasses.replace(turn, closes=closes, ended=True, ending="", found=found), [*spoken[:-1], last]


def _unused(record: Record, render: Render, tokenizer: Tokenizer) -> list[Notice]:
    """What the record gives its template and the template makes nothing of."""
    found = []
    if record.tools and tokenizer.render(
        record.prompt, generate=True, chat_template_kwargs=record.chat_template_kwargs
    ) == render(record.prompt, generate=True):
        found.append(Notice("tools_not_shown", record.source, "tools"))
    if unread := unread_arguments(record.chat_template_kwargs, tokenizer.template):
        found.append(Notice("unread_argument", record.source, "chat_template_kwargs", ", ".join(unread)))
    return found


def _not_shown(prompt: Sequence[Message], before: str) -> str:
    """The first turn of a prompt, but for the assistant's, whose thoughts are often gone, of which no word is shown."""
    for turn in prompt:
        words = turn.content.split(maxsplit=_LOOKED_AT)[:_LOOKED_AT]
        if turn.role != "assistant" and words and not any(word in before for word in words):
            return f"{turn.role}: {words[0]}"
    return ""


def _piece(spoken: Spoken, text: str, field: str, rules: ChatRules) -> _Piece:
    """A turn, of which the thought is left unscored where it is to be. Raises Refused where its end is unclear."""
    opens, closes, says, message = spoken
    if not rules.unscored_thoughts:
        return _Piece(opens, opens, closes)
    begin, end = rules.marks
    marked, at = opens, text.find(end, opens, closes)
    if at >= 0 and (
        text[opens:at].lstrip().startswith(begin) or text.rfind(begin, 0, opens) > text.rfind(end, 0, opens)
    ):
        after = text[at + len(end) : closes]
        marked = closes - len(after.lstrip())
    thought = thought_of(message, rules.marks)
    if marked == opens and thought and thought in text[opens:closes]:
        if says is None or not any(name in message.more for name in THOUGHTS):
            detail = f"{end!r} does not end it in the chat template: set data.encoding.thought_marks to what does"
            raise Refused("unclear_thought", field, detail)
        marked = says
    return _Piece(opens, max(opens, marked), closes)


def _piece_ids(turn: Turn, begin: int, pieces: Sequence[_Piece], tokenizer: Tokenizer) -> list[int]:
    """Ids of a chat response from `begin` on; what is not scored is there as ~id.

    Every turn is tokenised alone, as when the model spoke turn by turn, its thought together with what it says.
    """
    ids: list[int] = []
    for opens, says, closes in pieces:
        ids += [~token for token in tokenizer.encode(turn.text[begin:opens], continues=True)]
        spoken = turn.text[opens:closes]
        own = tokenizer.encode(spoken, continues=True)
        if says > opens:
            starts = [start for start, _ in tokenizer.offsets(spoken, continues=True)]
            own = [~token if opens + start < says else token for token, start in zip(own, starts, strict=True)]
        ids += own
        begin = closes
    return ids if turn.ended else [*ids, tokenizer.eos_id]
