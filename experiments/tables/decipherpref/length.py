"""What a judge's preferences depend on: Bradley-Terry regression on AlpacaEval's pool, in DecipherPref's manner
(arXiv 2305.14702).

COMMAND  python -m experiments.run decipherpref.length
TIME     30 s on two CPU cores
RESULT   With lists, code and refusals held fixed a longer response is preferred: what is too brief is least favoured.

NEEDS    A checkout of github.com/tatsu-lab/alpaca_eval as the folder alpaca_eval, or --config.data=FOLDER. Its data are
         CC-BY-NC 4.0 and not shipped here.
PROTOCOL Annotations of `weighted_alpaca_eval_gpt4_turbo`: preferences in [1, 2] of every model's response to 805
         prompts. A pair is two models on one prompt whose preferences differ by more than `clear`, the higher one
         chosen; 200 pairs of models drawn for every prompt. `prefjax.contrib.factors.bradley_terry_regression` on the
         differences of log characters, list items, code blocks, and whether the response begins as a refusal does;
         bootstrap over prompts, 20 draws.
COLUMNS  indifferent: 0. log-odds: per standard deviation of the feature's difference, mean over draws.

TRY      --config.clear=0.9            only pairs that are near certain
         --config.clear=0.0            all pairs that differ at all
         --config.data=/path/to/clone  another checkout of the repository
"""

import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import figures
from experiments.tables.alpacaeval import win_rate
from experiments.tables.harness import ORDER, Claim, Results, Row, Setting, Table
from prefjax.contrib.factors import bradley_terry_regression, count_features

METRIC = "per s.d."
COUNTED = ("list items", "code blocks")
FEATURES = ("log characters", *COUNTED, "refusal")
REFUSALS = ("i'm sorry", "i am sorry", "sorry", "i apologize", "i cannot", "i can't", "as an ai")
CLAIMED = {"log characters": 1, "refusal": -1}  # the sign
TABLE = Table("The abstract's least favoured factor", ("indifferent", "log-odds"), 0.5, ORDER, float64=True)
SETTINGS = tuple(Setting({"feature": name}, METRIC) for name in CLAIMED)
PROTOCOL = {"data": "alpaca_eval", "clear": 0.3, "pairs": 200, "draws": 20}
SIZES = {"smoke": {"draws": 5, "pairs": 50}, "long": {"draws": 200}, "paper": {}}
cells = win_rate.cells  # one, named by the files that are there; NotRun without them


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    """The log-odds of every feature, for every draw of prompts."""
    by_prompt: dict[str, list[tuple[float, np.ndarray]]] = {}
    for path in sorted(Path(config.data).glob(win_rate.ANNOTATIONS)):
        rows = [row for row in json.loads(path.read_text(encoding="utf-8")) if row["preference"] is not None]
        for row, features in zip(rows, _features([row["output_2"] for row in rows]), strict=True):
            by_prompt.setdefault(row["instruction"], []).append((row["preference"], features))
    rng = np.random.default_rng(0)
    differences = [_differences(config, responses, rng) for _, responses in sorted(by_prompt.items())]
    deviation = np.sqrt((np.concatenate(differences) ** 2).mean(0))
    for name in CLAIMED:
        yield Row(name, "indifferent", METRIC, None, None, 0.0)
    for draw in range(config.draws):
        drawn = rng.integers(len(differences), size=len(differences))
        fit = bradley_terry_regression(np.concatenate([differences[i] for i in drawn]) / deviation)
        for name, value in zip(FEATURES, fit.coefficients.tolist(), strict=True):
            yield Row(name, "log-odds", METRIC, draw, None, value)


def _features(texts: list[str]) -> np.ndarray:
    counted = count_features(texts, COUNTED)
    length = np.log([max(1, len(text)) for text in texts])
    refusal = [float(text.strip().lower().startswith(REFUSALS)) for text in texts]
    return np.column_stack([length, counted, refusal])


def _differences(config: ml_collections.ConfigDict, responses, rng: np.random.Generator) -> np.ndarray:
    """[pairs, F]: features of the preferred response less those of the other, of clear pairs to one prompt."""
    preference, features = (np.array(values) for values in zip(*responses, strict=True))
    first, second = rng.integers(len(preference), size=(2, config.pairs))
    gap = preference[first] - preference[second]
    clear = np.abs(gap) > config.clear
    return (np.sign(gap)[:, None] * (features[first] - features[second]))[clear]


CLAIMS = (
    Claim(
        "sign",
        "longer responses are preferred and refusals are not, everything else equal (minus the end of the 95 % "
        "interval that is nearer to 0, in the expected direction)",
        lambda s: True,
        lambda results, s: _nearer_end(results, s),
        verdict=ORDER,
    ),
)


def _nearer_end(results: Results, s: Setting) -> float:
    sign = CLAIMED[s.labels["feature"]]
    return -float(np.quantile(sign * results.final(s.key, "log-odds", METRIC), 0.025))


def plot(results: Results) -> matplotlib.figure.Figure:
    """Log-odds of being preferred per standard deviation: of length above 0, of refusals below."""
    return figures.dots(results, SETTINGS, known="indifferent", ours="log-odds")
