"""Sparse features of embedding differences, and how each of them sways preferences (arXiv 2510.26202, WIMHF)."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from prefjax.analysis.report import number, table, with_interval
from prefjax.analysis.statistics import Z95, share
from prefjax.contrib.factors import bradley_terry_regression
from prefjax.contrib.output import ToolOutput, dot_plot
from prefjax.contrib.table import Table
from prefjax.contrib.tools import tool

_ADAM = (0.9, 0.999, 1e-8)
_CLIP = 1.0  # largest gradient norm


@dataclasses.dataclass(frozen=True)
class SparseAutoencoder:
    """x is rebuilt as z @ decoder from z = x @ encoder, of which only entries beyond the threshold are kept.

    encoder    [D, M]
    decoder    [M, D] rows of length 1
    threshold  of |z|, such that as many entries are kept on the training set as were meant to be
    """

    encoder: Float[np.ndarray, "D M"]
    decoder: Float[np.ndarray, "M D"]
    threshold: float

    def activations(self, differences: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N M"]:
        """Signed features of embedding differences; those of -x are exactly the negative of those of x."""
        found = differences @ self.encoder
        return np.where(np.abs(found) >= self.threshold, found, 0.0)

    def unexplained(self, differences: Float[np.ndarray, "N D"]) -> float:
        """|x - rebuilt|^2 / |x|^2, summed over pairs: 0 is perfect, 1 is what no features at all come to."""
        rebuilt = self.activations(differences) @ self.decoder
        return float(((differences - rebuilt) ** 2).sum() / (differences**2).sum())


def train_sparse_autoencoder(
    differences: Float[np.ndarray, "N D"],
    *,
    features: int = 32,
    active: int = 4,
    epochs: int = 50,
    batch: int = 256,
    learning_rate: float = 5e-4,
    seed: int = 0,
) -> SparseAutoencoder:
    """A BatchTopK sparse autoencoder with signed activations on embedding differences chosen - rejected.

    Of a batch of B pairs the B * active activations of largest magnitude are kept, whatever their sign. The loss is
    the squared error over the batch's own variance; Adam; decoder rows are kept at length 1, their gradients orthogonal
    to them, and the encoder starts as the decoder's transpose. All as in the paper's code, but: there are no biases,
    which that code trains on x and -x alike, so that they have no direction to go; the threshold is the one that keeps
    N * active entries of the training set, where the code averages the smallest kept one; and there is no early stop
    on validation data, no auxiliary loss and no nested prefixes of features. Defaults are the code's.

    Raises:
      ValueError: more active features than there are, or differences that are all 0.
    """
    count, width = differences.shape
    if not 1 <= active <= features:
        raise ValueError(f"active={active} must lie in 1 .. features={features}")
    if epochs < 1 or batch < 1:
        raise ValueError(f"epochs={epochs} and batch={batch} must be above 0")
    if not np.abs(differences).max(initial=0) > 0:
        raise ValueError("all embedding differences are 0")
    rng = np.random.default_rng(seed)
    data = np.concatenate([differences, -differences])
    limit = np.sqrt(6 / (features + width))  # Glorot
    decoder = _unit_rows(rng.uniform(-limit, limit, (features, width)))
    params = {"encoder": decoder.T.copy(), "decoder": decoder}
    moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in params.items()}
    step = 0
    for _ in range(epochs):
        order = rng.permutation(len(data))
        for start in range(0, len(data), batch):
            x = data[order[start : start + batch]]
            variance = float(((x - x.mean(0)[None]) ** 2).mean())
            if not variance:  # a last batch of one
                continue
            gradients = _gradients(x, params["encoder"], params["decoder"], len(x) * active, variance)
            along = (gradients["decoder"] * params["decoder"]).sum(1, keepdims=True)
            gradients["decoder"] -= along * params["decoder"]
            norm = np.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
            step += 1
            for name, gradient in gradients.items():
                first, second = moments[name]
                gradient = gradient * min(1.0, _CLIP / (norm + 1e-6))
                first += (1 - _ADAM[0]) * (gradient - first)
                second += (1 - _ADAM[1]) * (gradient**2 - second)
                corrected = np.sqrt(second / (1 - _ADAM[1] ** step)) + _ADAM[2]
                params[name] = params[name] - learning_rate * first / (1 - _ADAM[0] ** step) / corrected
            params["decoder"] = _unit_rows(params["decoder"])
    magnitudes = np.abs(differences @ params["encoder"])
    return SparseAutoencoder(params["encoder"], params["decoder"], _kth_largest(magnitudes, count * active))


def _gradients(x: np.ndarray, encoder: np.ndarray, decoder: np.ndarray, kept: int, variance: float):
    """Of mean((x - z decoder)^2) / variance, z the `kept` largest |x encoder|; which ones are kept has no gradient."""
    found = x @ encoder
    mask = np.abs(found) >= _kth_largest(np.abs(found), kept)
    z = np.where(mask, found, 0.0)
    error = (z @ decoder - x) * (2 / (x.size * variance))
    return {"encoder": x.T @ np.where(mask, error @ decoder.T, 0.0), "decoder": z.T @ error}


def _kth_largest(magnitudes: np.ndarray, kept: int) -> float:
    flat = magnitudes.ravel()
    return float(np.partition(flat, len(flat) - kept)[len(flat) - kept])


def _unit_rows(matrix: np.ndarray) -> np.ndarray:
    return matrix / (np.linalg.norm(matrix, axis=1, keepdims=True) + 1e-8)


@tool()
def sparse_features(
    rows: Table,
    *,
    embedding: str = "embedding",
    control: str | None = None,
    features: int = 32,
    active: int = 4,
    epochs: int = 50,
    learning_rate: float = 5e-4,
    examples: int = 3,
    seed: int = 0,
) -> ToolOutput:
    """Which few features embedding differences consist of, and which of them are preferred.

    Source: arXiv 2510.26202 and its code (signed BatchTopK autoencoder, one controlled logistic regression for each
    feature).
    Takes: the response column `embedding` with two vectors, of chosen and rejected; `control`: a response column whose
    difference every regression holds fixed, as the length. `features` M and `active` K of the autoencoder.
    Makes: for each feature the share of pairs that have it, how often the response with more of it is chosen, its
    log-odds for one standard deviation with 95 % intervals, and the rows where it is strongest, to be read.

    A feature is a direction without a name: read its rows. Intervals are for one feature looked at alone.
    """
    pairs = rows.vector_pairs(embedding)
    differences = pairs[:, 0] - pairs[:, 1]
    model = train_sparse_autoencoder(
        differences, features=features, active=active, epochs=epochs, learning_rate=learning_rate, seed=seed
    )
    held = None if control is None else _controlled(rows, control)
    found, skipped = _regressions(model.activations(differences), held, examples)
    if not found:
        raise ValueError(f"no feature has a regression: {', '.join(skipped)}")
    unexplained = model.unexplained(differences)
    parts = [_feature_table(found)]
    parts.append(
        f"{len(rows)} pairs, {features} features, {active} active on average; they rebuild "
        f"{1 - unexplained:.1%} of the squared differences. Rows count from 1; − means that the rejected response has "
        "more of it."
    )
    if skipped:
        parts.append(f"Without a regression: {', '.join(skipped)}.")
    values = {"pairs": len(rows), "unexplained": unexplained, "features": found, "without_regression": skipped}
    first = found[0]
    headline = f"Feature {first['feature']} sways preferences most: log-odds {number(first['coefficient'])} per s.d."
    shown = found[:20]
    figure = dot_plot(
        "How features sway preferences",
        "log-odds of being chosen per s.d., 95 % interval",
        [f"feature {each['feature']}" for each in shown],
        [each["coefficient"] for each in shown],
        *([each["coefficient"] + sign * Z95 * each["standard_error"] for each in shown] for sign in (-1, 1)),
        at=0.0,
    )
    return ToolOutput(headline, parts, values, figure)


def _controlled(rows: Table, control: str) -> Float[np.ndarray, "N"]:
    """The column's difference between the responses of every pair, in units of its root mean square."""
    held = rows.pairs(control)[:, 0] - rows.pairs(control)[:, 1]
    if not held.any():
        raise ValueError(f"column {control!r} never differs between the responses of a pair, so it controls nothing")
    return held / np.sqrt((held**2).mean())


