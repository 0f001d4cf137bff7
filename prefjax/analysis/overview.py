"""One or several runs on a page: overview.md with its picture, and the same numbers as overview.json."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from prefjax.analysis import style
from prefjax.analysis.notes import CHECKS, Notes, notes_text, take_notes
from prefjax.analysis.overlays import overlay_figure
from prefjax.analysis.report import number, table, with_error, with_interval, write_json
from prefjax.analysis.runs import Group, Run, differences, group_by_seed
from prefjax.analysis.statistics import Mean, Share


class _Column(NamedTuple):
    """A final value: of a run (number, Mean or Share; None where it was not measured), and how a number is written."""

    title: str
    of: Callable[[Run], Any]
    form: Callable[[float], str]


def _metric(name: str) -> Callable[[Run], float | None]:
    return lambda run: run.newest(name)


def _median_speed(run: Run) -> float | None:
    speeds = run.values("tokens_per_second", "train")
    return float(np.median(speeds)) if len(speeds) else None


def _measured(name: str, kind: type) -> Callable[[Run], Any]:
    return lambda run: None if run.result.get(name) is None else kind(**run.result[name])


_percent = lambda value: f"{value:.1%}"
_COLUMNS = (
    _Column("loss", _metric("loss"), lambda value: number(value, 4)),
    _Column("accuracy", lambda run: run.accuracy, _percent),
    _Column("margin", _metric("margin"), number),
    _Column("chosen", _metric("chosen_logp_change"), number),
    _Column("rejected", _metric("rejected_logp_change"), number),
    _Column("KL", lambda run: run.kl, number),
    _Column("gold reward", _measured("gold_trained", Mean), number),
    _Column("win rate", _measured("win_rate", Share), _percent),
    _Column("gradient norm", _metric("grad_norm"), lambda value: f"{value:.3g}"),
    _Column("tokens/s", _median_speed, lambda value: f"{value:.0f}"),
)


def write_overview(directory: str | pathlib.Path, runs: Sequence[Run]) -> pathlib.Path:
    """Writes overview.md, overview.png and overview.json into a folder (made if absent); returns the first.

    Raises:
      ValueError: no runs, or none has logged anything.
    """
    if not runs:
        raise ValueError("an overview needs at least one run")
    directory = pathlib.Path(directory)
    groups, notes = group_by_seed(runs), [take_notes(run) for run in runs]
    figure = overlay_figure(groups)
    directory.mkdir(parents=True, exist_ok=True)
    plot = style.save(figure, directory / "overview.png")
    write_json(directory / "overview.json", _facts(groups, runs, notes))
    path = directory / "overview.md"
    path.write_text(_page(groups, runs, notes, plot), encoding="utf-8")
    return path


def _page(groups: Sequence[Group], runs: Sequence[Run], notes: Sequence[Notes], plot: str) -> str:
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    odd = sum(len(one.odd) for one in notes)
    parts = [
        f"# {title}: {'nothing odd' if not odd else f'{odd} things to look at'}",
        final_table(groups),
        _caption(groups, runs),
        plot,
        "## What is odd\n\n" + "\n\n".join(notes_text(r, n) for r, n in zip(runs, notes, strict=True)),
        _differing(groups),
        _seeds(groups),
        "## The runs\n\n" + table(("run", "objective", "status", "sessions", "code", "on"), map(_origin, runs)),
        "## What was checked\n\n"
        "A range that most runs keep to, not a law. Without a source the threshold is this project's judgement.\n\n"
        + table(("check", "odd when", "why", "source"), ((c.name, c.rule, c.why, c.source) for c in CHECKS)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def final_table(groups: Sequence[Group]) -> str:
    """Newest values of all groups, one row each; columns that no run measured are left out."""
    columns = [column for column in _COLUMNS if any(column.of(run) is not None for g in groups for run in g.runs)]
    rows = [
        (f"`{group.label}`", max(run.last_step for run in group.runs), *(_cell(column, group) for column in columns))
        for group in groups
    ]
    return table(("run", "step", *(column.title for column in columns)), rows)


def _cell(column: _Column, group: Group) -> str:
    values = [value for run in group.runs if (value := column.of(run)) is not None]
    if not values:
        return ""
    plain = [value.value if isinstance(value, Mean | Share) else value for value in values]
    if len(values) > 1:
        return f"{column.form(float(np.mean(plain)))} ± {column.form(float(np.std(plain, ddof=1)))}"
    if isinstance(values[0], Mean):
        return with_error(values[0])
    return with_interval(values[0]) if isinstance(values[0], Share) else column.form(plain[0])


def _caption(groups: Sequence[Group], runs: Sequence[Run]) -> str:
    held_out = [run for run in runs if len(run.values("loss", "eval"))]
    where = "held-out" if len(held_out) == len(runs) else "held-out where there is a held-out set, else training"
    said = [
        f"Newest {where} values. Accuracy and win rate with 95 % Wilson intervals, KL (of the trained model's samples "
        "from the starting model, nats) and gold reward ± standard error; gradient norm is of the last training line, "
        "tokens/s the median. Other values are means over the held-out set whose spread is not logged: compare them "
        "over seeds."
    ]
    if any(len(group.runs) > 1 for group in groups):
        said.append("Rows of several seeds: mean ± standard deviation over the seeds.")
    if len({run.objective for run in runs}) > 1:
        said.append("Losses of two objectives cannot be compared.")
    return " ".join(said)


def _differing(groups: Sequence[Group]) -> str:
    if len(groups) < 2:
        return ""
    rows = [(f"`{name}`", *map(_value, values)) for name, values in differences(groups)]
    unknown = [f"`{group.label}`" for group in groups if not group.runs[0].config]
    text = table(("option", *(f"`{group.label}`" for group in groups)), rows) if rows else "No option differs."
    if unknown:
        text += f"\n\nOptions not known: {', '.join(unknown)} (no config.json, no run.json)."
    return f"## What differs\n\n{text}"


def _value(value: Any) -> str:
    return "" if value is None else f"`{value}`".replace("|", "\\|")


def _seeds(groups: Sequence[Group]) -> str:
    several = [group for group in groups if len(group.runs) > 1]
    rows = [
        (f"`{group.label}`", ", ".join(f"`{run.name}` ({run.config.get('seed')})" for run in group.runs))
        for group in several
    ]
    return f"## Seeds\n\n{table(('row', 'runs (seed)'), rows)}" if rows else ""


def _origin(run: Run) -> tuple[str, ...]:
    sessions = run.record.get("sessions", [])
    if not sessions:
        return f"`{run.name}`", run.objective, run.status, "", "", ""
    code, devices = sessions[-1].get("code", {}), sessions[-1].get("devices", {})
    commit = code.get("commit")
    state = "not in git" if commit is None else commit[:10] + (" and changes" if code.get("dirty") else "")
    commits = {session.get("code", {}).get("commit") for session in sessions}
    if len(commits) > 1:
        state += f"; {len(commits)} commits over its sessions"
    where = f"{devices.get('count')} x {devices.get('kind')}"
    return f"`{run.name}`", run.objective, run.status.replace("|", "\\|"), str(len(sessions)), state, where


def _facts(groups: Sequence[Group], runs: Sequence[Run], notes: Sequence[Notes]) -> dict[str, Any]:
    plain = lambda value: dataclasses.asdict(value) if isinstance(value, Mean | Share) else value
    return {
        "runs": [
            {
                "name": run.name,
                "objective": run.objective,
                "status": run.status,
                "step": run.last_step,
                "final": {column.title: plain(column.of(run)) for column in _COLUMNS},
                "odd": {check.name: text for check, text in one.odd},
                "fine": [check.name for check in one.fine],
                "unmeasured": [check.name for check in one.unmeasured],
            }
            for run, one in zip(runs, notes, strict=True)
        ],
        "groups": [[run.name for run in group.runs] for group in groups],
        "differences": {name: values for name, values in differences(groups)} if len(groups) > 1 else {},
    }
