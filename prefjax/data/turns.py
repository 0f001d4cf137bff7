"""Where the assistant's turns begin and end in what a chat template renders, read off the conversation itself.

Templates agree on little: some add the header of the assistant's turn whether asked or not, some never, some open a
thought in it; some put more after the end of a turn, or drop the thoughts of earlier turns. So a turn is looked at with
and without it, and with and without the header, and what cannot be told is refused with both renders.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from prefjax.data.boundaries import common_prefix
from prefjax.data.records import CALL_FIELDS, Message
from prefjax.data.tokenizers import TemplateError, Tokenizer

_WORDS = "Wombats dig."  # spoken in place of a turn whose own text does not stand in the render exactly once
_SHOWN = 60  # characters at either side of where two renders part


Render = Callable[..., str]  # `Tokenizer.render` with all but the turns and `generate` decided


class UnclearTurn(Exception):
    """Where a turn begins or ends cannot be told. `args` is one text with both renders."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """A turn of the assistant's at the end of a conversation.

    text    the conversation as rendered
    opens   where in it the model begins to speak
    closes  where it stops, the token that ends the turn included
    ended   whether a token ends it; else EOS has to follow
    ending  what `closes` includes after the turn's own text
    says    where its own text begins, after a thought that the message tells apart; None: that cannot be told
    found   what the template does that is to be counted: a key of `account.REASONS` -> the text it is about
    """

    text: str
    opens: int
    closes: int
    ended: bool
    ending: str
    says: int | None
    found: dict[str, str]


class Spoken(NamedTuple):
    """A turn that is scored, within the render of a whole conversation; characters as in `Turn`."""

    opens: int
    closes: int
    says: int | None
    message: Message


def read_turn(history: Sequence[Message], turn: Message, render: Render, tokenizer: Tokenizer) -> Turn:
    """The turn after a history as the template shows it.

    Raises:
        UnclearTurn: where it begins cannot be told.
        TemplateError: the template refuses the conversation.
    """
    start, whole = render(history, generate=True), render((*history, turn), generate=False)
    bare = functools.cache(lambda: render(history, generate=False))
    shown, content = whole, turn.content
    # The text may begin as a header does that only asking for a turn adds: "<" and "<think>".
    from_here = lambda: max(common_prefix(start, shown) - len(content), 0)
    if not content.strip() or '"tool_calls"' in turn.fields or shown.count(content, from_here()) != 1:
        shown, content = render((*history, _in_words(turn)), generate=False), _WORDS
    at = shown.find(content, from_here())
    if at < 0:  # its text is changed, so only a header tells where it begins
        if start == bare() or not whole.startswith(start):
            raise UnclearTurn(_parting(start, whole))
        return _until_last_end(whole, len(start), tokenizer)
    apart = functools.partial(_thought_apart, history, turn, render)
    opens, found = _opening(start, bare, shown, at, apart if _thought(turn) else None)
    says = at if whole.startswith(shown[:at]) else None
    if not whole.startswith(shown[:opens]):
        raise UnclearTurn(_parting(shown[:opens], whole))
    tail = shown[at + len(content) :]
    if not whole.endswith(tail):  # a call may end in another way than words
        return dataclasses.replace(_until_last_end(whole, opens, tokenizer, found), says=says)
    ends, always = tokenizer.ends_in(tail), lambda: opens == len(start) and start.endswith(tail) and start == bare()
    ended = bool(ends) and not (len(ends) == 1 and always())
    kept = ends[0][1] if ended else 0 if tail.strip() and always() else len(tail.rstrip())
    if not ended and kept:
        found["text_ends_turn"] = tail[:kept]
    if tail[kept:].strip():
        found["cut_after_turn"] = tail[kept:]
    return Turn(whole, opens, len(whole) - len(tail) + kept, ended, tail[:kept], says, found)


def read_response(
    prompt: Sequence[Message], turns: Sequence[Message], render: Render, tokenizer: Tokenizer
) -> tuple[Turn, list[Spoken]]:
    """The response's last turn with `opens` where the first begins, and what of its text is scored.

    An earlier turn that the template shows otherwise once the conversation goes on, as without its thought, is not what
    the model said any more: it is read and not scored.

    Raises: as `read_turn`.
    """
    spoken = [at for at, turn in enumerate(turns) if turn.role == "assistant"]
    read = [read_turn((*prompt, *turns[:at]), turns[at], render, tokenizer) for at in spoken]
    whole, opens = read[-1].text, read[0].opens
    if not whole.startswith(read[0].text[:opens]):
        raise UnclearTurn(_parting(read[0].text[:opens], whole))
    stays = [whole.startswith(turn.text[: turn.closes]) for turn in read]
    scored = [
        Spoken(turn.opens, turn.closes, turn.says, turns[at])
        for at, turn, same in zip(spoken, read, stays, strict=True)
        if same
    ]
    found = {reason: text for turn in read for reason, text in turn.found.items()}
    if len(scored) < len(read):
        found["changed_turn"] = f"{len(read) - len(scored)} of {len(read)}"
    return dataclasses.replace(read[-1], opens=opens, found=found), scored


def go_on(begun: Message, turn: Message) -> Message:
    """A turn of the assistant's, and the one that it was begun with, as one."""
    more = {**begun.more, **turn.more}
    return Message("assistant", begun.content + turn.content, json.dumps(more) if more else "")


