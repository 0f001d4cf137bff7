"""Accuracy by subset as benchmarks print it: RewardBench's sections, EvalBiasBench's kinds of bias, or your own."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from prefjax.analysis.report import table, with_error, with_interval
from prefjax.analysis.statistics import Mean, Share, share
from prefjax.contrib.output import ToolOutput, dot_plot
from prefjax.contrib.table import Table
from prefjax.contrib.tools import tool

# RewardBench's sections, their subsets and the prompts each counts as (its rewardbench/constants.py). The 447 prompts
# of math-prm count as 984, so that mathematics and code weigh the same in Reasoning.
REWARDBENCH: Mapping[str, Mapping[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}


def judged_rightly(scores: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N"]:
    """1 where the chosen response has the higher score, 1/2 for a tie, else 0; scores of chosen, rejected."""
    return (scores[:, 0] > scores[:, 1]) + 0.5 * (scores[:, 0] == scores[:, 1])


def subset_shares(correct: Float[np.ndarray, "N"], subsets: Sequence[str]) -> dict[str, Share]:
    """The share of right judgements in every subset, with its 95 % Wilson interval, in order of first appearance.

    Args:
      correct: in [0, 1]; a tie is 1/2.
      subsets: N names.

    Raises:
      ValueError: another number of names than judgements, or a judgement outside [0, 1].
    """
    if len(subsets) != len(correct):
        raise ValueError(f"{len(correct)} judgements need as many subsets, got {len(subsets)}")
    outside = np.flatnonzero((correct < 0) | (correct > 1))
    if len(outside):
        raise ValueError(f"judgement {outside[0] + 1} must lie in [0, 1], got {correct[outside[0]]:g}")
    names = np.array(subsets)
    return {
        name: share(float(correct[names == name].mean()), int((names == name).sum())) for name in dict.fromkeys(subsets)
    }


def mean_share(shares: Mapping[str, Share], weights: Mapping[str, int | float] | None = None) -> Mean:
    """sum_s w_s p_s / sum_s w_s over subsets s, and its standard error sqrt(sum_s (w_s / W)^2 p_s (1 - p_s) / n_s).

    Args:
      weights: by subset; None weighs all alike. With the subsets' counts it is the mean over all judgements; with
        `REWARDBENCH[section]` it is that benchmark's section score (arXiv 2403.13787, and its code).

    Raises:
      ValueError: no subset, a subset without a weight, or weights that are not all above 0.
    """
    if not shares:
        raise ValueError("a mean needs at least one subset")
    weights = dict.fromkeys(shares, 1.0) if weights is None else weights
    for name in shares:
        if not weights.get(name, 0) > 0:
            raise ValueError(f"subset {name!r} needs a weight above 0, got {weights.get(name)}")
    total = math.fsum(weights[name] for name in shares)
    parts = [(weights[name] / total, part) for name, part in shares.items()]
    value = math.fsum(weight * part.value for weight, part in parts)
    variance = math.fsum(weight**2 * part.value * (1 - part.value) / part.count for weight, part in parts)
    return Mean(value, math.sqrt(variance), sum(part.count for part in shares.values()))


def section_means(
    shares: Mapping[str, Share], sections: Mapping[str, Mapping[str, int | float]]
) -> tuple[dict[str, Mean], list[str]]:
    """The weighted mean of every section that has subsets here, and the subsets that belong to no section.

    Sections are cut to the subsets that are there, as RewardBench's `calculate_scores_per_section` does.
    """
    means = {}
    for section, weights in sections.items():
        own = {name: part for name, part in shares.items() if name in weights}
        if own:
            means[section] = mean_share(own, weights)
    known = {name for weights in sections.values() for name in weights}
    return means, [name for name in shares if name not in known]


@tool()
def subset_accuracy(
    rows: Table, *, subset: str = "subset", score: str = "score", correct: str | None = None, sections: str = "none"
) -> ToolOutput:
    """How often preferences are judged rightly, by subset.

    Source: arXiv 2403.13787 and its code (RewardBench's sections and weights); arXiv 2407.06551 (EvalBiasBench's
    accuracy by kind of bias).
    Takes: the column `subset` with a name for each row, and the response column `score` (chosen, rejected), or the
    column `correct` with a judgement in [0, 1]. `sections` is "rewardbench" or "none".
    Makes: accuracy of every subset with Wilson intervals; the mean over rows and the mean over subsets; with sections
    their weighted means, and the mean of these.

    A tie of scores counts one half.
    """
    if sections not in ("none", "rewardbench"):
        raise ValueError(f"sections={sections!r}: choose 'none' or 'rewardbench'")
    judged = judged_rightly(rows.pairs(score)) if correct is None else rows.numbers(correct)
    shares = subset_shares(judged, rows.labels(subset))
    over_rows, over_subsets = share(float(judged.mean()), len(judged)), mean_share(shares)
    cells = [(name, with_interval(part), part.count) for name, part in shares.items()]
    cells += [("**all rows**", with_interval(over_rows), over_rows.count)]
    cells += [("**mean of subsets**", with_error(over_subsets, 3), f"{len(shares)} subsets")]
    parts = [table(("subset", "accuracy", "rows"), cells)]
    values = {"subsets": shares, "rows": over_rows, "mean_of_subsets": over_subsets}
    headline = f"{over_rows.value:.1%} of {over_rows.count} preferences judged rightly, in {len(shares)} subsets"
    if sections == "rewardbench":
        means, unknown = section_means(shares, REWARDBENCH)
        if not means:
            raise ValueError(f"none of the subsets is RewardBench's: {', '.join(shares)}; use sections='none'")
        average = sum(mean.value for mean in means.values()) / len(means)
        lines = [(name, with_error(mean, 3), mean.count) for name, mean in means.items()]
        lines += [("**mean of sections**", f"{average:.3f}", f"{len(means)} of {len(REWARDBENCH)} sections")]
        parts.append("## Sections\n\n" + table(("section", "weighted accuracy ± standard error", "rows"), lines))
        if unknown:
            parts.append(f"In no section: {', '.join(unknown)}.")
        values |= {"sections": means, "mean_of_sections": average, "in_no_section": unknown}
        headline = f"RewardBench {average:.1%}, the mean of {len(means)} sections"
    figure = dot_plot(
        "Accuracy by subset",
        "share judged rightly, 95 % Wilson interval (dashed: all rows)",
        list(shares),
        *([getattr(part, name) for part in shares.values()] for name in ("value", "low", "high")),
        at=over_rows.value,
    )
    return ToolOutput(headline, parts, values, figure)
