"""What is odd about a run: healthy ranges, each with its threshold, reason and source, held against what it measured.

A note is a question, not a verdict: a range is what most runs keep to. `CHECKS` is the one place of all of them:
checks.py has those of curves, evidence.py those of samples and of how much stands behind a number.
"""

import dataclasses
from collections.abc import Sequence

from prefjax.analysis import checks, evidence
from prefjax.analysis.checks import Check
from prefjax.analysis.runs import Run

CHECKS = checks.CHECKS + evidence.CHECKS


@dataclasses.dataclass(frozen=True)
class Notes:
    """odd: (check, what was found); fine and unmeasured: checks."""

    odd: tuple[tuple[Check, str], ...]
    fine: tuple[Check, ...]
    unmeasured: tuple[Check, ...]


def take_notes(run: Run) -> Notes:
    """Holds every check against a run, finished or not."""
    found = [(check, check.find(run, check.threshold)) for check in CHECKS]
    return Notes(
        odd=tuple((check, text) for check, text in found if text),
        fine=tuple(check for check, text in found if text == ""),
        unmeasured=tuple(check for check, text in found if text is None),
    )


def notes_text(run: Run, notes: Notes) -> str:
    """What is odd about one run as Markdown; what could not be checked is said too."""
    lines = [f"- {check.name}: {text}." for check, text in notes.odd]
    checked = f"{len(notes.odd) + len(notes.fine)} of {len(CHECKS)} checks could be made"
    if notes.unmeasured:
        checked += f"; not measured: {_missing(notes.unmeasured)}"
    if not lines:
        return f"`{run.name}`: nothing odd{' in what was measured' * bool(notes.unmeasured)}. {checked}."
    return "\n".join([f"`{run.name}`: {checked}.", "", *lines])


def _missing(checks: Sequence[Check]) -> str:
    """Names of checks, those together that lack the same."""
    names: dict[str, list[str]] = {}
    for check in checks:
        names.setdefault(check.needs, []).append(check.name)
    return "; ".join(f"{', '.join(those)} (for want of {needs})" for needs, those in names.items())
