"""Accuracy by subset as benchmarks print it: RewardBench's sections, EvalBiasBench's kinds of bias, or your own."""

import numpy as np
from jaxtyping import Float

from prefjax.analysis.report import table, with_error, with_interval
from prefjax.analysis.statistics import share
from prefjax.analysis.subsets import REWARDBENCH, mean_share, section_means, subset_shares
from prefjax.analysis.tools.findings import Finding, dot_plot
from prefjax.analysis.tools.table import Table


def judged_rightly(scores: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N"]:
    """1 where the chosen response has the higher score, 1/2 for a tie, else 0; scores of chosen, rejected."""
    return (scores[:, 0] > scores[:, 1]) + 0.5 * (scores[:, 0] == scores[:, 1])


def subset_accuracy(
    rows: Table, *, subset: str = "subset", score: str = "score", correct: str | None = None, sections: str = "none"
) -> Finding:
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
    return Finding(headline, parts, values, figure)
