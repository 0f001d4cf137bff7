"""Ranking accuracy of a language model, and length (arXiv 2405.19534, Figure 1 and Table 1).

COMMAND  python -m experiments.run ranking.accuracy:long
TIME     4.5 min on two CPU cores beside other work
RESULT   The chosen response is the likelier on 54 % of pairs, per token on 48 %: below 60 %, and neither is told apart
         from chance. On 87 % of pairs the likelier one is the shorter one; per token, on 44 %. The shorter one is the
         chosen one on 53 %.

NEEDS    A Hugging Face folder SmolLM2-135M-Instruct, or --config.model=FOLDER; and the pairs of HH harmless-base's
         test split as hh_harmless_base_test.jsonl.gz, or --config.data=FILE. Neither is shipped. The weights of the
         reference run had been rounded to 4 bits (GGUF's Q4_1).
PROTOCOL 256 pairs, drawn at random of those whose prompt and longer response have at most 256 tokens together under the
         model's chat template; log-probs by what scores in training and evaluation, float32, the end of turn included.
         raw: of whole responses. per token: divided by their lengths. accuracy: the chosen response has at least the
         log-prob of the rejected. agreement: the one preferred is the shorter one, equal lengths counting half.
COLUMNS  shorter wins: the rule that prefers the shorter response, on the same pairs; its accuracy is the share of pairs
         whose chosen one is shorter. ours: the model. Intervals are over pairs.

TRY      --config.pairs=1000         as many as the paper's code takes
         --config.max_length=512     longer dialogues too
         --config.model=FOLDER       another model, or a trained run
"""

import hashlib
import math
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.figure
import ml_collections
import numpy as np

from experiments.tables import figures
from experiments.tables.harness import (
    LONG,
    SECONDS,
    SIGN,
    Claim,
    NotRun,
    Results,
    Row,
    Setting,
    Table,
    UsageError,
    bootstrap_interval,
)
from prefjax.analysis.statistics import Z95
from prefjax.contrib.ranking import ranked_rightly
from prefjax.data.encoding import EncodingPolicy, encode_all
from prefjax.data.formats import RecordFormat
from prefjax.data.sources import OpenSource
from prefjax.policies.open import open_policy
from prefjax.policies.rollouts import score_trees
from prefjax.rows.store import MemoryTrees

TOKENS_PER_STEP = 2048  # on two cores a larger step is no faster, and has more padding
ACCURACY, AGREEMENT = "accuracy", "agreement with shorter wins"
TABLE = Table("Figure 1 and Table 1, by a model of 135 M", ("shorter wins", "ours"), 4.5, SIGN, size=LONG, over="pairs")
SETTINGS = tuple(
    Setting({"log-prob": log_prob, "of": metric}, metric, "headline" if metric == ACCURACY else None)
    for metric in (ACCURACY, AGREEMENT)
    for log_prob in ("raw", "per token")
)
PROTOCOL = {
    "model": "SmolLM2-135M-Instruct",
    "data": "hh_harmless_base_test.jsonl.gz",
    "pairs": 256,
    "max_length": 256,
    "seed": 0,
}
SIZES = {"smoke": {"pairs": 8}, "long": {}, "paper": {"pairs": 1000, "max_length": 512}}


def cells(config: ml_collections.ConfigDict) -> list[str]:
    """One, named by what is in the model's folder and the file.

    Raises:
        NotRun: one of them is not here.
    """
    model, data = Path(config.model), Path(config.data)
    if not (model / "config.json").is_file():
        raise NotRun(
            f"config.model={model} is no model's folder: give SmolLM2-135M-Instruct, or another Hugging Face folder or "
            "trained run, as --config.model=FOLDER"
        )
    if not data.is_file():
        raise NotRun(
            f"config.data={data} is no file: give the pairs of HH harmless-base's test split, or others, as "
            "--config.data=FILE"
        )
    total = hashlib.sha256()
    for path in (data, *sorted(path for path in model.rglob("*") if path.is_file())):
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return [total.hexdigest()[:12]]


