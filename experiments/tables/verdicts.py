"""What is kept of a run: result.json, the Markdown page made from it alone, and how two runs are compared."""

import collections
import inspect
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import ml_collections

from experiments.tables.harness import (
    NOT_REPRODUCED,
    NOTHING,
    Results,
    Row,
    Setting,
    UsageError,
    judge,
    load_paper,
    mean_interval,
)
from prefjax.analysis import style

_FLOOR = 1e-3  # two runs whose interval has no width, as at a probability of 1, may still differ by rounding


def summarize(
    table_id: str,
    module: ModuleType,
    config: ml_collections.ConfigDict,
    results: Results,
    seconds: float,
    own: Sequence[Setting] = (),
) -> dict[str, Any]:
    """result.json: the page's header, the protocol, the table's cells, the claims, and where it ran.

    own  the settings of a user's own objectives, after the table's
    """
    paper = load_paper(Path(module.__file__).with_name("paper.toml"))
    facts = paper.get(table_id.split(".")[1], {})
    settings = (*module.SETTINGS, *own)
    unverified = {name for name, fact in facts.items() if not fact["verified"]}
    judgement = judge(settings, module.CLAIMS, results, unverified)
    return {
        "id": table_id,
        "paper": paper["paper"],
        "shows": module.TABLE.shows,
        "verdict": module.TABLE.verdict if judgement.holds else NOT_REPRODUCED,
        "claims": [
            {
                "name": claim.name,
                "text": claim.text,
                "holds": holds,
                "measured": measured,
                "at_most": claim.at_most,
                "worst_at": key,
            }
            for claim, (measured, key, holds) in zip(module.CLAIMS, judgement.claims, strict=True)
        ],
        "rows": [
            {
                "labels": dict(setting.labels),
                "metric": setting.metric,
                "paper": _says(facts, setting.fact),
                "cells": {col: _cell(results.final(setting.key, col, setting.metric)) for col in module.TABLE.columns},
                "verdict": verdict,
                "reason": reason,
                "own": setting.own,
            }
            for setting, verdict, reason in zip(settings, judgement.rows, judgement.reasons, strict=True)
        ],
        **({"over": module.TABLE.over} if module.TABLE.over != "seeds" else {}),
        "docstring": inspect.getdoc(module),
        "figure": " ".join(inspect.getdoc(module.plot).split()),
        "config": config.to_dict(),
        "environment": {
            "jax": jax.__version__,
            "python": platform.python_version(),
            "device": jax.devices()[0].device_kind,
            "float64": module.TABLE.float64,
            "git_commit": _git_commit(),
        },
        "seconds": round(seconds, 1),
    }


def _says(facts: Mapping[str, Any], fact: str | None) -> str | None:
    """What the paper says in short, if somebody has read it there."""
    return facts[fact]["cell"] if fact is not None and facts[fact]["verified"] else None


def _cell(values) -> dict[str, float | int]:
    """A computed number, or mean, half the 95 % interval, and the number of seeds."""
    if len(values) == 1:
        return {"value": float(values[0])}
    mean, half = mean_interval(values)
    return {"mean": float(mean), "half_width": float(half), "seeds": len(values)}


def _git_commit() -> str | None:
    """The commit that is checked out, "+" if files differ from it; None without git or a commit."""
    try:
        command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def header(docstring: str) -> str:
    """The part of a table's docstring that says what it is: title, COMMAND, TIME and RESULT."""
    return "\n\n".join(docstring.split("\n\n")[:2])


def command(docstring: str) -> str:
    """What a table's docstring says behind COMMAND."""
    return docstring.partition("COMMAND")[2].partition("\n")[0].strip()


