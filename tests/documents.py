"""What README.md and docs/*.md tell their reader to type: commands, and flags that stand by themselves."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`(?!`)((?:[^`\n]|\n(?!\n))+)`(?!`)")
_PROGRAM = re.compile(r"(\S*/)?(python3?|pip|hf) ")


class Said(NamedTuple):
    """Words to type.

    Args:
      page: the document.
      text: one command, or flags alone, as written but with continued lines joined and without comments.
    """

    page: str
    text: str


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [body for name, body in _FENCE.findall((ROOT / page).read_text()) if name == language]


def _words(page: str) -> Iterator[str]:
    """Every command line of the bash blocks, and every inline code."""
    for block in blocks(page, "bash"):
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
            yield from re.sub(r"(^| +)# .*", "", line).strip().split(" && ")
    for code in _INLINE.findall(_FENCE.sub("", (ROOT / page).read_text())):
        yield " ".join(code.split())


def commands() -> list[Said]:
    return [Said(page, text) for page in PAGES for text in _words(page) if _PROGRAM.match(text)]


def flags_alone() -> list[Said]:
    return [Said(page, text) for page in PAGES for text in _words(page) if text.startswith("--")]


def flag_names(text: str) -> set[str]:
    """The flags in a text, without their values."""
    return {word.partition("=")[0] for word in shlex.split(text) if word.startswith("--")}
