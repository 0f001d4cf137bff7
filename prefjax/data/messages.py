"""Messages as people publish them -> `Message`: ShareGPT's keys, other names of roles, parts, thoughts, keys beside."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from prefjax.data.account import Refused
from prefjax.data.function_calls import message_fields
from prefjax.data.records import MESSAGE_FIELDS, THOUGHT, Message, Text

THOUGHTS = (THOUGHT, "reasoning", "thinking")  # what APIs call what was thought before the text was said
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")
_KNOWN = {"role", "content", *MESSAGE_FIELDS, *THOUGHTS}


@dataclasses.dataclass
class MessageReader:
    """Reads the texts of one row.

    roles       what a message may call a role -> what it is
    keep_nulls  whether keys without a value stay in tools and in calls of them
    found       what is to be counted of the row: a key of `account.REASONS` -> the first (field, detail)
    """

    roles: Mapping[str, str]
    keep_nulls: bool = False
    found: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)

    def texts(self, columns: Mapping[str, Any], names: Collection[str | None]) -> dict[str, Any]:
        """The columns, of which those named hold text or chats now, or lists of them if they are `completions`.

        Raises:
            Refused: names what one of them holds instead.
        """
        read = dict(columns)
        for name in names:
            value = columns.get(name) if name else None
            if name == "completions" and isinstance(value, list | tuple):
                each = enumerate(value)
                read[name] = [one if one is None else self.text(one, f"{name}[{k}]") for k, one in each]
            elif name and name != "completions" and value is not None:
                read[name] = self.text(value, name)
        return read

    def text(self, value: Any, field: str) -> Text:
        """Text, or a chat from a list of messages or a single one. Raises Refused."""
        if isinstance(value, str):
            return unicode(value, field)
        if isinstance(value, Mapping):
            return (self._message(value, field),)
        if not isinstance(value, list | tuple):
            raise Refused("wrong_type", field, f"must be text or a list of messages, got {type(value).__name__}")
        return tuple(self._message(message, f"{field}[{turn}]") for turn, message in enumerate(value))

    def without_nulls(self, value: Any, field: str) -> Any:
        """Mappings at any depth without the keys that have no value: where rows of one file differ in keys, Arrow
        gives each row those of all."""
        if isinstance(value, list | tuple):
            return [self.without_nulls(one, f"{field}[{at}]") for at, one in enumerate(value)]
        if self.keep_nulls or not isinstance(value, Mapping):
            return value
        if empty := [str(key) for key, one in value.items() if one is None]:
            self._count("dropped_nulls", field, ", ".join(empty))
        kept = {key: one for key, one in value.items() if one is not None}
        return {key: self.without_nulls(one, f"{field}.{key}") for key, one in kept.items()}

    def _message(self, value: Any, field: str) -> Message:
        if isinstance(value, Message):
            return value
        if not isinstance(value, Mapping):
            raise Refused("wrong_type", field, f"a message has role and content, got {type(value).__name__}")
        given = {str(key): entry for key, entry in value.items() if entry is not None}
        if "from" in given and "role" not in given:
            given["role"] = given.pop("from")
            given |= {"content": given.pop("value")} if "value" in given else {}
        if isinstance(given.get("content"), list | tuple):
            given |= self._joined(given["content"], f"{field}.content")
        if given.get("tool_calls"):
            given.setdefault("content", "")
            given["tool_calls"] = self.without_nulls(given["tool_calls"], f"{field}.tool_calls")
        for key in ("role", "content"):
            if key not in given:
                raise Refused("missing_field", f"{field}.{key}", "")
            if not isinstance(given[key], str):
                raise Refused("wrong_type", f"{field}.{key}", f"must be text, got {type(given[key]).__name__}")
            unicode(given[key], f"{field}.{key}")
        if (role := self.roles.get(given["role"], given["role"])) != given["role"]:
            self._count("mapped_role", field, f"{given['role']} is {role}")
        given["role"] = role
        thought = _thought(given, field) if role == "assistant" else {}
        known = _KNOWN if role == "assistant" else _KNOWN - {*THOUGHTS}
        if extra := sorted(given.keys() - known):
            self._count("ignored_key", field, ", ".join(extra))
        fields = message_fields({key: entry for key, entry in given.items() if key not in THOUGHTS} | thought, field)
        return Message(role, given["content"], unicode(fields, field))

    def _joined(self, parts: Collection[Any], field: str) -> dict[str, str]:
        """The content of text parts, and the thought of others, by key of the message."""
        texts: dict[str, list[str]] = {"content": [], THOUGHT: []}
        for at, part in enumerate(parts):
            if not isinstance(part, Mapping):
                raise Refused("wrong_type", f"{field}[{at}]", f"a part has a type, got {type(part).__name__}")
            kind = part.get("type") or "text"
            if kind not in (*_TEXT_PARTS, *_THOUGHT_PARTS):
                raise Refused("unsupported_part", f"{field}[{at}]", f"{kind!r}: only text can be read")
            text = next((part[key] for key in ("text", kind) if part.get(key) is not None), None)
            if not isinstance(text, str):
                raise Refused("wrong_type", f"{field}[{at}].text", f"must be text, got {type(text).__name__}")
            texts[THOUGHT if kind in _THOUGHT_PARTS else "content"].append(text)
        if len(texts["content"]) > 1:
            self._count("joined_parts", field, f"{len(texts['content'])} parts")
        return {"content": "".join(texts["content"])} | ({THOUGHT: "\n".join(texts[THOUGHT])} if texts[THOUGHT] else {})

    def _count(self, reason: str, field: str, detail: str) -> None:
        self.found.setdefault(reason, (field, detail))


def unicode(value: str, field: str) -> str:
    """The text, unless it has half of a character, which JSON can spell. Raises Refused."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refused("wrong_type", field, f"no valid text: {error.reason} at character {error.start}") from error
    return value


def _thought(given: Mapping[str, Any], field: str) -> dict[str, str]:
    """What the message says was thought, whatever it calls it."""
    said = {key: given[key] for key in THOUGHTS if given.get(key)}
    for key, text in said.items():
        if not isinstance(text, str):
            raise Refused("wrong_type", f"{field}.{key}", f"must be text, got {type(text).__name__}")
    if len(set(said.values())) > 1:
        raise Refused("unclear_thought", field, f"{' and '.join(said)} differ: keep one")
    return {THOUGHT: next(iter(said.values()))} if said else {}
