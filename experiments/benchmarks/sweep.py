"""A benchmark as a declaration: cells that must compute the same thing, timed in turns, then printed, drawn and kept.

A command is a short file: its protocol as a docstring, a `Sweep`, `define_flags`, `declare(options) -> Sweep`, and
`sweep.main(define_flags, declare)`. The two that measure something else than calls in turns use the parts.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import matplotlib.axes
import matplotlib.figure
import numpy as np
from absl import flags

from experiments.command import start_command
from prefjax.analysis import style
from prefjax.data.progress import progress_bar
from prefjax.training.provenance import machine

Row = dict[str, Any]
BLUE, GREY, ORANGE = style.BLUE, style.GRAY, style.GOLD
GAINS = "S_time: {s_time:.2f}x | S_tokens: {s_tokens:.2f} | S_FLOPs: {s_flops:.2f} | efficiency: {efficiency:.3f}"
# Relative. Sums of log-probs differ by rounding; a pair too many or too few moves them by per cents.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


class Times(list[float]):
    """Seconds of one call, one entry per turn; a format string shows their median."""

    @property
    def median(self) -> float:
        return statistics.median(self)

    def __format__(self, spec: str) -> str:
        return format(self.median, spec)


class Cell(NamedTuple):
    """One thing to time, compiled: plain facts for result.json, and a call that returns its result when it is done."""

    facts: Row
    run: Callable[[], Any]


@dataclasses.dataclass(kw_only=True)
class Sweep:
    """What one command measures and how it shows it. A subclass adds its columns and four methods:

    cells(case) -> name -> cell    what must compute the same; each call returns its results by name
    rows(case, cells) -> rows      what the case adds to result.json, of its cells' facts and their `seconds` (`Times`)
    lines(rows) -> lines           what the lines of the table hold; the rows, unless it says otherwise
    plot(rows) -> figure

    cases      what is varied; the cells of a case are compiled, proven equal and timed before the next case's
    columns    of table.md; see `table`
    text       what table.md says first
    facts      what result.json holds beside the rows; dataclasses are written as their fields
    tolerance  see `check_equal`; None where cells are proven when they are compiled
    key        of the rows in result.json
    settle     see `interleave`
    """

    text: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tolerance: float | None = TOLERANCE["float32"]
    key: ClassVar[str] = "rows"
    settle: ClassVar[bool] = False
    cases = (None,)  # without a type: a subclass that has several makes it a field

    def lines(self, rows: list[Row]) -> list[Row]:
        return rows

    def table(self, rows: list[Row]) -> str:
        """Markdown."""
        return table(self.columns, self.lines(rows))

    def measure(self, repeats: int, times: list[Times] | None = None) -> list[Row]:
        """The rows of all cases; the times of every cell are added to `times`.

        Raises:
          AssertionError: cells of a case disagree, before they are timed or after.
        """
        rows = []
        for case in self.cases:
            cells = self.cells(case)
            if self.tolerance:
                results = {name: cell.run() for name, cell in cells.items()}
                check_equal(results, self.tolerance)
            seconds = interleave({name: cell.run for name, cell in cells.items()}, repeats, settle=self.settle)
            if self.tolerance:
                first, *_, last = results
                check_equal({first: results[first], f"{last} after timing": cells[last].run()}, self.tolerance)
            found = self.rows(case, {name: cell.facts | {"seconds": seconds[name]} for name, cell in cells.items()})
            print(*self.table(found).splitlines()[2:], sep="\n", flush=True)
            rows += found
            if times is not None:
                times += seconds.values()
        return rows

    def run(self, output: Path, repeats: int) -> None:
        """Measures, and leaves table.md, result.json and plot.png in `output`."""
        times: list[Times] = []
        rows = self.measure(repeats, times)
        text = f"{self.text} {timing_line(repeats, times)}\n{machine_line()}.\n\n{self.table(rows)}"
        write(output, {**self.facts, self.key: rows}, text, self.plot(rows))


def main(define_flags: Callable[[], None], declare: Callable[[flags.FlagValues], Sweep], *, repeats: int = 5) -> None:
    """The command of a sweep. Flags are defined when it starts: one process may import several benchmarks."""
    define_output()
    flags.DEFINE_integer(
        "repeats", repeats, "Timed calls of everything that is compared; the median counts.", lower_bound=1
    )
    define_flags()
    start_command(lambda _: declare(flags.FLAGS).run(Path(flags.FLAGS.output), flags.FLAGS.repeats))


def define_output() -> None:
    """Of every benchmark."""
    flags.DEFINE_string("output", None, "Folder for result.json, table.md and plot.png.", required=True)


def check_equal(results: Mapping[str, Mapping[str, Any]], tolerance: float) -> None:
    """Refuses to time a wrong computation: all cells must have computed the same numbers or arrays.

    Args:
      tolerance: of the largest difference in a result, relative to the largest number in it.

    Raises:
      AssertionError: names the cells and the result that differs.
    """
    first, *others = results
    for other in others:
        assert results[other].keys() == results[first].keys(), f"{other} computes other results than {first}"
        for name, expected in results[first].items():
            value = results[other][name]
            close = np.abs(value - expected).max() <= tolerance * np.abs(expected).max()
            assert close, f"{other} computes {name} {value}, but {first} {expected}: not the same work"


def interleave(calls: Mapping[str, Callable[[], Any]], repeats: int, *, settle: bool = False) -> dict[str, Times]:
    """Seconds of every call, `repeats` of each, in turns: a busy machine slows all of them alike.

    Args:
      calls: name -> a function that returns when its work is done; compiled and warmed up before.
      settle: call once untimed before every timed call. Gigabytes that one call returns to the system slow down a
        following call of milliseconds to twice its time, which no training step would see.
    """
    seconds = {name: Times() for name in calls}
    with progress_bar(shown=True, total=repeats * len(calls), desc="timing", unit="call") as bar:
        for _ in range(repeats):
            for name, call in calls.items():
                bar.set_postfix_str(name, refresh=False)
                if settle:
                    call()
                began = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - began)
                bar.update()
    return seconds


def table(columns: str, rows: Sequence[Row]) -> str:
    """Markdown, one line per row.

    Args:
      columns: "title: format string | ..."; a row shows nothing in a column whose value is None or missing.
    """
    titles, formats = zip(*(column.split(": ", 1) for column in columns.split(" | ")), strict=True)
    lines = [[title.strip() for title in titles], ["---"] * len(titles)]
    for row in rows:
        known = {name: value for name, value in row.items() if value is not None}
        lines.append([_filled(text, known) for text in formats])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _filled(text: str, values: Row) -> str:
    try:
        return text.format(**values)
    except KeyError:
        return ""


def write(output: Path, facts: Mapping[str, Any], text: str, figure: matplotlib.figure.Figure) -> None:
    """result.json (facts, the machine and the versions), table.md and plot.png."""
    output.mkdir(parents=True, exist_ok=True)
    whole = json.dumps({"machine": machine(), **facts}, indent=1, default=dataclasses.asdict)
    (output / "result.json").write_text(whole + "\n")
    (output / "table.md").write_text(text)
    style.save(figure, output / "plot.png")
    print(text, flush=True)


def panels(
    width: float, height: float, count: int = 1, **shared: bool
) -> tuple[matplotlib.figure.Figure, list[matplotlib.axes.Axes]]:
    """A figure of `count` plots side by side, in the one look of all plots."""
    return style.panels(width, height, 1, count, **shared)


def machine_line() -> str:
    """What the numbers were measured on, in one line."""
    return ", ".join(f"{name} {value}" for name, value in machine().items())


def timing_line(repeats: int, seconds: Iterable[Times]) -> str:
    """How the medians came about, and how far they can be trusted."""
    widest = max(((max(times) - min(times)) / times.median for times in seconds), default=0)
    return f"Median of {repeats} calls in turns; (slowest - fastest) / median is at most {widest:.0%}."