def unfinished(turn: Message) -> Message:
    """The turn with words after its own, so that a template shows the end of its text as where it goes on."""
    return go_on(turn, Message("assistant", f" {_WORDS}"))


def gone_on(turn: Turn, says: int | None, begun: Message) -> int:
    """Where in a turn that goes on from another the new text begins; templates may trim. Raises UnclearTurn."""
    for own in (begun.content, begun.content.lstrip()):
        if says is not None and turn.text.startswith(own, says):
            return says + len(own)
    raise UnclearTurn(f"{begun.content!r}, with which the turn begins, does not stand in {turn.text[turn.opens :]!r}")


def open_turn(
    prompt: Sequence[Message], render: Render, tokenizer: Tokenizer, *, prefill: bool = False
) -> tuple[str, str]:
    """A prompt as text with the header of the assistant's turn, and what will stand after a response's own text.

    Args:
        prefill: a last turn of the assistant's goes on; else another one follows it.
    Raises: TemplateError, and as one that the response's text would not go on from a prefill.
    """
    if prefill and prompt and prompt[-1].role == "assistant":
        try:
            turn = read_turn(prompt[:-1], unfinished(prompt[-1]), render, tokenizer)
            return turn.text[: gone_on(turn, turn.says, prompt[-1])], turn.ending
        except UnclearTurn as unclear:
            raise TemplateError(str(unclear)) from unclear
    start = render(prompt, generate=True)
    try:
        turn = read_turn(prompt, Message("assistant", _WORDS), render, tokenizer)
    except ValueError:  # the template refuses words where it may want a call
        return start, ""
    except UnclearTurn:
        return start, ""
    return (turn.text[: turn.opens] if "header_moved" in turn.found else start), turn.ending


def _opening(
    start: str, bare: Callable[[], str], shown: str, at: int, apart: Callable[[], int] | None
) -> tuple[int, dict[str, str]]:
    """Where the model begins to speak, given where its own text stands, and what is to be counted.

    Args:
        apart: where the render is another one than without the turn's thought; None where it has no thought.
    """
    if shown.startswith(start):
        before = shown[len(start) : at]
        if before.strip() and start == bare():
            opens = at if apart is None else min(apart(), at)
            header = shown[len(start) : opens]
            return opens, {"header_moved": header} if header.strip() else {}
        return len(start), {"added_text": before} if before.strip() and apart is None else {}
    opens = min(common_prefix(start, shown), at)
    if opens < len(bare()) or not shown.startswith(bare()):
        raise UnclearTurn(_parting(start, shown))
    # The header may stand in what comes before the text only where it is there but for white space.
    added, cut = shown[opens : at if apart is None else min(apart(), at)], start[opens:]
    if added.strip() and cut.strip():
        raise UnclearTurn(_parting(start, shown))
    return opens, {"header_cut": cut} | ({"added_text": added} if added.strip() else {})


def _until_last_end(whole: str, opens: int, tokenizer: Tokenizer, found: dict[str, str] | None = None) -> Turn:
    """The turn up to the last token that can end one, where nothing but white space follows it."""
    ends = tokenizer.ends_in(whole[opens:])
    ended = bool(ends) and not whole[opens + ends[-1][1] :].strip()
    closes = opens + ends[-1][1] if ended else len(whole.rstrip())
    return Turn(whole, opens, closes, ended, "", None, found or {})


def _thought(turn: Message) -> dict[str, str]:
    """What the message tells apart that was thought, by the template's name for it."""
    return {name: text for name, text in turn.more.items() if name not in CALL_FIELDS}


def _thought_apart(history: Sequence[Message], turn: Message, render: Render) -> int:
    without = render((*history, Message("assistant", _WORDS)), generate=False)
    return common_prefix(render((*history, _in_words(turn)), generate=False), without)


def _in_words(turn: Message) -> Message:
    """The turn with words that stand nowhere else in place of its own, after the same thought."""
    thought = _thought(turn)
    return Message("assistant", _WORDS, json.dumps(thought) if thought else "")


def _parting(before: str, after: str) -> str:
    """Two renders around where they part."""
    at = common_prefix(before, after)
    near = lambda text: repr(text[max(at - _SHOWN, 0) : at + _SHOWN])
    return (
        f"without the response ...{near(before)}, with it ...{near(after)}: give data.chat_template='plain' or a "
        "template that only appends"
    )
