"""Many runs side by side: what each objective is worth and costs, as a table, as JSON, and as a reward-KL plot."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Sequence

import matplotlib.figure
from matplotlib.axes import Axes

from prefjax.analysis.curves import curve, read_metrics
from prefjax.analysis.plots import GRAY, INK, restrain
from prefjax.analysis.report import json_safe, number, table, with_error, with_interval
from prefjax.analysis.statistics import Mean, Share

_HEADER = ("objective", "gold reward", "win rate", "KL, nats", "accuracy", "loss, first → last", "improves it")
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8860B", INK, GRAY)  # the shape tells them too
_MARKERS = "osD^vP*X"
_LABEL = 6.5  # font size, points


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
    text = json.dumps(json_safe(facts), indent=1, ensure_ascii=False, allow_nan=False)
    (directory / "comparison.json").write_text(text + "\n", encoding="utf-8")
    parts = [f"# {_headline(outcomes)}", f"Repeat with\n\n```\n{command}\n```", comparison_table(outcomes)]
    parts += [
        "Gold reward: of samples of the starting model → of the trained one ± standard error. Win rate: gold reward "
        "against the starting model's sample, same prompt, ties half; 95 % Wilson interval. KL: of the trained model "
        "from the starting one, whole responses ± standard error. Accuracy: of held-out pairs. Losses: means of the "
        "steps up to the first and up to the last logged one; those of two objectives cannot be compared."
    ]
    drawn = [outcome for outcome in outcomes if outcome.kl is not None and outcome.gold_trained is not None]
    if drawn:
        frontier_figure(drawn).savefig(directory / "frontier.png")
        parts.append("![gold reward against KL](frontier.png)")
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
    return f"{said}, {failed} have no result" if failed else said


def frontier_figure(outcomes: Sequence[Outcome]) -> matplotlib.figure.Figure:
    """Gold reward against the distance from the starting model, with standard errors; one colour for each family.

    Raises:
      ValueError: an outcome lacks its gold reward or KL.
    """
    if any(outcome.kl is None or outcome.gold_trained is None for outcome in outcomes):
        raise ValueError("every outcome needs a KL and a gold reward to be drawn: leave out the others")
    figure = matplotlib.figure.Figure(figsize=(9, 6), dpi=140, layout="constrained")
    axis = figure.subplots()
    start = sum(outcome.gold_start.value for outcome in outcomes) / len(outcomes)
    axis.axhline(start, color=GRAY, lw=1, ls=(0, (4, 3)), zorder=0, label="the starting model")
    for place, family in enumerate(dict.fromkeys(outcome.family for outcome in outcomes)):
        members = [outcome for outcome in outcomes if outcome.family == family]
        points = [[m.kl.value for m in members], [m.gold_trained.value for m in members]]
        marker, color = _MARKERS[place % len(_MARKERS)], _COLORS[place % len(_COLORS)]
        errors = dict(
            xerr=[m.kl.standard_error or 0 for m in members], yerr=[m.gold_trained.standard_error or 0 for m in members]
        )
        axis.errorbar(*points, **errors, fmt="none", color=color, elinewidth=0.6, alpha=0.35)
        axis.plot(*points, marker, color=color, ms=5, mec="white", mew=0.6, label=family.replace("_", " "))
    axis.set(xlabel="KL from the starting model, nats", ylabel="gold reward of samples")
    axis.legend(frameon=False, fontsize=8, labelcolor=INK, loc="lower right")
    axis.set_title("Gold reward against distance", loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=9)
    restrain(axis)
    figure.draw_without_rendering()  # the labels need the final scale of the axes
    _name_points(axis, outcomes)
    return figure


def _name_points(axis: Axes, outcomes: Sequence[Outcome]) -> None:
    """Names beside the points: right or left of them, and so far up or down that no name stands on another."""
    points = axis.figure.dpi / 72  # pixels in one
    height = 1.2 * _LABEL
    places = axis.transData.transform([(o.kl.value, o.gold_trained.value) for o in outcomes]) / points
    taken = [(x - 2, x + 2, y - 0.5 * height) for x, y in places]  # left, right, bottom; in points
    for outcome, (x, y) in sorted(zip(outcomes, places, strict=True), key=lambda pair: pair[1][0]):
        width = 0.6 * _LABEL * len(outcome.objective)
        for rise, left in itertools.product((0, 1, -1, 2, -2, 3, -3, 4, -4), (x + 4, x - 4 - width)):
            bottom = y + (rise - 0.5) * height
            if all(left > end or left + width < start or abs(bottom - at) > height for start, end, at in taken):
                break
        taken.append((left, left + width, bottom))
        text = dict(textcoords="offset points", va="center_baseline", fontsize=_LABEL, color=INK)
        value = outcome.kl.value, outcome.gold_trained.value
        axis.annotate(outcome.objective, value, (left - x, bottom + height / 2 - y), **text)
