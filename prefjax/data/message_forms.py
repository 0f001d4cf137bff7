"""Messages in the form that a chat template takes: a thought by its name for it, a call's arguments as text or object.

What a template reads stands in its source, and what it does with arguments in what it renders of the record itself.
"""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from prefjax.data.messages import THOUGHTS
from prefjax.data.records import THOUGHT, Message
from prefjax.data.tokenizers import TemplateError
from prefjax.data.turns import Render

Convert = Callable[[Any], Any]


class Formed(NamedTuple):
    """A conversation in the form of a template, and what was done for it: a key of `account.REASONS` -> the text."""

    turns: tuple[Message, ...]
    found: dict[str, str]


def in_form(turns: Sequence[Message], render: Render, template: str, marks: tuple[str, ...]) -> Formed:
    """A conversation as its template takes it.

    Args:
        template: its source.
        marks: texts before and after a thought that has to stand in the message's text.
    """
    name = thought_name(template)
    within = [turn for turn in turns if turn.role == "assistant" and marks[1] in turn.content] if name else []
    if not within and not any(turn.fields for turn in turns):
        return Formed(tuple(turns), {})
    found: dict[str, str] = {}
    if any(THOUGHT in turn.more for turn in turns):
        turns, done = _with_thoughts(turns, name, marks, render)
        found |= done
    if name and within:
        turns, done = _taken_apart(turns, name, marks, render)
        found |= done
    calls = [call for turn in turns for call in _calls(turn)]
    if any(_is_object(call.get("arguments")) for call in calls):
        turns, done = _with_arguments(turns, render)
        found |= done
    return Formed(tuple(turns), found)


@functools.lru_cache
def thought_name(template: str) -> str | None:
    """The key of a message under which a template looks for its thought; None: under none."""
    return next((name for name in THOUGHTS if re.search(rf"[.'\"]{name}\b", template)), None)


def calls_missing(turns: Sequence[Message], text: str) -> list[str]:
    """Names of the functions that turns call and a render of them does not show."""
    return [call["name"] for turn in turns for call in _calls(turn) if call["name"] not in text]


def thought_of(turn: Message, marks: tuple[str, ...]) -> str:
    """What a message in its form says was thought, apart from its text or in it; empty: nothing."""
    apart = next((turn.more[name] for name in THOUGHTS if name in turn.more), "")
    before, closed, _ = turn.content.partition(marks[1])
    _, opened, within = before.partition(marks[0])
    return (apart or (within if opened and closed else "")).strip()


def _with_thoughts(
    turns: Sequence[Message], name: str | None, marks: tuple[str, ...], render: Render
) -> tuple[Sequence[Message], dict[str, str]]:
    """The turns with thoughts by another name; without one in their text, or nowhere where the template drops them
    from there, since what is left beside them would be taught."""
    thoughts = [turn.more.get(THOUGHT) for turn in turns]
    if name:
        return [_with_thought(turn, {name: own}) for turn, own in zip(turns, thoughts, strict=True)], {}
    opens, closes = marks
    before = [f"{opens}\n{own}\n{closes}\n\n" for own in thoughts]
    within = [_with_thought(turn, {}, text) for turn, text in zip(turns, before, strict=True)]
    if missing := _last_missing(within, list(filter(None, thoughts)), render):
        return [_with_thought(turn, {}) for turn in turns], {"thought_not_shown": missing}
    return within, {"thought_in_text": opens}


def _taken_apart(
    turns: Sequence[Message], name: str, marks: tuple[str, ...], render: Render
) -> tuple[Sequence[Message], dict[str, str]]:
    """The turns with thoughts out of their text, where the template shows them so too."""
    apart, thoughts = [], []
    for turn in turns:
        inner, closed, after = turn.content.lstrip().partition(marks[1])
        if turn.role != "assistant" or not closed or not inner.startswith(marks[0]) or name in turn.more:
            apart.append(turn)
            continue
        thoughts.append(inner.removeprefix(marks[0]).strip("\n"))
        more = _as_text({**turn.more, name: thoughts[-1]})
        apart.append(Message(turn.role, after.lstrip("\n"), more))
    if not any(map(str.strip, thoughts)) or _last_missing(apart, thoughts, render):
        return turns, {}
    return apart, {"thought_from_text": thoughts[-1]}


def _last_missing(turns: Sequence[Message], thoughts: Sequence[str], render: Render) -> str:
    """The last thought, where the template leaves it out."""
    with contextlib.suppress(TemplateError):
        return "" if thoughts[-1].strip() in render(tuple(turns), generate=False) else thoughts[-1]
    return ""


def _with_thought(turn: Message, apart: dict[str, Any], before: str = "") -> Message:
    """The turn with another thing said for its thought, apart and before its text; without a thought as it is."""
    more = turn.more
    if THOUGHT not in more:
        return turn
    del more[THOUGHT]
    more |= apart
    return Message(turn.role, before + turn.content, _as_text(more) if more else "")


def _with_arguments(turns: Sequence[Message], render: Render) -> tuple[Sequence[Message], dict[str, str]]:
    """The turns with arguments of calls in the first form that the template shows well: as they are, as objects, as
    JSON text. As they are where none does."""
    for reason, convert in (("", lambda a: a), ("decoded_arguments", _decoded), ("encoded_arguments", _encoded)):
        changed = [_converted(turn, convert) for turn in turns]
        if reason and changed == list(turns) or not _shows(changed, render):
            continue
        return changed, {reason: _example(turns)} if reason else {}
    return turns, {}


def _shows(turns: Sequence[Message], render: Render) -> bool:
    """Whether a template shows arguments that are text as they are, and others not as Python writes them."""
    try:
        text = render(tuple(turns), generate=False)
    except TemplateError:
        return False
    for arguments in (call.get("arguments") for turn in turns for call in _calls(turn)):
        if isinstance(arguments, str):
            if _is_object(arguments) and (arguments not in text or json.dumps(arguments, ensure_ascii=False) in text):
                return False
        elif isinstance(arguments, dict) and repr(arguments) != _as_text(arguments) and repr(arguments) in text:
            return False
    return True


def _calls(turn: Message) -> list[dict[str, Any]]:
    return [call.get("function", call) for call in turn.more.get("tool_calls", ())] if turn.fields else []


def _converted(turn: Message, convert: Convert) -> Message:
    more = turn.more
    if "tool_calls" not in more:
        return turn
    for call in more["tool_calls"]:
        function = call.get("function", call)
        if "arguments" in function:
            function["arguments"] = convert(function["arguments"])
    return Message(turn.role, turn.content, _as_text(more))


def _decoded(arguments: Any) -> Any:
    return json.loads(arguments) if isinstance(arguments, str) and _is_object(arguments) else arguments


def _encoded(arguments: Any) -> Any:
    return _as_text(arguments) if isinstance(arguments, dict) else arguments


def _is_object(arguments: Any) -> bool:
    """Whether arguments are an object, or the JSON text of one."""
    if not isinstance(arguments, str):
        return isinstance(arguments, dict)
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def _example(turns: Sequence[Message]) -> str:
    return next(_as_text(call["arguments"]) for turn in turns for call in _calls(turn) if "arguments" in call)


def _as_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
