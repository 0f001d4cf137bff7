"""What preferences depend on: Bradley-Terry regression on features of the two responses, with standard errors."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from prefjax.analysis.report import number, table, with_interval
from prefjax.analysis.statistics import Z95, share
from prefjax.contrib.output import ToolOutput, dot_plot
from prefjax.contrib.subsets import judged_rightly
from prefjax.contrib.table import Table
from prefjax.contrib.tools import tool

_STEPS = 100  # of Newton's method; a fit that exists takes fewer than ten

# Counted in the text of a response.
TEXT_FEATURES: Mapping[str, Callable[[str], int]] = {
    "words": lambda text: len(text.split()),
    "lines": lambda text: len([line for line in text.splitlines() if line.strip()]),
    "list items": lambda text: len(re.findall(r"^\s*(?:[-*+•]|\d+[.)])\s+\S", text, re.MULTILINE)),
    "headings": lambda text: len(re.findall(r"^#{1,6}\s+\S", text, re.MULTILINE)),
    "bold": lambda text: len(re.findall(r"\*\*[^*\n]+\*\*", text)),
    "code blocks": lambda text: len(re.findall(r"^\s*```", text, re.MULTILINE)) // 2,
    "links": lambda text: len(re.findall(r"https?://\S+", text)),
    "question marks": lambda text: text.count("?"),
    "exclamation marks": lambda text: text.count("!"),
    "digits": lambda text: sum(character.isdigit() for character in text),
}


class Regression(NamedTuple):
    """coefficients    [F] maximum-likelihood estimates, log-odds per unit of the feature's difference
    standard_errors    [F] from the observed information matrix
    log_likelihood     at the estimates, nats, summed over pairs; -N log 2 without features"""

    coefficients: Float[np.ndarray, "F"]
    standard_errors: Float[np.ndarray, "F"]
    log_likelihood: float


def bradley_terry_regression(differences: Float[np.ndarray, "N F"]) -> Regression:
    """P(chosen beats rejected) = sigmoid(w . (x_chosen - x_rejected)), w by maximum likelihood (Newton's method).

    Bradley and Terry's model with covariates: logistic regression on differences, without an intercept, as which
    response stands first says nothing. Standard errors are sqrt(diag(I^-1)), I = X' diag(p (1 - p)) X.

    Args:
      differences: features of the chosen response less those of the rejected one.

    Raises:
      ValueError: there is no single finite maximum: features depend on each other, or tell chosen from rejected without
        exception.
    """
    count, features = differences.shape
    scale = np.abs(differences).max(0) if count else np.zeros(features)
    if not features or not (scale > 0).all():
        raise ValueError(f"features {np.flatnonzero(scale == 0).tolist()} never differ between the two responses")
    x = differences / scale
    if np.linalg.matrix_rank(x) < features:
        raise ValueError("features depend on each other linearly: leave some out")
    weights, value = np.zeros(features), -count * np.log(2.0)
    # Of the information; below it some direction of the features has all but stopped to be uncertain.
    least = 1e-12 * float(np.linalg.eigvalsh(x.T @ x)[-1])
    rounding = 1e-12 * count
    for _ in range(_STEPS):
        wrong = np.exp(-np.logaddexp(0, x @ weights))  # 1 - p
        gradient, information = x.T @ wrong, (x * (wrong * (1 - wrong))[:, None]).T @ x
        if np.linalg.eigvalsh(information)[0] < least:
            break
        step = np.linalg.solve(information, gradient)
        for halving in range(60):
            tried = weights + 0.5**halving * step
            likelihood = -float(np.logaddexp(0, -(x @ tried)).sum())
            if likelihood >= value - rounding:
                weights, value = tried, likelihood
                break
        if np.abs(x @ step).max() < 1e-8:  # log-odds; no pair moves any more
            errors = np.sqrt(np.diag(np.linalg.inv(information)))
            return Regression(weights / scale, errors / scale, value)
    raise ValueError(
        "the features tell chosen from rejected without exception, so that no finite weights fit best: leave out the "
        "one that does, or give more pairs"
    )


def count_features(texts: Sequence[str], names: Sequence[str]) -> Float[np.ndarray, "N F"]:
    """`TEXT_FEATURES` of these names, counted in every text.

    Raises:
      ValueError: no such feature.
    """
    for name in names:
        if name not in TEXT_FEATURES:
            raise ValueError(f"no text feature {name!r}: choose from {', '.join(TEXT_FEATURES)}")
    return np.array([[float(TEXT_FEATURES[name](text)) for name in names] for text in texts]).reshape(-1, len(names))


@tool(records=True, response_columns=("columns",))
def preference_factors(
    rows: Table, *, text: tuple[str, ...] = ("words", "list items", "bold", "headings"), columns: tuple[str, ...] = ()
) -> ToolOutput:
    """What chosen responses have more of than rejected ones, each feature with the others held fixed.

    Source: Bradley-Terry-Luce analyses of preference factors as in arXiv 2305.14702 (DecipherPref) and arXiv
    2506.05334 (Search Arena); here the model with covariates, fitted by maximum likelihood.
    Takes: pairs. `text`: features counted in the responses: words, lines, list items, headings, bold, code blocks,
    links, question marks, exclamation marks, digits. `columns`: response columns with a number for each response, as
    citations or a judge's score.
    Makes: log-odds for one standard deviation of each feature's difference, standard errors from the information
    matrix, 95 % intervals; and how often the chosen response alone has more of it.

    Features that never differ are left out, and named.
    """
    names = [*text, *columns]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"text and columns must name at least one feature, and none twice: {names}")
    sides = [count_features([pair[side] for pair in rows.columns["responses"]], text) for side in (0, 1)]
    values = np.stack(sides, axis=1) if text else np.zeros((len(rows), 2, 0))  # [N, 2, F]
    values = np.concatenate([values, *(rows.pairs(column)[:, :, None] for column in columns)], axis=2)
    differences = values[:, 0] - values[:, 1]
    kept = np.flatnonzero(np.abs(differences).max(0) > 0)
    left_out = [name for place, name in enumerate(names) if place not in kept]
    if not len(kept):
        raise ValueError(f"none of the features differs between the responses of a pair: {', '.join(names)}")
    names, values, differences = [names[place] for place in kept], values[:, :, kept], differences[:, kept]
    # About zero, not about the mean: which response comes first says nothing.
    deviation = np.sqrt((differences**2).mean(0))
    fit = bradley_terry_regression(differences / deviation)
    low, high = (fit.coefficients + sign * Z95 * fit.standard_errors for sign in (-1, 1))
    alone = [share(float(judged_rightly(values[:, :, place]).mean()), len(rows)) for place in range(len(names))]
    cells = [
        (name, f"{number(b)} ({number(lo)} to {number(hi)})", number(b / se, 1), number(sd), with_interval(more))
        for name, b, lo, hi, se, sd, more in zip(
            names, fit.coefficients, low, high, fit.standard_errors, deviation, alone, strict=True
        )
    ]
    header = ("feature", "log-odds per s.d. (95 %)", "z", "s.d. of the difference", "chosen has more (ties half)")
    explained = 1 + fit.log_likelihood / (len(rows) * np.log(2))
    ordered = float((differences @ (fit.coefficients / deviation) > 0).mean())
    parts = [table(header, cells)]
    parts.append(
        f"{len(rows)} pairs. The features explain {explained:.1%} of log 2 nats a pair (McFadden's R²) and find the "
        f"chosen response in {ordered:.1%} of the pairs they were fitted to. The s.d. is about zero."
    )
    if left_out:
        parts.append(f"Left out, as they never differ: {', '.join(left_out)}.")
    order = np.argsort(-np.abs(fit.coefficients / fit.standard_errors))
    strongest = int(order[0])
    headline = f"Strongest factor: {names[strongest]}, log-odds {number(float(fit.coefficients[strongest]))} per s.d."
    found = {
        name: {"coefficient": b, "standard_error": se, "deviation": sd, "chosen_has_more": more}
        for name, b, se, sd, more in zip(
            names, fit.coefficients.tolist(), fit.standard_errors.tolist(), deviation.tolist(), alone, strict=True
        )
    }
    result = {"pairs": len(rows), "factors": found, "log_likelihood": fit.log_likelihood, "explained": float(explained)}
    figure = dot_plot(
        "What chosen responses have more of",
        "log-odds of being chosen per s.d. of the difference, 95 % interval",
        [names[place] for place in order],
        *(column[order].tolist() for column in (fit.coefficients, low, high)),
        at=0.0,
    )
    return ToolOutput(headline, parts, result | {"left_out": left_out}, figure)
