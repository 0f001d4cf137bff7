"""The one figure of a run: what the samples are worth, how far the policy moved, and how training went."""

import functools
import itertools
from collections.abc import Callable, Iterator

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from prefjax.analysis.curves import Rows, curve, last
from prefjax.analysis.results import Rewards, RunResults, Samples, Summary
from prefjax.analysis.statistics import FEW
from prefjax.analysis.style import BLUE, FAINT, GRAY, LEGEND, RED, panels, restrain, title

_DASHED = dict(lw=1.4, ls=(0, (4, 2)))
_STYLES = {"train": dict(lw=1.6, alpha=0.9), "eval": dict(lw=0, marker="o", ms=5, mec="white", mew=0.8, zorder=3)}


def run_figure(results: RunResults, summary: Summary) -> matplotlib.figure.Figure:
    """Up to six panels, three in a row; what the run did not measure has no panel. Titles say what is seen.

    Raises:
      ValueError: neither samples nor metrics.
    """
    shown = list(_panels(results, summary))
    if not shown:
        raise ValueError("nothing to draw: results.samples is None and results.metrics has no known metric")
    columns = _columns(len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = panels(4.2 * columns, 2.9 * rows + 0.1, rows, columns)
    figure.get_layout_engine().set(wspace=0.06, hspace=0.09)
    for axis, panel in itertools.zip_longest(axes, shown):
        if panel is None:
            axis.axis("off")
            continue
        title(axis, panel(axis))
        restrain(axis)
    return figure


def _columns(panels: int) -> int:
    """At most three, without a gap where two a row leave none."""
    return 2 if panels == 4 else min(3, panels)


def _panels(results: RunResults, summary: Summary) -> Iterator[Callable[[Axes], str]]:
    """Functions that draw one panel and return its title."""
    metrics, samples = results.metrics, results.samples
    if samples is not None and samples.gold is not None:
        yield functools.partial(_gold_rewards, results.start, samples, summary)
    if _logged(metrics, "loss"):
        yield functools.partial(_loss, metrics)
    if _logged(metrics, "reward_accuracy"):
        yield functools.partial(_accuracy, metrics)
    if samples is not None:
        yield functools.partial(_distance, results.start, samples, summary)
    if _logged(metrics, "margin"):
        yield functools.partial(_margin, metrics)
    if results.rewards is not None and results.rewards.gold is not None:
        yield functools.partial(_gold_against_predicted, results.rewards)
    if _logged(metrics, "chosen_logp_change") and _logged(metrics, "rejected_logp_change"):
        yield functools.partial(_log_prob_changes, metrics)


def _gold_rewards(start: str, samples: Samples, summary: Summary, axis: Axes) -> str:
    gold = samples.gold
    everything = np.concatenate([gold.reference, gold.policy])
    before, after = summary.gold_start.value, summary.gold_trained.value
    for place, (values, mean, color, label) in enumerate(
        (
            (gold.reference, before, GRAY, f"{start}, mean {before:.2f}"),
            (gold.policy, after, BLUE, f"trained, mean {after:.2f}"),
        )
    ):
        _shares(axis, values, everything, color, _minus(label), place)
        axis.axvline(mean, color=color, **_DASHED)
    if len(gold.policy) >= FEW:
        axis.set_ymargin(0.2)
    axis.legend(loc="best", **LEGEND)
    axis.set_xlabel("gold reward of a sample (dashed: mean)")
    return f"Gold reward {_movement(before, after)}"


def _distance(start: str, samples: Samples, summary: Summary, axis: Axes) -> str:
    ratios = samples.policy_logp - samples.policy_reference_logp
    _shares(axis, ratios, ratios, BLUE)
    axis.axvline(summary.kl.value, color=BLUE, **_DASHED)
    axis.axvline(0, color=FAINT, lw=1, zorder=0)
    axis.set_xlabel("log π(y|x) − log ref(y|x) of a sample, nats (dashed: KL)")
    return f"The policy is {summary.kl.value:.1f} nats from {start}"


def _loss(metrics: Rows, axis: Axes) -> str:
    first, newest = _train_and_eval(axis, metrics, "loss")
    axis.set_ylabel("loss per prompt")
    axis.legend(**LEGEND)
    return f"Loss {_movement(first, newest)}"


def _accuracy(metrics: Rows, axis: Axes) -> str:
    _train_and_eval(axis, metrics, "reward_accuracy")
    axis.axhline(0.5, color=FAINT, lw=1, ls=(0, (4, 3)), zorder=0)
    low = min(curve(metrics, "reward_accuracy", split)[1].min(initial=0.5) for split in ("train", "eval"))
    axis.set_ylim(min(0.45, low - 0.05), 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set_ylabel("reward accuracy")
    heldout = last(metrics, "reward_accuracy", "eval")
    if heldout is None:
        return f"Reward accuracy ends at {last(metrics, 'reward_accuracy', 'train'):.0%}"
    return f"Held-out reward accuracy ends at {heldout:.0%}"


def _margin(metrics: Rows, axis: Axes) -> str:
    first, newest = _train_and_eval(axis, metrics, "margin")
    axis.axhline(0, color=FAINT, lw=1, zorder=0)
    log_probs = _logged(metrics, "chosen_logp")  # a reward model has none
    axis.set_ylabel("log-ratio margin, nats" if log_probs else "reward margin")
    return f"Margin {_movement(first, newest)}{' nats' if log_probs else ''}"


def _gold_against_predicted(rewards: Rewards, axis: Axes) -> str:
    axis.plot(rewards.gold, rewards.predicted, "o", color=BLUE, ms=2.5, alpha=0.35, mew=0)
    axis.set(xlabel="gold reward of a held-out response", ylabel="reward")
    correlation = rewards.correlation
    return "Rewards against gold" + ("" if correlation is None else _minus(f": correlation {correlation:.2f}"))


def _log_prob_changes(metrics: Rows, axis: Axes) -> str:
    ends = {}
    for name, color in (("chosen", BLUE), ("rejected", RED)):
        for split, style in _STYLES.items():
            steps, values = curve(metrics, f"{name}_logp_change", split)
            axis.plot(steps, values, color=color, label=name if split == "train" else None, **style)
            if len(values):
                ends[name] = float(values[-1])
    axis.axhline(0, color=FAINT, lw=1, zorder=0)
    axis.set(xlabel="step (line: train, dots: held out)", ylabel="log π − log ref, nats")
    axis.legend(**LEGEND)
    return f"Chosen {_signed(ends['chosen'])}, rejected {_signed(ends['rejected'])} nats"


def _shares(
    axis: Axes, values: np.ndarray, everything: np.ndarray, color: str, label: str | None = None, place: int = 0
) -> None:
    """A histogram over the range of `everything`; of few samples a dot for each, as bars of one sample say nothing."""
    if len(values) < FEW:
        axis.plot(values, np.full(len(values), -place), "o", color=color, ms=6, alpha=0.6, mec="white", label=label)
        axis.set(yticks=[], ylim=(-1.8, 2.2), ylabel=f"{len(values)} samples")
        return
    edges = np.histogram_bin_edges(everything, bins=24)
    axis.hist(values, edges, weights=np.full(len(values), 1 / len(values)), color=color, alpha=0.55, label=label)
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.set_ylabel("share of samples")


def _train_and_eval(axis: Axes, metrics: Rows, name: str) -> tuple[float, float]:
    """Draws both splits; returns the first and the newest value of training, or of the held-out split without it."""
    ends = []
    for split, color, label in (("train", GRAY, "train"), ("eval", BLUE, "held out")):
        steps, values = curve(metrics, name, split)
        if not len(values):
            continue
        axis.plot(steps, values, color=color, label=label, **_STYLES[split] | {"lw": 1.6})
        ends = ends or [float(values[0]), float(values[-1])]
    axis.set_xlabel("step")
    return tuple(ends)


def _logged(metrics: Rows, name: str) -> bool:
    return any(name in row for row in metrics)


def _movement(before: float, after: float) -> str:
    """How a title says that a number changed; what rounds to the same two digits stays."""
    first, second = f"{before:.2f}", f"{after:.2f}"
    if first == second:
        return f"stays at {_minus(first)}"
    return f"{'rises' if after > before else 'falls'} from {_minus(first)} to {_minus(second)}"


def _signed(value: float) -> str:
    return _minus(f"{value:+.1f}")


def _minus(text: str) -> str:
    return text.replace("-", "−")
