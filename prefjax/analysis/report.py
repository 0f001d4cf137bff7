"""A run's one-page report: report.md with its plot.png, and result.json with the same numbers for machines."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefjax.analysis import style
from prefjax.analysis.curves import last
from prefjax.analysis.notes import notes_text, take_notes
from prefjax.analysis.plots import run_figure
from prefjax.analysis.results import RunResults, Samples, Summary, summarize
from prefjax.analysis.runs import Run, read_record
from prefjax.analysis.statistics import FEW, Mean, Share
from prefjax.state_files import read_lines, write_whole

_EXAMPLES = 7
_EVALUATIONS = 5  # of the answers while training
_LONGEST_TEXT = 240  # characters of an example; longer texts are cut in the middle
_FINAL_METRICS = (
    *("loss", "reward_accuracy", "margin", "chosen_logp_change", "rejected_logp_change"),
    *("chosen_reward", "rejected_reward"),
)


def write_report(directory: str | pathlib.Path, results: RunResults) -> pathlib.Path:
    """Writes report.md, plot.png and result.json into a folder (made if absent); returns the path of report.md."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    summary = summarize(results)
    plot = style.save(run_figure(results, summary), directory / "plot.png")
    result = json_safe(_result(results, summary))
    write_json(directory / "result.json", result)
    path = directory / "report.md"
    run = Run(results.objective, results.metrics, results.config, read_record(directory), result)
    text = _markdown(results, summary, run, plot, read_lines(directory / "samples.jsonl"))
    path.write_text(text, encoding="utf-8")
    return path


