"""Many runs side by side: what each objective is worth and costs, as a table, as JSON, and as a reward-KL plot."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import matplotlib.figure
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from prefjax.analysis import style
from prefjax.analysis.curves import curve, read_metrics
from prefjax.analysis.report import number, table, with_error, with_interval, write_json
from prefjax.analysis.statistics import Mean, Share

_HEADER = ("objective", "gold reward", "win rate", "KL, nats", "accuracy", "loss, first → last", "improves it")
_LABEL = 7  # font size of a name, points


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one objective's run came to; None where it was not measured.

    family       which objectives it belongs with: a colour of the plot
    failure      why there is no result, or ""
    first_loss   training loss, mean over the steps up to the first logged one; None where only one was logged
    last_loss    the same over the steps up to the last logged one
    gold_start, gold_trained, win_rate, kl, accuracy  as in `Summary`
    """

    objective: str
    family: str
    failure: str = ""
    first_loss: float | None = None
    last_loss: float | None = None
    gold_start: Mean | None = None
    gold_trained: Mean | None = None
    win_rate: Share | None = None
    kl: Mean | None = None
    accuracy: Share | None = None

    @property
    def improves(self) -> bool | None:
        """Whether training lowered the objective it trained; None where no loss was logged."""
        return None if self.last_loss is None else self.last_loss < self.first_loss


def read_outcome(directory: str | pathlib.Path, family: str) -> Outcome:
    """The outcome of a finished run, from its result.json and metrics.jsonl.

    Raises:
      FileNotFoundError: the run has no report yet.
    """
    directory = pathlib.Path(directory)
    result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    losses = curve(read_metrics(directory / "metrics.jsonl"), "loss", "train")[1]
    kinds = dict(gold_start=Mean, gold_trained=Mean, win_rate=Share, kl=Mean, accuracy=Share)
    measured = {name: kind(**value) for name, kind in kinds.items() if (value := result.get(name)) is not None}
    ends = dict(first_loss=float(losses[0]), last_loss=float(losses[-1])) if len(losses) > 1 else {}
    return Outcome(result["objective"], family, **ends, **measured)


