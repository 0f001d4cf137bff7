"""AlpacaEval 2: the leaderboard's win rates from its published annotations (github.com/tatsu-lab/alpaca_eval).

COMMAND  python -m experiments.run alpacaeval.win_rate
TIME     20 s on two CPU cores
RESULT   Win rate, standard error and discrete win rate of every model whose annotations are there are those of the
         published leaderboard, to rounding; of two responses whose scores differ clearly, the longer wins four times
         in five.

NEEDS    A checkout of that repository as the folder alpaca_eval, or --config.data=FOLDER. Its data are CC-BY-NC 4.0 and
         not shipped here. Models whose annotations lack (large files) are left out, and counted.
PROTOCOL Annotations of `weighted_alpaca_eval_gpt4_turbo`: 805 prompts a model, each a preference in [1, 2] against
         GPT-4 turbo. Win rate: the mean of preference - 1. Discrete: the share above 1.5, a tie counting half. Mean
         length: of models with all 805 annotations, as the leaderboard's is over all outputs, annotated or not. Length
         bias: pairs of models on one prompt whose preferences differ by more than `clear`.
COLUMNS  published: the leaderboard's file; 1/2 for the length bias. ours: from the annotations.

TRY      --config.clear=0.9            only pairs that are near certain
         --config.clear=0.0            all pairs that differ at all
         --config.data=/path/to/clone  another checkout of the repository
"""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import figures
from experiments.tables.harness import EXACT, SIGN, Claim, NotRun, Results, Row, Setting, Table, by_column
from prefjax.analysis.statistics import win_rate

LEADERBOARD = "src/alpaca_eval/leaderboards/data_AlpacaEval_2/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv"
ANNOTATIONS = "results/*/weighted_alpaca_eval_gpt4_turbo/annotations.json"
COMPARED = {"win_rate": 1e-6, "standard_error": 1e-6, "discrete_win_rate": 1e-6, "avg_length": 1.0}  # and its bound
BIAS = "share won by the longer"
PROMPTS = 805

TABLE = Table("The leaderboard of AlpacaEval 2", ("published", "ours"), 0.4, EXACT, float64=True)
SETTINGS = (
    *(Setting({"what": name, "over": "all models"}, "largest gap", name) for name in COMPARED),
    Setting({"what": "length bias", "over": "all clear pairs"}, BIAS),
)
PROTOCOL = {"data": "alpaca_eval", "clear": 0.3}
SIZES: dict[str, dict] = {"smoke": {}, "long": {}, "paper": {}}


def cells(config: ml_collections.ConfigDict) -> list[str]:
    """One, named by the files that are there.

    Raises:
        NotRun: config.data is no checkout of the repository.
    """
    files = sorted(Path(config.data).glob(ANNOTATIONS))
    if not files or not Path(config.data, LEADERBOARD).exists():
        raise NotRun(
            f"config.data={config.data} holds no annotations of AlpacaEval: clone github.com/tatsu-lab/alpaca_eval "
            "(data CC-BY-NC 4.0) and give its folder as --config.data=FOLDER"
        )
    listing = "".join(f"{path.parent.parent.name} {path.stat().st_size}\n" for path in files)
    return [hashlib.sha256(listing.encode()).hexdigest()[:12]]


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    with open(Path(config.data, LEADERBOARD), encoding="utf-8", newline="") as file:
        published = {row[""]: row for row in csv.DictReader(file)}
    preferences, lengths, gaps = {}, {}, {name: [] for name in COMPARED}
    for path in sorted(Path(config.data).glob(ANNOTATIONS)):
        model = path.parent.parent.name
        if model not in published:
            continue
        rows = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in rows if row["preference"] is not None]
        preference = np.array([row["preference"] for row in rows], np.float64)
        preferences[model] = {row["instruction"]: row["preference"] for row in rows}
        lengths[model] = {row["instruction"]: len(row["output_2"]) for row in rows}
        for name, value in _measures(preference, np.array(list(lengths[model].values()))).items():
            if name != "avg_length" or len(rows) == int(published[model]["n_total"]) == PROMPTS:
                gaps[name].append(abs(value - float(published[model][name])))
    for name, values in gaps.items():
        ours = max(values, default=np.nan)
        yield from by_column(f"{name} all models", "largest gap", {"published": 0.0, "ours": ours})
    share, pairs = _longer_wins(preferences, lengths, config.clear)
    for metric, known, ours in ((BIAS, 0.5, share), ("pairs", 0.0, pairs), ("models", 0.0, len(preferences))):
        yield from by_column("length bias all clear pairs", metric, {"published": known, "ours": ours})


def _measures(preference: np.ndarray, length: np.ndarray) -> dict[str, float]:
    """The leaderboard's columns, in per cent and characters."""
    return {
        "win_rate": 100 * float(np.mean(preference - 1)),
        "standard_error": 100 * float(np.std(preference, ddof=1) / np.sqrt(len(preference))),
        "discrete_win_rate": 100 * win_rate(preference, np.full_like(preference, 1.5)).value,
        "avg_length": float(length.mean()),
    }


def _longer_wins(preferences: dict, lengths: dict, clear: float) -> tuple[float, int]:
    """Over pairs of models on one prompt with preferences farther apart than `clear`: how often the longer response is
    the better one, equal lengths counting half; and how many pairs."""
    won, pairs = 0.0, 0
    for instruction in sorted(set().union(*preferences.values())):
        there = [model for model in preferences if instruction in preferences[model]]
        p = np.array([preferences[model][instruction] for model in there])
        n = np.array([lengths[model][instruction] for model in there])
        better = (p[:, None] - p[None, :]) > clear
        longer = (n[:, None] > n[None, :]) + 0.5 * (n[:, None] == n[None, :])
        won, pairs = won + float((better * longer).sum()), pairs + int(better.sum())
    return (won / pairs if pairs else float("nan")), pairs


def _gap(results: Results, setting: Setting) -> float:
    return results.mean(setting.key, "ours", "largest gap") / COMPARED[setting.labels["what"]]


CLAIMS = (
    Claim(
        "leaderboard",
        "win rate, standard error and discrete win rate of every model are the leaderboard's within 1e-6 points, mean "
        "lengths of models with all annotations within a character (largest gap over that)",
        lambda s: s.metric == "largest gap",
        _gap,
        1.0,
        paper=True,
    ),
    Claim(
        "length_bias",
        "the longer of two responses is the better one more often than not (1/2 minus its share)",
        lambda s: s.metric == BIAS,
        lambda results, s: 0.5 - results.mean(s.key, "ours", BIAS),
        verdict=SIGN,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Largest gaps to the published leaderboard, all at 0 but for the rounding of lengths; and the share of clear pairs
    that the longer response wins, far above one half."""
    return figures.dots(results, SETTINGS, known="published", ours="ours")
