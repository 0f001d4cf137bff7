"""Many runs side by side: what each objective is worth and costs, as a table, as JSON, and as a reward-KL plot."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import matplotlib.figure
from adjustText import adjust_text
from matplotlib.ticker import LogLocator, NullLocator

from prefjax.analysis.curves import curve, read_metrics
from prefjax.analysis.plots import GRAY, INK, restrain
from prefjax.analysis.report import json_safe, number, table, with_error, with_interval
from prefjax.analysis.statistics import Mean, Share

_HEADER = ("objective", "gold reward", "win rate", "KL, nats", "accuracy", "loss, first → last", "improves it")
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8860B", INK, GRAY, "#6A3D9A")
_MARKERS = "osD^<P*Xh"  # the colour is not alone in telling families apart
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
    return f"{said}, {failed} {'has' if failed == 1 else 'have'} no result" if failed else said


def frontier_figure(outcomes: Sequence[Outcome]) -> matplotlib.figure.Figure:
    """Gold reward against the distance from the starting model, with standard errors; one colour for each family.

    Distances are on a logarithmic scale. What is worse than the starting model by more than half of what the best
    one gains stands at the lower edge, its reward beside the name: otherwise a failed run would press others together.

    Raises:
      ValueError: an outcome lacks its gold reward or KL.
    """
    if any(outcome.kl is None or outcome.gold_trained is None for outcome in outcomes):
        raise ValueError("every outcome needs a KL and a gold reward to be drawn: leave out the others")
    figure = matplotlib.figure.Figure(figsize=(10, 8), dpi=140, layout="constrained")
    axis = figure.subplots()
    start = sum(outcome.gold_start.value for outcome in outcomes) / len(outcomes)
    best = max(start, *(outcome.gold_trained.value for outcome in outcomes))
    lowest = min(start, *(outcome.gold_trained.value for outcome in outcomes))
    edge = max(lowest, start - (best - start) / 2)
    axis.axhline(start, color=GRAY, lw=1, ls=(0, (4, 3)), zorder=0, label="the starting model")
    axis.set(xscale="log", xlabel="KL from the starting model, nats (log scale)", ylabel="gold reward of samples")
    for place, family in enumerate(dict.fromkeys(outcome.family for outcome in outcomes)):
        members = [outcome for outcome in outcomes if outcome.family == family]
        marker, color = _MARKERS[place % len(_MARKERS)], _COLORS[place % len(_COLORS)]
        for m in members:
            low = m.gold_trained.value < edge
            spread = (m.kl.standard_error or 0), 0 if low else (m.gold_trained.standard_error or 0)
            point = _distance(m), max(edge, m.gold_trained.value)
            axis.errorbar(*point, *spread[::-1], fmt="none", color=color, elinewidth=0.6, alpha=0.35)
            axis.plot(*point, "v" if low else marker, color=color, ms=5, mec="white", mew=0.6)
        axis.plot([], [], marker, color=color, ms=5, mec="white", mew=0.6, label=family.replace("_", " "))
    axis.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.set_title("Gold reward against distance", loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=9)
    restrain(axis)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    points = [(_distance(o), max(edge, o.gold_trained.value)) for o in outcomes]
    said = [f"{o.objective} ({number(g)})" if (g := o.gold_trained.value) < edge else o.objective for o in outcomes]
    names = [axis.text(*at, name, fontsize=_LABEL, color=INK) for at, name in zip(points, said, strict=True)]
    figure.draw_without_rendering()  # names are placed on the final scale of the axes
    adjust_text(
        names, *zip(*points, strict=True), ax=axis, arrowprops=dict(arrowstyle="-", color=GRAY, lw=0.4), max_move=None
    )
    return figure


def _distance(outcome: Outcome) -> float:
    """The estimate of a KL can be 0 or below; a logarithmic axis has no place for that."""
    return max(outcome.kl.value, 1e-2)