def markdown_table(result: Mapping[str, Any]) -> str:
    """The table as Markdown whose columns line up in a terminal."""
    first = result["rows"][0]
    seeds = max(cell.get("seeds", 0) for cell in first["cells"].values())
    over = result.get("over", "seeds")
    names = [f"{col} ({seeds} {over}, 95 % CI)" if "seeds" in cell else col for col, cell in first["cells"].items()]
    lines = [[*first["labels"], "shown", "paper", *names, "verdict"]]
    for row in result["rows"]:
        cells = [
            f"{cell['mean']:.4f} ± {cell['half_width']:.4f}" if "seeds" in cell else f"{cell['value']:.4f}"
            for cell in row["cells"].values()
        ]
        labels = [str(label) for label in row["labels"].values()]
        lines.append([*labels, row["metric"], row["paper"] or NOTHING, *cells, row["verdict"]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def claim_lines(result: Mapping[str, Any]) -> list[str]:
    """One line per claim: whether it holds, what it says, the worst measurement and its bound."""
    return [
        f"{'holds' if claim['holds'] else 'FAILS'}: {claim['text']}. "
        f"Worst {claim['measured']:.3g} at {claim['worst_at']}, bound {claim['at_most']:g}."
        for claim in result["claims"]
    ]


def last_line(result: Mapping[str, Any]) -> str:
    """The run in one line."""
    claims, where = result["claims"], result["environment"]
    commit = [where["git_commit"]] if where["git_commit"] else []
    rows = collections.Counter(row["verdict"] for row in result["rows"])
    parts = [
        result["verdict"],
        f"{sum(claim['holds'] for claim in claims)}/{len(claims)} claims hold",
        "rows: " + ", ".join(f"{count} {verdict}" for verdict, count in rows.most_common()),
        f"{result['seconds']:.0f} s",
        where["device"],
        "float64" if where["float64"] else "float32",
        f"jax {where['jax']}",
        *commit,
    ]
    return f"{result['id']}: " + " · ".join(parts)


def markdown(result: Mapping[str, Any]) -> str:
    """The page: what it is, the table, the claims, the figure, what to change. Made from result.json alone."""
    title, *rest = result["docstring"].split("\n\n")
    about = [part for part in rest if not part.startswith("TRY")]
    return "\n".join(
        [
            f"# {title}",
            "",
            *("```text", "\n\n".join(about), "```", ""),
            markdown_table(result),
            "",
            *(f"- {line}" for line in claim_lines(result)),
            "",
            f"**{last_line(result)}**",
            "",
            f"![{result['figure']}](plot.png)",
            "",
            "## Change one thing",
            "",
            *(f"- `{command(result['docstring'])} {flag}`: {what}" for flag, what in overrides(result)),
            "",
        ]
    )


def overrides(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a table's docstring offers under TRY: a flag and what comes of it, one per line that begins with a flag."""
    tries = [part for part in result["docstring"].split("\n\n") if part.startswith("TRY")]
    found: list[tuple[str, str]] = []
    for line in "".join(tries).removeprefix("TRY").splitlines():
        flag, _, what = line.strip().partition(" ")
        if flag.startswith("--"):
            found.append((flag, what.strip()))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
    return found


def write(folder: Path, result: Mapping[str, Any], rows: Iterable[Row] | None, figure) -> None:
    """result.json, table.md, plot.png and, where given, rows.jsonl into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(markdown(result), encoding="utf-8")
    if rows is not None:
        with open(folder / "rows.jsonl", "w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row._asdict(), separators=(",", ":")) + "\n" for row in rows)
    style.save(figure, folder / "plot.png", result["figure"])


def require_same_config(config: ml_collections.ConfigDict, reference: Mapping[str, Any]) -> None:
    """Two runs can be compared only if they had the same config.

    Raises:
        UsageError: they did not; the message names the fields.
    """
    new, old = config.to_dict(), reference["config"]
    changed = [f"{key}={new.get(key)} (reference {old.get(key)})" for key in old | new if new.get(key) != old.get(key)]
    if changed:
        raise UsageError(
            f"--check: the reference run had another config: {', '.join(changed)}; run it without overrides"
        )


def differences(result: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """What a run shows that its reference run does not, one line each: verdicts, computed numbers, and means that lie
    outside the reference's interval. Empty when they agree. Rows of a user's own objectives have no reference."""
    rows = [row for row in result["rows"] if not row.get("own")]
    return _unequal(result["claims"], reference["claims"]) + _unequal(rows, reference["rows"])


def _unequal(new: Sequence[Mapping[str, Any]], old: Sequence[Mapping[str, Any]]) -> list[str]:
    """Differences of two lists of claims or of rows, matched by name."""

    def named(entries):
        return {e["name"] if "name" in e else " ".join(map(str, e["labels"].values())): e for e in entries}

    new, old = named(new), named(old)
    found = [
        f"{name}: only in {'this run' if name in new else 'the reference'}" for name in sorted(new.keys() ^ old.keys())
    ]
    for name in (name for name in old if name in new):
        for field in ("holds", "verdict"):
            if new[name].get(field) != old[name].get(field):
                found.append(f"{name}: {field} is {new[name][field]}, in the reference {old[name][field]}")
        for col, cell in old[name].get("cells", {}).items():
            here, there = (c.get("mean", c.get("value")) for c in (new[name]["cells"][col], cell))
            if not abs(here - there) <= max(cell.get("half_width", 0.0), _FLOOR):
                found.append(f"{name}: {col} is {here:.4f}, in the reference {there:.4f}")
    return found
