"""From what training wrote to numbers with their uncertainty, a plot and a report. No jax, nothing recomputed."""

from prefjax.analysis.comparison import Outcome, read_outcome, write_comparison
from prefjax.analysis.curves import curve, read_metrics
from prefjax.analysis.decomposition import Decomposition, decompose
from prefjax.analysis.notes import CHECKS, take_notes
from prefjax.analysis.overview import write_overview
from prefjax.analysis.report import write_report
from prefjax.analysis.results import Gold, Rewards, RunResults, Samples, Summary, summarize
from prefjax.analysis.runs import Run, find_runs, group_by_seed, read_run
from prefjax.analysis.statistics import Mean, Share, kl_estimate, mean, share, win_rate

__all__ = [
    "CHECKS",
    "Decomposition",
    "Gold",
    "Mean",
    "Outcome",
    "Rewards",
    "Run",
    "RunResults",
    "Samples",
    "Share",
    "Summary",
    "curve",
    "find_runs",
    "group_by_seed",
    "decompose",
    "kl_estimate",
    "mean",
    "read_metrics",
    "read_outcome",
    "read_run",
    "share",
    "summarize",
    "take_notes",
    "win_rate",
    "write_comparison",
    "write_overview",
    "write_report",
]
