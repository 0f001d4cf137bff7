"""Findings as a page with plots: beside them, after every part, and in the docs, with the card's name."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure

from experiments.benchmarks import sweep, trl
from experiments.benchmarks.accelerator import findings
from experiments.benchmarks.accelerator.findings import EQUAL, Entry
from experiments.benchmarks.accelerator.parts import PARTS, Part
from prefjax.analysis import style

COMMAND = "python -m experiments.benchmarks.accelerator --output=results/accelerator"
STEPS = (
    "step: {dtype}, {precision} precision | second loss: {away[second loss]:.1e} | "
    "second gradient's norm: {away[second gradient]:.1e} | parameters: {away[parameters]:.1e} | "
    "bound: {bound:g} | verdict: {verdict}"
)
PROOF = "heads and rows: {case} | kernels: {kernels} | plain XLA: {plain} | live tiles: {tiles} | verdict: {verdict}"
TILES = "query x key: {case} | ms: {milliseconds:.3g} | against the fastest: {slower:.2f}x"
SPEED = (
    "T: {length} | implementation: {implementation} | forward, ms: {forward[milliseconds]:.3g} | "
    "TFLOP/s: {forward[tflops]:.0f} | visited: {forward[visited_tflops]:.0f} | "
    "ns a tile: {forward[nanoseconds_per_tile]:.0f} | forward + backward, ms: {both[milliseconds]:.3g} | "
    "TFLOP/s: {both[tflops]:.0f} | visited: {both[visited_tflops]:.0f} | ns a tile: {both[nanoseconds_per_tile]:.0f} | "
    "away: {both[away]:.1e}"
)
TABLE = (
    "data: {data} | layout: {layout} | reference: {reference} | pairs/s: {pairs_per_second:.4g} | "
    "useful tokens/s: {useful_tokens_per_second:,.0f} | MFU: {mfu:.1%} | peak, GB: {measured:.2f} | "
    "reserved: {compiled:.2f} | planned: {planned:.2f} | " + sweep.GAINS
)


def write(folder: Path, page: Path, plots: Path) -> str:
    """Writes what was found in `folder` as a page, and its plots into another folder; returns the page."""
    entries = findings.read(folder)
    plots.mkdir(parents=True, exist_ok=True)
    text = f"# {card_name(entries)}\n\n{_machine(entries)}\n"
    for part in PARTS:
        text += f"\n## {part.title}\n\n{_ended(entries, part)}\n"
        rows = findings.rows(entries, part.name)
        if rows:
            table, figure = SHOWN[part.name](rows)
            text += f"\n{table}" if table else ""
            if figure:
                image = plots / f"{part.name}.png"
                words = f"{part.title}: {style.describe(figure)}"
                style.save(figure, image, words)
                text += f"\n![{words}]({image.relative_to(page.parent)})\n"
    page.write_text(text)
    return text


def write_docs(folder: Path, docs: Path) -> Path:
    """The docs' page of a card: docs/accelerator_CARD.md, with every number and plot in docs/benchmarks/CARD.

    Raises:
      ValueError: the folder holds no findings, or not which card they are of.
    """
    entries = findings.read(folder)
    if not findings.fact(entries, "card", "kind"):
        raise ValueError(f"--page={folder}: {folder / findings.FILE} does not say which card it is of; run part card")
    name = re.sub(r"\W+", "_", card_name(entries)).strip("_").lower()
    kept = docs / "benchmarks" / name
    page = docs / f"accelerator_{name}.md"
    write(folder, page, kept)
    parts = [{name: value for name, value in entry.items() if name != "trace"} for entry in entries]
    (kept / "result.json").write_text(json.dumps(parts, indent=1) + "\n")
    numbers = f"Every number: [result.json](benchmarks/{name}/result.json). The command, on that card:"
    page.write_text(page.read_text().rstrip() + f"\n\n{numbers}\n\n```bash\n{COMMAND}\n```\n")
    return page


def card_name(entries: Sequence[Entry]) -> str:
    return findings.fact(entries, "card", "kind", "An unknown card")


def _machine(entries: Sequence[Entry]) -> str:
    """Versions, driver, ceilings, what attention is lowered to, and what is missing, a sentence each."""
    fact = lambda name: findings.fact(entries, "card", name)
    facts = [", ".join(f"{name} {value}" for name, value in (fact("machine") or {}).items())]
    facts += [", ".join(f"{name} {value}" for name, value in (fact("nvidia_smi") or {}).items())]
    if fact("kernels") is not None:
        facts.append(f'"auto" attention, forward and backward, has {fact("kernels")} of 3 kernels, {fact("blocks")}')
    if fact("matmul_tflops"):
        facts.append(f"A bfloat16 matmul reaches {fact('matmul_tflops'):.0f} TFLOP/s")
    if fact("copy_gigabytes_per_second"):
        facts.append(f"A copy moves {fact('copy_gigabytes_per_second'):,.0f} GB/s, read and written")
    if fact("missing"):
        facts.append(f"Not as requirements.txt says: {'; '.join(fact('missing').values())}")
    cut = sum(entry["kind"] == "cut" for entry in entries)
    facts += [f"{cut} lines of {findings.FILE} were cut off"] if cut else []
    return "\n".join(f"- {one}." for one in facts if one)


def _ended(entries: Sequence[Entry], part: Part) -> str:
    """How a part ended, and what failed in it."""
    begun, ended = (findings.of(entries, part.name, kind) for kind in ("begin", "end"))
    failures = findings.of(entries, part.name, "failure")
    text = (
        f"Ended: {ended[-1]['how']}, {ended[-1]['seconds']:.0f} s" if ended else "Has not ended" if begun else "Not run"
    )
    text += f"; {len(begun)} cases begun, {len(failures)} failed." if begun or ended else "."
    return text + "".join(f"\n- {one['case']}: {one['error']}" for one in failures)


Shown = tuple[str, matplotlib.figure.Figure | None]


def _card(rows: list[Entry]) -> Shown:
    steps = [row for row in rows if "away" in row]
    return (sweep.table(STEPS, steps) if steps else ""), None


def _proof(rows: list[Entry]) -> Shown:
    listed = lambda errors: errors and " ".join(f"{error:.1e}" for error in errors)
    lines = [
        row
        | {"kernels": listed(row["errors"].get("kernels")), "plain": listed(row["errors"].get("plain"))}
        | {"tiles": listed(row["errors"].get("live tiles"))}
        for row in rows
    ]
    equal = sum(row["verdict"] == EQUAL for row in rows)
    text = f"Errors of output and gradients of query, key, value. {equal} of {len(rows)} are equal.\n\n"
    return text + sweep.table(PROOF, lines), None


def _tiles(rows: list[Entry]) -> Shown:
    rows = sorted(rows, key=lambda row: row["milliseconds"])
    fastest = rows[0]["milliseconds"]
    figure, (axis,) = sweep.panels(6, 1 + 0.22 * len(rows))
    axis.barh([row["case"] for row in rows[::-1]], [row["milliseconds"] for row in rows[::-1]], color=sweep.BLUE)
    axis.set(xlabel="forward + backward, ms")
    return sweep.table(TILES, [row | {"slower": row["milliseconds"] / fastest} for row in rows]), figure


def _speed(rows: list[Entry]) -> Shown:
    lines: dict[tuple[int, str], Entry] = {}
    for row in rows:
        line = lines.setdefault((row["length"], row["implementation"]), dict(row))
        line["forward" if row["direction"] == "forward" else "both"] = row
    figure, axes = sweep.panels(10, 3.6, 2)
    for axis, direction in zip(axes, ("forward", "both"), strict=True):
        for name in dict.fromkeys(row["implementation"] for row in rows):
            mine = sorted(
                (n, one[direction]["milliseconds"])
                for (n, who), one in lines.items()
                if who == name and direction in one
            )
            if mine:
                axis.plot(*zip(*mine, strict=True), marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="tokens in a row", ylabel=f"{direction}, ms")
        axis.legend(frameon=False, fontsize=7)
    return sweep.table(SPEED, [lines[key] for key in sorted(lines)]), figure


def _table(rows: list[Entry]) -> Shown:
    giga = lambda value: None if value is None else value / 1e9
    lines = [
        row
        | {"measured": giga(row["measured_peak"]), "planned": giga(row["planned_peak"])}
        | {"compiled": row["memory_mb"] / 1e3}
        for row in rows
    ]
    names = list(dict.fromkeys(row["data"] for row in rows))
    figure, axes = sweep.panels(4.2 * len(names), 3.4, len(names))
    for axis, data in zip(axes, names, strict=True):
        mine = [row for row in rows if row["data"] == data]
        labels = [f"{row['layout']}\n{row['reference']}" for row in mine]
        axis.barh(labels, [row["pairs_per_second"] for row in mine], color=sweep.BLUE)
        axis.set(xlabel="pairs per second", title=data)
    return sweep.table(TABLE, lines), figure


def _versus(rows: list[Entry]) -> Shown:
    if "not_run" in rows[0]:
        return f"Not run: {rows[0]['not_run']}.\n", None
    text = trl.table([row for row in rows if "side" in row])
    for row in rows:
        if "equality" in row:
            text = f"{trl.verdict('live', row['advantage'], row['equality'])}\n\n{text}"
    return text, None


SHOWN: dict[str, Callable[[list[Any]], Shown]] = {
    "card": _card,
    "proof": _proof,
    "tiles": _tiles,
    "speed": _speed,
    "table": _table,
    "versus": _versus,
}