def _regressions(
    z: Float[np.ndarray, "N M"], held: Float[np.ndarray, "N"] | None, examples: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """What each feature does alone beside what is held fixed, the strongest first; and those it cannot be said of."""
    found, skipped = [], []
    for place, own in enumerate(z.T):
        fires = own != 0
        if not fires.any():
            skipped.append(f"{place} (never active)")
            continue
        design = (own / np.sqrt((own**2).mean()))[:, None]
        try:
            fit = bradley_terry_regression(design if held is None else np.concatenate([design, held[:, None]], axis=1))
        except ValueError:
            skipped.append(f"{place} (tells chosen from rejected without exception)")
            continue
        strongest = np.argsort(-np.abs(own))[:examples]
        found.append(
            {
                "feature": place,
                "prevalence": float(fires.mean()),
                "win_rate": share(float((own[fires] > 0).mean()), int(fires.sum())),
                "coefficient": float(fit.coefficients[0]),
                "standard_error": float(fit.standard_errors[0]),
                "rows": [int(row) + 1 if own[row] > 0 else -int(row) - 1 for row in strongest if own[row] != 0],
            }
        )
    found.sort(key=lambda each: -abs(each["coefficient"] / each["standard_error"]))
    return found, skipped


def _feature_table(found: list[dict[str, Any]]) -> str:
    cells = [
        (
            each["feature"],
            f"{each['prevalence']:.1%}",
            with_interval(each["win_rate"]),
            f"{number(each['coefficient'])} ± {each['standard_error']:.2f}",
            ", ".join(number(float(row), 0) for row in each["rows"]),
        )
        for each in found
    ]
    return table(
        ("feature", "pairs that have it", "more of it is chosen", "log-odds per s.d. ± s.e.", "strongest rows"), cells
    )
