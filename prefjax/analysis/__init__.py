"""From what training wrote to numbers with their uncertainty, a plot and a report. No jax, nothing recomputed."""

from prefjax.analysis.comparison import Outcome, read_outcome, write_comparison
from prefjax.analysis.curves import curve, read_metrics
from prefjax.analysis.report import write_report
from prefjax.analysis.results import Gold, RunResults, Samples, Summary, summarize
from prefjax.analysis.statistics import Mean, Share, kl_estimate, mean, share, win_rate

__all__ = [
    "Gold",
    "Mean",
    "Outcome",
    "RunResults",
    "Samples",
    "Share",
    "Summary",
    "curve",
    "kl_estimate",
    "mean",
    "read_metrics",
    "read_outcome",
    "share",
    "summarize",
    "win_rate",
    "write_comparison",
    "write_report",
]
