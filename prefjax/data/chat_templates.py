"""Chat templates: what they are given besides the turns, a clock that stands still, and where one fails."""

import datetime
import difflib
import functools
import json
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What a template finds under these names is not for arguments to say.
_TAKEN = frozenset(
    "messages conversation tools chat_template add_generation_prompt continue_final_message tokenize padding "
    "truncation max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs "
    "sanitize_control_tokens bos_token eos_token pad_token unk_token strftime_now raise_exception namespace "
    "frozen_clock".split()
)
CLOCK = "strftime_now"
# In place of the function that reads the clock: formats, and else their directives, are looked up in `clock_of`. Of one
# line, with its end, which `trim_blocks` takes away, so that the template itself begins as it did.
FROZEN_CLOCK = (
    "{% macro strftime_now(format) %}{% if format in frozen_clock %}{{ frozen_clock[format] }}{% else %}"
    "{% set ns = namespace(text=format) %}{% for directive, text in frozen_clock.items() %}"
    "{% set ns.text = ns.text | replace(directive, text) %}{% endfor %}{{ ns.text }}{% endif %}{% endmacro %}\n"
)
_THROUGH_PARTS = re.compile(r"{%-?\s*for\s+\w+\s+in\s+\w+(\.content|\[\s*['\"]content['\"]\s*\])")
_ASKS_FOR_TEXT = re.compile(r"\bis\s+(not\s+)?(string|iterable|sequence|mapping)\b")
_FORMAT = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1")
_DIRECTIVES = [*(f"%-{letter}" for letter in "dmyHIMSj"), *(f"%{letter}" for letter in "aAwdbBmyYHIpMSfzZjUWeFDTRcxX")]


def arguments_text(given: Any) -> str:
    """`chat_template_kwargs`, a JSON object or its text, as one JSON text whatever the order; empty: none.

    Raises:
        ValueError: it is neither, or an argument has a name that templates are given otherwise.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ValueError(f'must be a JSON object, as {{"enable_thinking": false}}: {error}') from error
    if not isinstance(given, Mapping):
        raise ValueError(f"chat_template_kwargs must be a JSON object of arguments, got {type(given).__name__}")
    for name in given:
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            raise ValueError(f"chat_template_kwargs: {name!r} is no name of an argument")
        if name in _TAKEN:
            raise ValueError(f"chat_template_kwargs: {name!r} is decided elsewhere, by chats, columns and options")
    try:
        return json.dumps(given, ensure_ascii=False, sort_keys=True) if given else ""
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"chat_template_kwargs are not to be written as JSON: {error}") from error


def unread_arguments(arguments: str, template: str) -> list[str]:
    """Names of the arguments that a template does not so much as mention."""
    words = set(re.findall(r"\w+", template)) if arguments else ()
    return [name for name in json.loads(arguments or "{}") if name not in words]


@functools.lru_cache
def arguments_read(of_run: str, of_record: str, template: str) -> Mapping[str, Any]:
    """The arguments that a template is given, by name: those of a record, which the template may not read, go first."""
    unread = unread_arguments(of_record, template)
    given = {**json.loads(of_run or "{}"), **json.loads(of_record or "{}")}
    return {name: value for name, value in given.items() if name not in unread}


@functools.lru_cache
def wants_parts(template: str) -> bool:
    """Whether a template goes through the content of a message part by part, and never asks whether it is text.

    Templates of models that see images do. Of a text they would show nothing.
    """
    return bool(_THROUGH_PARTS.search(template)) and not _ASKS_FOR_TEXT.search(template)


def refuse_unread(arguments: str, template: str, source: str) -> None:
    """Raises ValueError for an argument of a run that has no effect on its template, with the nearest that may have."""
    for name in unread_arguments(arguments, template):
        near = difflib.get_close_matches(name, set(re.findall(r"[A-Za-z_]\w{3,}", template)), n=1)
        raise ValueError(
            f"chat_template_kwargs: {source} reads no {name!r}"
            + (f": did you mean {near[0]!r}?" if near else ", so it would have no effect: leave it out")
        )


def check_given(arguments: str, date: str) -> None:
    """Raises ValueError as `arguments_text`, and for a day that is not written as 2026-11-29; empty is none."""
    arguments_text(arguments)
    try:
        datetime.date.fromisoformat(date or "2000-01-01")
    except ValueError as error:
        raise ValueError(f"data.date={date!r} must be a day, as 2026-11-29: {error}") from error


def today() -> str:
    """The day it is here, as 2026-11-29."""
    return datetime.date.today().isoformat()


@functools.lru_cache
def clock_of(date: str, template: str) -> Mapping[str, str]:
    """What `strftime_now` makes of a template's formats and of each directive at the beginning of a day; %% is last."""
    moment = datetime.datetime.fromisoformat(date)
    formats = [found[1] for found in _FORMAT.findall(template)]
    return {format: moment.strftime(format) for format in (*formats, *_DIRECTIVES)} | {"%%": "%"}


def template_file(folder: str | Path) -> str:
    """The file of a tokenizer folder that its chat template stands in."""
    paths = [Path(folder) / name for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")]
    return str(next((path for path in paths if path.is_file()), paths[-1]))


def what_failed(error: Exception, above: int) -> str:
    """ ":LINE: what went wrong" of an error that came up in a template; the line where it is known.

    Args:
        above: lines that were put before the template.
    """
    import jinja2

    line = getattr(error, "lineno", None)
    for frame, at in traceback.walk_tb(error.__traceback__):
        line = at if frame.f_code.co_filename in ("<template>", "<unknown>") else line
    said = str(error) if isinstance(error, jinja2.exceptions.TemplateError) else f"{type(error).__name__}: {error}"
    return f"{'' if line is None else f':{line - above}'}: {said}"