def run(config: ml_collections.ConfigDict, cell: str) -> Iterator[Row]:
    start = time.monotonic()
    policy = open_policy(config.model, dtype="float32")
    records, _ = OpenSource(config.data).read(RecordFormat(), progress=False)
    pairs = [record for record in records if record.kind == "pair"]
    trees, _ = encode_all(pairs, policy.tokenizer, EncodingPolicy(max_length=config.max_length), progress=False)
    if len(trees) < config.pairs:
        raise UsageError(
            f"config.pairs={config.pairs}: {config.data} has {len(trees)} pairs of at most {config.max_length} tokens; "
            "lower it, or raise --config.max_length"
        )
    drawn = np.random.default_rng(config.seed).choice(len(trees), config.pairs, replace=False)
    chosen = MemoryTrees(trees[i] for i in drawn)
    model, mesh, params = policy.model, policy.mesh, [policy.params]
    (logp,) = score_trees(model, mesh, params, chosen, tokens_per_step=TOKENS_PER_STEP, progress="scoring")
    for log_prob, measures in measured(logp.astype(np.float64), chosen.lengths.responses).items():
        for (metric, col), values in measures.items():
            for number, value in enumerate(values):
                yield Row(f"{log_prob} {metric}", col, metric, number, None, float(value))
    yield Row("pairs", "that fit", "count", None, None, float(len(trees)))
    yield Row("pairs", "wall", SECONDS, None, None, time.monotonic() - start)


def measured(logp: np.ndarray, length: np.ndarray) -> dict[str, dict[tuple[str, str], np.ndarray]]:
    """Of log-probs and lengths [pairs, 2], chosen first: by log-prob, then (metric, column), a number for each pair."""
    shorter = (length[:, 0] < length[:, 1]) + 0.5 * (length[:, 0] == length[:, 1])

    def of(logp):
        right = ranked_rightly(logp)
        return {
            (ACCURACY, "ours"): right,
            (ACCURACY, "shorter wins"): shorter,
            (AGREEMENT, "ours"): np.where(right, shorter, 1 - shorter),
            (AGREEMENT, "shorter wins"): np.ones(len(shorter)),
        }

    return {"raw": of(logp), "per token": of(logp / length)}


def _less_error(results: Results, s: Setting) -> float:
    """The share less 1.96 binomial standard errors."""
    right = results.final(s.key, "ours", ACCURACY)
    return right.mean() - Z95 * math.sqrt(right.mean() * (1 - right.mean()) / len(right))


def _more_than_raw(results: Results, s: Setting) -> float:
    """The upper end of the interval, over pairs, of how much more it agrees than the ranking by whole responses."""
    gap = results.final(s.key, "ours", AGREEMENT) - results.final(f"raw {AGREEMENT}", "ours", AGREEMENT)
    return bootstrap_interval(gap)[1]


CLAIMS = (
    Claim(
        "below_60",
        "the accuracy is below 60 %, or not above it by more than 1.96 standard errors (accuracy less these)",
        lambda s: s.metric == ACCURACY,
        _less_error,
        0.6,
        SIGN,
    ),
    Claim(
        "length",
        "whole responses are ranked as 'the shorter wins' ranks them, on more than 80 % of pairs (0.8 less the share)",
        lambda s: s.key == f"raw {AGREEMENT}",
        lambda results, s: 0.8 - results.mean(s.key, "ours", AGREEMENT),
        verdict=SIGN,
    ),
    Claim(
        "length_divided",
        "per token they are ranked less like that (upper end of the 95 % interval of the difference)",
        lambda s: s.key == f"per token {AGREEMENT}",
        _more_than_raw,
        verdict=SIGN,
    ),
)


def plot(results: Results) -> matplotlib.figure.Figure:
    """Ranking accuracy by whole responses and per token beside that of the rule that the shorter response wins; and how
    often the model's ranking is that rule's."""
    figure = figures.dots(results, SETTINGS, known="shorter wins", ours="ours")
    for axis in figure.axes:
        axis.margins(y=0.5)
    return figure
