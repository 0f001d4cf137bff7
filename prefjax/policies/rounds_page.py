"""The page of some rounds: what each was made of, how good its policy is, and where its report lies."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefjax.analysis.statistics import Mean
from prefjax.state_files import write_whole

Done = Mapping[str, Mapping[str, Any]]  # of a folder: what each phase says of itself


def write_page(workdir: Path, command: str, objective: str, scorer: str, done: Sequence[Done]) -> Path:
    """Writes rounds.json and rounds.md, and returns the latter.

    Args:
      done: of the start, then of every round.
    """
    values = {"objective": objective, "scorer": scorer, "command": command, "start": done[0], "rounds": list(done[1:])}
    write_whole(workdir / "rounds.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    page = workdir / "rounds.md"
    parts = [f"# {len(done) - 1} rounds of {objective}", _headline(done), _policies(done, scorer), _data(done)]
    parts += [f"Repeat, continue, or add rounds with\n\n    {command}"]
    write_whole(page, "\n\n".join(filter(None, parts)) + "\n")
    return page


def _headline(done: Sequence[Done]) -> str:
    measured = [phases["measure"] for phases in done if "measure" in phases]
    if not measured:
        return ""
    from prefjax.analysis.report import with_error  # it draws, which only those who want the page install

    name, words = ("gold", "Gold reward") if "gold" in measured[0] else ("score", "Mean score")
    steps = " → ".join(with_error(Mean(**one[name])) for one in measured)
    drawn = measured[0]["responses"] // measured[0]["length"]["count"]
    return (
        f"**{words} of answers to held-out prompts: {steps}**, from the start on, ± one standard error over "
        f"{measured[0]['length']['count']} prompts with {drawn} answers each."
    )


def _policies(done: Sequence[Done], scorer: str) -> str:
    if "measure" not in done[0]:
        return "No answers to held-out prompts were drawn (rounds.measured=0)."
    from prefjax.analysis.report import number, table, with_error

    gold = "gold" in done[0]["measure"] and scorer != "gold"
    header = [
        "policy",
        f"score ({scorer})",
        *["gold reward"] * gold,
        "KL from the start, nats",
        "tokens",
        "cut off",
        "",
    ]
    rows = []
    for round_, phases in enumerate(done):
        said = phases["measure"]
        shown = [with_error(Mean(**said[name])) for name in ("score", *["gold"] * gold)]
        shown += [with_error(Mean(**said["kl"])) if round_ else "0", number(said["length"]["value"], 1)]
        link = f"[report](round{round_}/report.md)" if round_ else ""
        rows.append(
            (f"round {round_}" if round_ else "start", *shown, f"{said['unfinished'] / said['responses']:.1%}", link)
        )
    return "## Policies\n\n" + table(header, rows)


def _data(done: Sequence[Done]) -> str:
    """What each round was trained on, with the hashes of its files."""
    from prefjax.analysis.report import table

    counted = ("prompts", "responses", "blank", "scored", "chosen")
    header = ("round", *counted, "files (sha256)", "seconds (of them compiling)")
    rows = []
    for round_, phases in enumerate(done[1:], 1):
        made, files = phases["generate"], [phases[name] for name in ("generate", "annotate", "select")]
        hashes = "<br>".join(f"[{one['file']}](round{round_}/{one['file']}) `{one['sha256'][:12]}`" for one in files)
        seconds = "<br>".join(f"{name} {one['seconds']:.1f} ({one['compiling']:.1f})" for name, one in phases.items())
        counts = (made["prompts"], made["responses"], made.get("blank", 0), phases["annotate"]["rows"])
        rows.append((round_, *counts, phases["select"]["rows"], hashes, seconds))
    return (
        "## Data\n\n" + table(header, rows) + "\n\nWhat made each file lies beside it: "
        "`candidates.jsonl.manifest.json`, `scored.jsonl.manifest.json`, `chosen.jsonl.account.json`; and `run.json` "
        "of what was trained on it."
    )