def write_comparison(directory: str | pathlib.Path, outcomes: Sequence[Outcome], command: str) -> pathlib.Path:
    """Writes comparison.md, comparison.json and, where gold rewards were measured, frontier.png; returns the first."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    facts = {"command": command, "outcomes": [dataclasses.asdict(o) | {"improves": o.improves} for o in outcomes]}
    write_json(directory / "comparison.json", facts)
    parts = [f"# {_headline(outcomes)}", f"Repeat with\n\n```\n{command}\n```", comparison_table(outcomes)]
    parts += [
        "Gold reward: of samples of the starting model → of the trained one ± standard error. Win rate: gold reward "
        "against the starting model's sample, same prompt, ties half; 95 % Wilson interval. KL: of the trained model "
        "from the starting one, whole responses ± standard error. Accuracy: of held-out pairs. Losses: means of the "
        "steps up to the first and up to the last logged one; those of two objectives cannot be compared."
    ]
    drawn = [outcome for outcome in outcomes if outcome.kl is not None and outcome.gold_trained is not None]
    if drawn:
        figure = frontier_figure(drawn)
        parts.append(style.save(figure, directory / "frontier.png", _frontier_words(drawn)))
    path = directory / "comparison.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def comparison_table(outcomes: Sequence[Outcome]) -> str:
    """One Markdown row for each; a failed one says why."""
    return table(_HEADER, [_cells(outcome) for outcome in outcomes])


def _cells(outcome: Outcome) -> tuple[str, ...]:
    if outcome.failure:
        return f"`{outcome.objective}`", outcome.failure.replace("|", "\\|"), *("",) * (len(_HEADER) - 2)
    gold = loss = "not measured"
    if outcome.gold_trained is not None:
        gold = f"{number(outcome.gold_start.value)} → {with_error(outcome.gold_trained)}"
    if outcome.last_loss is not None:
        loss = f"{number(outcome.first_loss, 3)} → {number(outcome.last_loss, 3)}"
    share = lambda value: "not measured" if value is None else with_interval(value)
    return (
        f"`{outcome.objective}`",
        gold,
        share(outcome.win_rate),
        "not measured" if outcome.kl is None else with_error(outcome.kl),
        share(outcome.accuracy),
        loss,
        {None: "", True: "yes", False: "**no**"}[outcome.improves],
    )


def _headline(outcomes: Sequence[Outcome]) -> str:
    improved = sum(outcome.improves is True for outcome in outcomes)
    failed = sum(bool(outcome.failure) for outcome in outcomes)
    said = f"{len(outcomes)} objectives: {improved} lower their own training loss"
    return f"{said}, {failed} {'has' if failed == 1 else 'have'} no result" if failed else said


def frontier_figure(outcomes: Sequence[Outcome]) -> matplotlib.figure.Figure:
    """Gold reward against the distance from the starting model, with standard errors; one panel for each family, in
    which the others are pale.

    Distances are on a logarithmic scale. What is worse than the starting model by more than half of what the best
    one gains is named below with its numbers instead: a failed run would press the others together.

    Raises:
      ValueError: an outcome lacks its gold reward or KL.
    """
    if any(outcome.kl is None or outcome.gold_trained is None for outcome in outcomes):
        raise ValueError("every outcome needs a KL and a gold reward to be drawn: leave out the others")
    start, shown, far = _apart(outcomes)
    families = list(dict.fromkeys(outcome.family for outcome in shown))
    columns = min(3, len(families))
    rows = -(-len(families) // columns)
    size = (6.4, 4.8) if columns == 1 else (4.4 * columns, 3.5 * rows)
    figure, axes = style.panels(*size, rows, columns, sharex=True, sharey=True)
    for axis in axes[len(families) :]:
        axis.axis("off")
    for axis in axes[max(len(families) - columns, 0) : len(families)]:  # the lowest of its column
        axis.tick_params(labelbottom=True)
    for place, (axis, family) in enumerate(zip(axes, families, strict=False)):
        axis.axhline(start, color=style.GRAY, lw=1, ls=(0, (4, 3)), zorder=0)
        axis.set(xscale="log")
        style.title(axis, family.replace("_", " "))
        pale = [outcome for outcome in shown if outcome.family != family]
        axis.plot(*_points(pale), "o", color=style.FAINT, ms=4, mec="white", mew=0.4, zorder=1)
        look = dict(color=style.COLORS[place % len(style.COLORS)], marker=style.MARKERS[place % len(style.MARKERS)])
        _draw_family(axis, [outcome for outcome in shown if outcome.family == family], look)
    figure.supxlabel("KL from the starting model, nats (log scale)", fontsize=9, color=style.INK)
    figure.supylabel("gold reward of samples (dashed: the starting model)", fontsize=9, color=style.INK)
    if far:
        figure.suptitle("Far below, and not drawn: " + "; ".join(map(_where, far)), fontsize=8.5, color=style.INK)
    figure.draw_without_rendering()  # names are placed on the final scale of the axes
    for axis, family in zip(axes, families, strict=False):
        _name(axis, [outcome for outcome in shown if outcome.family == family])
    return figure


def _apart(outcomes: Sequence[Outcome]) -> tuple[float, list[Outcome], list[Outcome]]:
    """The reward of the starting model, the outcomes to draw, and those that are too far below it."""
    start = sum(outcome.gold_start.value for outcome in outcomes) / len(outcomes)
    best = max(start, *(outcome.gold_trained.value for outcome in outcomes))
    far = [o for o in outcomes if best > start and o.gold_trained.value < start - (best - start) / 2]
    return start, [outcome for outcome in outcomes if outcome not in far], far


def _draw_family(axis: Axes, members: Sequence[Outcome], look: dict[str, str]) -> None:
    x, y = _points(members)
    across, along = ([getattr(m, of).standard_error or 0 for m in members] for of in ("kl", "gold_trained"))
    axis.errorbar(x, y, along, across, fmt="none", color=look["color"], elinewidth=0.7, alpha=0.4)
    axis.plot(x, y, ls="", ms=5.5, mec="white", mew=0.6, zorder=3, **look)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())


def _name(axis: Axes, members: Sequence[Outcome]) -> None:
    x, y = _points(members)
    look = dict(fontsize=_LABEL, color=style.INK)
    names = [axis.text(a, b, m.objective, **look) for a, b, m in zip(x, y, members, strict=True)]
    line = dict(arrowstyle="-", color=style.GRAY, lw=0.4)
    adjust_text(names, x, y, ax=axis, expand=(1.1, 1.3), arrowprops=line, max_move=None)


def _points(outcomes: Sequence[Outcome]) -> tuple[list[float], list[float]]:
    return [_distance(outcome) for outcome in outcomes], [outcome.gold_trained.value for outcome in outcomes]


def _where(outcome: Outcome) -> str:
    return f"{outcome.objective} {number(outcome.gold_trained.value)} at {number(outcome.kl.value)} nats"


def _frontier_words(outcomes: Sequence[Outcome]) -> str:
    """The plot in words, for who does not see it; every number is in the table."""
    start, shown, far = _apart(outcomes)
    best, nearest = max(shown, key=lambda o: o.gold_trained.value), min(shown, key=_distance)
    words = f"Gold reward against KL from the starting model ({number(start)}), a panel for each family: the highest "
    words += f"is {_where(best)}, the nearest {_where(nearest)}"
    return (
        words + (f"; far below: {', '.join(map(_where, far))}" if far else "") + "; the numbers are in the table above"
    )


def _distance(outcome: Outcome) -> float:
    """The estimate of a KL can be 0 or below; a logarithmic axis has no place for that."""
    return max(outcome.kl.value, 1e-2)
