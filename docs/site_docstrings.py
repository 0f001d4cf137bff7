"""How the site shows docstrings: columns of names and meanings, and examples, keep their lines (a griffe extension)."""

import re
from typing import Any

import griffe

_COLUMN = re.compile(r"^[^\s:>|]\S*(?: \S+){0,2} {2,}\S")  # "rows           B, rows of groups per step"


class KeptLines(griffe.Extension):
    """Fences what a docstring says by the place of its words, which Markdown would flow together."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fence(obj.docstring.value)


def fence(text: str) -> str:
    """The text with its paragraphs in columns, and its examples, as blocks of code; sections (Args: ...) stay."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(_fenced(paragraph) for paragraph in paragraphs)


def _fenced(paragraph: str) -> str:
    lines = paragraph.split("\n")
    if paragraph.startswith(">>> "):
        return f"```pycon\n{paragraph}\n```"
    # A section of Google's form begins with a line that ends in a colon, and is read as it is.
    first = next((i for i, line in enumerate(lines) if line.endswith(":") and " " not in line), len(lines))
    columns = [i for i, line in enumerate(lines[:first]) if _COLUMN.match(line)]
    if not columns or lines[0].startswith(("    ", "```")):
        return paragraph
    begin = columns[0]
    head, block, tail = lines[:begin], lines[begin:first], lines[first:]
    return "\n".join([*head, *([""] if head else []), "```text", *block, "```", *([""] if tail else []), *tail])