def _markdown(results: RunResults, summary: Summary, run: Run, plot: str, answers: Sequence[Mapping[str, Any]]) -> str:
    samples = results.samples
    parts = [
        f"# {_headline(results, summary)}",
        f"{results.objective} on {results.data}. Repeat with\n\n```\n{results.command}\n```",
        _measures(results, summary),
        _caveats(results, summary),
        plot,
        "## What is odd\n\n" + notes_text(run, take_notes(run)),
        "" if samples is None else _examples(results.start, samples),
        _answers(answers) if answers else "",
        "## Last values of the curves\n\n" + _final_metrics(results.metrics),
        *(f"## {name} data\n\n```\n{account}\n```" for name, account in results.accounts.items()),
        "## Run\n\n" + table(("part", "wall time"), _times(results.seconds)),
        table(("machine", ""), results.machine.items()),
        table(("option", "value"), ((f"`{name}`", f"`{value}`") for name, value in results.config.items())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _headline(results: RunResults, summary: Summary) -> str:
    if summary.win_rate is not None:
        gold = f"{number(summary.gold_start.value)} → {number(summary.gold_trained.value)}"
        wins = f"wins {summary.win_rate.value:.0%} against {results.start}"
        return f"{results.objective}: gold reward {gold}, {wins}{_only(summary.win_rate.count, 'samples')}"
    if summary.accuracy is not None:
        accuracy = f"{summary.accuracy.value:.1%}{_only(summary.accuracy.count, 'pairs')}"
        return f"{results.objective}: held-out reward accuracy {accuracy}"
    return f"{results.objective} on {results.data}"


def _only(count: int, of: str) -> str:
    """What a headline adds where little stands behind it."""
    return f" (only {count} {of})" if count < FEW else ""


def _measures(results: RunResults, summary: Summary) -> str:
    """The table of headline numbers: only rows that were measured."""
    start = results.start
    rows = []
    if summary.gold_start is not None:
        rows.append((f"gold reward of {start}", with_error(summary.gold_start), "mean ± standard error"))
        ceiling = "" if summary.gold_ceiling is None else f"; the best possible is {number(summary.gold_ceiling)}"
        rows.append(("gold reward of the trained model", with_error(summary.gold_trained), f"the same{ceiling}"))
    if summary.win_rate is not None:
        definition = f"gold reward against {start}'s sample, same prompt, ties half; 95 % Wilson interval"
        rows.append((f"win rate against {start}", with_interval(summary.win_rate), definition))
    if summary.garbled_trained is not None:
        shares = f"{summary.garbled_start:.1%} → {summary.garbled_trained:.1%}"
        rows.append(("malformed samples", shares, f"{start} → trained; share at the gold floor"))
    if summary.kl is not None:
        definition = (
            f"KL(trained ‖ {start}) of whole responses: mean of log π − log ref over its samples ± standard error"
        )
        rows.append(("KL", f"{with_error(summary.kl)} nats", definition))
    if summary.accuracy is not None:
        definition = f"{summary.accuracy.count} held-out pairs, last evaluation, ties half; 95 % Wilson interval"
        rows.append(("reward accuracy", with_interval(summary.accuracy), definition))
    if summary.gold_correlation is not None:
        definition = f"Pearson's, {len(results.rewards.gold)} held-out responses to different prompts together"
        rows.append(("correlation with the gold reward", number(summary.gold_correlation, 3), definition))
    return table(("measure", "value", "how"), rows) if rows else ""


def _caveats(results: RunResults, summary: Summary) -> str:
    """What a reader must know to read the numbers rightly, or why a number is absent."""
    notes = []
    samples = results.samples
    if results.rewards is not None:
        notes.append("A reward model was trained: it judges responses and samples none.")
    elif samples is None:
        notes.append("No responses were sampled, so there is no gold reward, win rate or KL estimate.")
    else:
        notes.append(f"Sampled: one response of each model to each of {len(samples.prompts)} held-out prompts.")
        if samples.gold is None:
            notes.append("This data has no gold reward, so there is none here and no win rate: judge the examples.")
        if samples.unfinished:
            notes.append(
                f"{samples.unfinished} of the trained model's samples hit the token limit; the KL estimate counts "
                "them up to there."
            )
    if summary.accuracy is None:
        notes.append("There are no held-out pairs, so there is no reward accuracy.")
    return " ".join(notes)


def _examples(start: str, samples: Samples) -> str:
    def cell(text: str, rewards: np.ndarray | None, index: int) -> str:
        reward = "" if rewards is None else f" **{number(float(rewards[index]))}**"
        return _cell_text(text) + reward

    gold = samples.gold
    worth = "" if gold is None else " (**gold reward**)"
    rows = [
        (
            _cell_text(samples.prompts[i]),
            cell(samples.reference[i], None if gold is None else gold.reference, i),
            cell(samples.policy[i], None if gold is None else gold.policy, i),
        )
        for i in _example_indices(samples)
    ]
    heading = f"## Samples\n\nEvenly spaced over the {len(samples.prompts)} prompts, not selected by outcome.\n\n"
    return heading + table(("prompt", f"{start}{worth}", f"trained{worth}"), rows)


def _example_indices(samples: Samples) -> list[int]:
    count = len(samples.prompts)
    return sorted({int(i) for i in np.linspace(0, count - 1, min(_EXAMPLES, count)).round()})


def _answers(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row a prompt, a column an evaluation, of many some evenly spaced; rows: step, prompt, response."""
    steps = sorted({row["step"] for row in rows})
    shown = np.linspace(0, len(steps) - 1, min(_EVALUATIONS, len(steps))).round().astype(int)
    steps = [steps[i] for i in sorted(set(shown.tolist()))]
    said = {(row["prompt"], row["step"]): row["response"] for row in rows}
    lines = []
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        cells = [_cell_text(said.get((prompt, step), "")) for step in steps]
        same = [before == after for before, after in zip(cells, cells[1:], strict=False)]
        rest = ["the same" if one else cell for one, cell in zip(same, cells[1:], strict=True)]
        lines.append((_cell_text(prompt), cells[0], *rest))
    heading = "## Answers while training\n\nThe most likely tokens, at evaluations (`samples.jsonl` has all).\n\n"
    return heading + table(("prompt", *(f"step {step}" for step in steps)), lines)


def _final_metrics(metrics: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for name in _FINAL_METRICS:
        train, heldout = last(metrics, name, "train"), last(metrics, name, "eval")
        if train is not None or heldout is not None:
            rows.append((f"`{name}`", *("" if v is None else number(v, 3) for v in (train, heldout))))
    return table(("metric", "train", "held out"), rows)


def _times(seconds: Mapping[str, float]) -> list[tuple[str, str]]:
    rows = [(part, f"{value:.1f} s") for part, value in seconds.items()]
    return [*rows, ("total", f"{sum(seconds.values()):.1f} s")]


def _result(results: RunResults, summary: Summary) -> dict[str, Any]:
    samples = results.samples
    examples = []
    if samples is not None:
        for i in _example_indices(samples):
            example = {"prompt": samples.prompts[i], "start": samples.reference[i], "trained": samples.policy[i]}
            if samples.gold is not None:
                example |= {"gold_start": samples.gold.reference[i], "gold_trained": samples.gold.policy[i]}
            examples.append(example)
    final = {
        split: {name: value for name in _FINAL_METRICS if (value := last(results.metrics, name, split)) is not None}
        for split in ("train", "eval")
    }
    described = ("objective", "start", "data", "command", "config", "machine", "seconds")
    return {
        **{name: getattr(results, name) for name in described},
        **dataclasses.asdict(summary),
        "unfinished": None if samples is None else samples.unfinished,
        "final": final,
        "examples": examples,
    }


def write_json(path: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """Writes what `json_safe` makes of facts, whole or not at all."""
    write_whole(path, json.dumps(json_safe(facts), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def json_safe(value: Any) -> Any:
    """Plain JSON types, dataclasses as mappings and arrays as lists; numbers that JSON lacks (NaN, infinity) become
    null, and unknown objects their text."""
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(name): json_safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return json_safe(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def table(header: Sequence[str], rows: Any) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _cell_text(text: str) -> str:
    """A text as one table cell: cut in the middle when long, shown as it is, whatever Markdown it may hold."""
    text = text.strip()
    if len(text) > _LONGEST_TEXT:
        half = _LONGEST_TEXT // 2
        text = f"{text[:half]} … {text[-half:]}"
    for character in "\\`*_[]<>|#~":
        text = text.replace(character, "\\" + character)
    return "<br>".join(text.splitlines()) or "(empty)"


def number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def with_error(mean: Mean, digits: int = 2) -> str:
    """value ± standard error; below `FEW` values how many there are instead."""
    if mean.count < FEW:
        return f"{number(mean.value, digits)} ({mean.count}: too few for ±)"
    return f"{number(mean.value, digits)} ± {mean.standard_error:.{digits}f}"


def with_interval(share: Share) -> str:
    """value (95 % interval); below `FEW` comparisons how many there are instead."""
    if share.count < FEW:
        return f"{share.value:.1%} ({share.count}: too few for an interval)"
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"
