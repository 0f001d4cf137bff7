"""Writes the table of docs/chaos.md from results of experiments.chaos.

python -m docs.write_chaos chaos            takes chaos/result.json over into docs/chaos.json, and writes the page
python -m docs.write_chaos chaos more       of two folders, where --only made some kinds each
python -m docs.write_chaos                  writes the page from docs/chaos.json again
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.chaos.kinds import SIZES, page_of

OUTPUT = Path(__file__).with_name("chaos.md")
RESULT = Path(__file__).with_name("chaos.json")
BEGIN, END = "<!-- by python -m docs.write_chaos -->\n", "<!-- end -->\n"


def joined(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result of several that have some kinds each, in the order of the table; of a kind twice the last."""
    last = {name: result for result in results for name in result["kinds"]}
    kinds = {name: last[name]["kinds"][name] for name in SIZES if name in last}
    faults = [
        fault for name, kind in kinds.items() for fault in last[name]["faults"] if fault.startswith(f"{kind['what']}: ")
    ]
    return {**results[-1], "kinds": kinds, "faults": faults}


def block(result: Mapping[str, Any]) -> str:
    """The table, and what it was counted with."""
    kinds = result["kinds"].values()
    minutes = sum(kind["seconds"] for kind in kinds) / 60
    shares = sorted({kind["share"] for kind in kinds})
    size = "All of it" if shares == [1] else f"`--share` from {shares[0]:g} to {shares[-1]:g}"
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return f"\n{size}, seed {result['seed']}, {minutes:.0f} minutes; {machine}.\n\n{page_of(result)}\n"


def document(text: str, result: Mapping[str, Any]) -> str:
    """The page with the block of a result in place of the one it has."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + block(result) + END + rest.split(END)[1]


if __name__ == "__main__":
    if sys.argv[1:]:
        found = joined([json.loads(Path(folder, "result.json").read_text()) for folder in sys.argv[1:]])
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
    OUTPUT.write_text(document(OUTPUT.read_text(), json.loads(RESULT.read_text())))
