"""The shapes of trees: what of a row are its messages or steps, which are alternatives, and what comes before them.

conversation  {prompt}            a message with `replies`, which are messages with replies, as OASST publishes them
dialogue      {messages}          a chat; what the assistant might have said instead stands in `alternatives`
solution      {prompt, steps}     an answer in steps; a step with `alternatives` is an object, else it may be a text
search        {prompt, branches}  steps with `branches` of their own, the steps that may follow
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefjax.data.account import Refused

TREE_COLUMNS = ("steps", "branches")
JUDGEMENTS = ("rank", "score", "reward", "label")
_CHATS = ("messages", "conversations")
_ANSWERS = ("chosen", "rejected", "completion", "completions")
_CHILDREN = ("replies", "branches", "alternatives")
_OF_TAKEN = frozenset({"alternatives", "weight"})
_IN_LINE = frozenset({"text", *JUDGEMENTS, "deleted", "review_result"}) | _OF_TAKEN
# Of a message or step what is read here; the rest of a message goes on as it is.
_READ = {*_CHILDREN, *JUDGEMENTS, "text", "ends", "weight", "deleted", "review_result", "message_id", "parent_id"}


@dataclasses.dataclass(frozen=True)
class TreeRules:
    """How trees are read.

    roles    what a message may call a role -> what it is
    true     words that mean true as a label; `false` those that mean false
    record   columns of the row that its records keep
    response the same of messages and steps, one value for each response
    divide   the records of a tree weigh together what the tree does
    """

    roles: Mapping[str, str]
    true: Sequence[str] = ()
    false: Sequence[str] = ()
    record: Sequence[str] = ()
    response: Sequence[str] = ()
    divide: bool = False


@dataclasses.dataclass(frozen=True)
class Node:
    """A message, or a step.

    place  where it stands in the row
    value  its keys that are not null
    after  what may follow it, which are alternatives to each other
    taken  what a dialogue or a solution goes on with
    """

    place: str
    value: Mapping[str, Any]
    after: tuple["Node", ...] = ()
    taken: bool = False

    @property
    def judgements(self) -> list[str]:
        return [key for key in JUDGEMENTS if key in self.value]

    @property
    def text(self) -> str:
        text = self.value.get("text", self.value.get("content"))
        if not isinstance(text, str):
            reason = "missing_field" if text is None else "wrong_type"
            raise Refused(reason, f"{self.place}.text", "" if text is None else f"must be text, got {text!r:.40}")
        return text

    def message(self, without: Iterable[str]) -> dict[str, Any]:
        """The message as files hold it."""
        own = {key: value for key, value in self.value.items() if key not in _READ and key not in without}
        if "text" in self.value and "value" not in own:
            own.setdefault("content", self.value["text"])
        return own


@dataclasses.dataclass(frozen=True)
class Point:
    """Alternatives to each other, and what lies on the way to them, from the first on."""

    place: str
    before: tuple[Node, ...]
    nodes: tuple[Node, ...]


class _Conversation:
    reads = ("prompt",)
    keys = frozenset({"text", "replies", *JUDGEMENTS, "deleted", "review_result", "message_id", "parent_id"})

    def unread(self, node: Node, rules: TreeRules) -> list[str]:
        """Keys of a node that nothing reads; those of messages are counted where messages are read."""
        return sorted((node.value.keys() & _READ) - self.keys)

    def top(self, columns: Mapping[str, Any]) -> tuple[str, tuple[Node, ...]]:
        return "prompt", (_nested(columns["prompt"], "prompt", "replies", {}),)

    def speaks(self, node: Node, rules: TreeRules) -> bool:
        role = node.value.get("role", node.value.get("from"))
        return (rules.roles.get(role, role) if isinstance(role, str) else role) == "assistant"

    def said(self, node: Node, rules: TreeRules) -> Any:
        return [node.message(rules.response)]

    def before(
        self, columns: Mapping[str, Any], point: Point, nodes: Sequence[Node], rules: TreeRules
    ) -> dict[str, Any]:
        messages = [node.message(rules.response) for node in point.before]
        first = next((at for at, node in enumerate(point.before) if self.speaks(node, rules)), len(messages))
        return {"prompt": messages, "root": messages[: max(first, 1)]}


class _Dialogue(_Conversation):
    reads = _CHATS
    keys = _IN_LINE

    def unread(self, node: Node, rules: TreeRules) -> list[str]:
        return sorted((node.value.keys() & _READ) - (self.keys if node.taken else self.keys - _OF_TAKEN))

    def top(self, columns: Mapping[str, Any]) -> tuple[str, tuple[Node, ...]]:
        name = next(name for name in _CHATS if name in columns)
        return f"{name}[0]", _in_line(columns[name], name)


class _Solution:
    reads = ("prompt", "steps")
    keys = _IN_LINE | {"content", "ends"}

    def unread(self, node: Node, rules: TreeRules) -> list[str]:
        return sorted(node.value.keys() - (self.keys if node.taken else self.keys - _OF_TAKEN) - {*rules.response})

    def top(self, columns: Mapping[str, Any]) -> tuple[str, tuple[Node, ...]]:
        return "steps[0]", _in_line(columns["steps"], "steps")

    def speaks(self, node: Node, rules: TreeRules) -> bool:
        return True

    def said(self, node: Node, rules: TreeRules) -> Any:
        return node.text

    def before(
        self, columns: Mapping[str, Any], point: Point, nodes: Sequence[Node], rules: TreeRules
    ) -> dict[str, Any]:
        prompt, steps = columns.get("prompt"), "".join(node.text for node in point.before)
        if prompt is None:
            raise Refused("missing_field", "prompt", "")
        ended = not any(node.after for node in point.nodes)
        ends = [node.value.get("ends", ended) for node in nodes]
        made = {"root": prompt} | ({} if all(end is True for end in ends) else {"ends": ends})
        if isinstance(prompt, str):
            return made | {"prompt": prompt + steps}
        turns = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
        last = turns[-1] if turns and isinstance(turns[-1], Mapping) else {}
        if last.get("role") == "assistant" and isinstance(last.get("content"), str):
            return made | {"prompt": [*turns[:-1], {**last, "content": last["content"] + steps}], "begun": True}
        begun = [{"role": "assistant", "content": steps}] if steps else []
        return made | {"prompt": turns + begun, "begun": bool(begun)}


class _Search(_Solution):
    reads = ("prompt", "branches")
    keys = _Conversation.keys - {"replies"} | {"content", "branches", "ends"}

    def top(self, columns: Mapping[str, Any]) -> tuple[str, tuple[Node, ...]]:
        return "branches", _listed(columns["branches"], "branches", "branches", {})


Shape = _Conversation | _Solution
_SHAPES = {"prompt": _Conversation, "steps": _Solution, "branches": _Search, **dict.fromkeys(_CHATS, _Dialogue)}


def shape_of(columns: Mapping[str, Any]) -> Shape:
    """The shape of the tree that a row holds, its columns that are not null. Raises Refused."""
    there = [name for name in (*_SHAPES, *_ANSWERS) if name in columns]
    if not is_conversation(columns.get("prompt")) and not any(name in columns for name in _CHATS):
        there.remove("prompt") if "prompt" in there else None
    if len(there) == 1:
        return _SHAPES[there[0]]()
    raise Refused("ambiguous_shape", "", f"{' and '.join(there)}: keep the columns of one shape")


def _nested(value: Any, place: str, key: str, seen: dict[Any, str], parent: Any = None) -> Node:
    """A node and everything below it. `seen` holds ids of messages -> their places."""
    own = _mapping(value, place)
    name = own.get("message_id")
    if name is not None and not isinstance(name, str | int):
        raise Refused("wrong_type", f"{place}.message_id", f"must be text, got {type(name).__name__}")
    if name is not None and seen.setdefault(name, place) != place:
        raise Refused("broken_tree", f"{place}.message_id", f"{name} is that of {seen[name]} too")
    if None not in (above := own.get("parent_id"), parent) and above != parent:
        raise Refused("broken_tree", f"{place}.parent_id", f"{above}, but it replies to {parent}")
    return Node(place, own, _listed(own.get(key, ()), f"{place}.{key}", key, seen, name))


def _listed(values: Any, place: str, key: str, seen: dict[Any, str], parent: Any = None) -> tuple[Node, ...]:
    return tuple(_nested(one, f"{place}[{k}]", key, seen, parent) for k, one in enumerate(_list(values, place)))


def _in_line(values: Any, name: str) -> tuple[Node, ...]:
    """What a line of messages or steps begins with, each followed by the next one and beside its alternatives."""
    after: tuple[Node, ...] = ()
    for at, value in reversed(list(enumerate(_list(values, name)))):
        place = f"{name}[{at}]"
        own = _mapping(value, place)
        role = {key: own[key] for key in ("role", "from") if key in own}
        other = _list(own.get("alternatives", ()), f"{place}.alternatives")
        beside = ((f"{place}.alternatives[{k}]", one) for k, one in enumerate(other))
        nodes = (Node(where, role | _mapping(one, where)) for where, one in beside)
        after = (Node(place, own, after, taken=True), *nodes)
    return after


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, Mapping):
        raise Refused("wrong_type", place, f"must be an object or text, got {type(value).__name__}")
    return {str(key): one for key, one in value.items() if one is not None}


def _list(value: Any, place: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise Refused("wrong_type", place, f"must be a list, got {type(value).__name__}")
    return value


def is_tree(row: Any) -> bool:
    """Whether a row holds a tree."""
    if not isinstance(row, Mapping):
        return False
    if is_conversation(row.get("prompt")):
        return True
    return any(row.get(name) is not None for name in TREE_COLUMNS) or any(map(_has_alternatives, map(row.get, _CHATS)))


def is_conversation(prompt: Any) -> bool:
    """Whether a row's prompt is a message with replies."""
    return isinstance(prompt, Mapping) and ("replies" in prompt or "text" in prompt and "content" not in prompt)


def _has_alternatives(chat: Any) -> bool:
    return isinstance(chat, list | tuple) and any(isinstance(m, Mapping) and m.get("alternatives") for m in chat)
