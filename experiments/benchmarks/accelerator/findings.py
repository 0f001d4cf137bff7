"""What the parts found: one JSON object a line, on disk the moment it is known, so that no kill takes it back.

Every line has `part` and `kind`:

    start     of a part; its limit in seconds
    begin     of a case
    row       of a case: `row`, what it found
    failure   of a case: `error`, one line, and `trace`
    end       of a part: `how`, and the seconds it took
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "findings.jsonl"
Entry = dict[str, Any]
EQUAL = "equal"  # the verdict of a comparison that holds
PROCESS = "its process"  # how the error of a case begins whose process ended


def add(folder: Path, part: str, kind: str, **facts: Any) -> None:
    """One more line. Several processes may add to the same file, one after the other."""
    line = json.dumps({"part": part, "kind": kind, **facts}, default=dataclasses.asdict)
    with (folder / FILE).open("a+b") as file:
        cut = file.tell() > 0 and not _ends_whole(file)
        file.write(b"\n" * cut + line.encode() + b"\n")


def _ends_whole(file) -> bool:
    file.seek(-1, 2)
    return file.read(1) == b"\n"


def read(folder: Path) -> list[Entry]:
    """All lines so far; one that a kill cut off is of kind "cut"."""
    path = folder / FILE
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            entries.append({"part": "", "kind": "cut", "text": line})
    return entries


def of(entries: Sequence[Entry], part: str, kind: str) -> list[Entry]:
    return [entry for entry in entries if (entry["part"], entry["kind"]) == (part, kind)]


def rows(entries: Sequence[Entry], part: str) -> list[Entry]:
    """The rows of a part, each with the case it belongs to."""
    return [{"case": entry["case"], **entry["row"]} for entry in of(entries, part, "row")]


def proven_attention(entries: Sequence[Entry], *, dtype: str, width: int) -> str:
    """What to measure plain heads with: "tiled" where a kernel for them was found wrong or failed, else "auto"."""
    plain = dict(dtype=dtype, width=width, softcap=None, window=None)
    tried = [row for row in rows(entries, "proof") if row["variant"].items() >= plain.items()]
    return "auto" if all(row["verdict"] == EQUAL for row in tried) else "tiled"


def fact(entries: Sequence[Entry], part: str, name: str, otherwise: Any = None) -> Any:
    """A fact that a part found, by its name."""
    return next((row[name] for row in rows(entries, part) if name in row), otherwise)
