"""Tools, and calls of them, in chats: what files hold, checked, and kept as JSON text that chat templates are given."""

import json
from collections.abc import Mapping
from typing import Any

from prefjax.data.account import Refused
from prefjax.data.records import MESSAGE_FIELDS


def tools_text(value: Any) -> str:
    """The `tools` column of a row, a list of JSON schemas, as `Record.tools`.

    The list, or each schema, may be JSON text. A schema is {"type": "function", "function": {"name", ...}}, or the
    function alone. An empty list is no tools.

    Raises:
        Refused: anything else.
    """
    value = [_parsed(tool, f"tools[{at}]") for at, tool in enumerate(_list(_parsed(value, "tools"), "tools"))]
    for at, tool in enumerate(value):
        _function(tool, f"tools[{at}]")
    return _text(value, "tools") if value else ""


def message_fields(message: Mapping[str, Any], field: str) -> str:
    """What a message has besides role and content, as `Message.fields`.

    Calls of tools are the assistant's, [{"type": "function", "function": {"name", "arguments"}, ...}] or the functions
    alone, or the JSON text of that; `name`, `tool_call_id` and the thought are text.

    Args:
        field: what the message is called.
    Raises:
        Refused: anything else.
    """
    given = {key: message[key] for key in MESSAGE_FIELDS if message.get(key) not in (None, [], "")}
    of_calls = f"{field}.tool_calls"
    if "tool_calls" in given and not (calls := _parsed(given.pop("tool_calls"), of_calls)) == []:
        given["tool_calls"] = calls
    for at, call in enumerate(_list(given.get("tool_calls", []), of_calls)):
        _function(call, f"{of_calls}[{at}]")
    if "tool_calls" in given and message["role"] != "assistant":
        raise Refused("bad_tools", of_calls, f"by {message['role']!r}: only the assistant calls tools")
    for key in MESSAGE_FIELDS[1:]:
        if not isinstance(given.get(key, ""), str):
            raise Refused("bad_tools", f"{field}.{key}", f"must be text, got {type(given[key]).__name__}")
    return _text(given, of_calls) if given else ""


def _parsed(value: Any, field: str) -> Any:
    """What text says in JSON; nothing else changes."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else []
    except (ValueError, RecursionError) as error:
        raise Refused("bad_tools", field, f"text that is no JSON: {error}") from error


def _list(value: Any, field: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise Refused("bad_tools", field, f"must be a list, got {type(value).__name__}")
    return value


def _function(value: Any, field: str) -> None:
    inner = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise Refused("bad_tools", field, "a function has a name")


def _text(value: Any, field: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused("bad_tools", field, f"not to be written as JSON: {error}") from error
