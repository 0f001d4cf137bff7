"""Comparisons of a prompt's responses, incomplete and partly wrong, made into scores: low rank plus sparse."""

from collections.abc import Iterable
from typing import Annotated

import numpy as np
import scipy.sparse.csgraph
from jaxtyping import Bool, Float64

from prefjax.data.account import Refused
from prefjax.data.methods import method
from prefjax.data.methods.sampling import rescored
from prefjax.data.methods.stream import Outcome, Outcomes, each, per_response, take_kind
from prefjax.data.records import Record
from prefjax.options import Range

_STEPS = 1000
_LEAST = 12  # responses; measured: of fewer, even complete comparisons without errors are not returned as they are
_TOLERANCE = 1e-7


def low_rank_plus_sparse(
    observed: Float64[np.ndarray, "n m"], known: Bool[np.ndarray, "n m"]
) -> tuple[Float64[np.ndarray, "n m"], Float64[np.ndarray, "n m"]]:
    """Splits known entries into a low-rank and a sparse part, and fills in the others with the low-rank part.

    min ||L||_* + lambda ||S||_1 subject to L + S = M on the known entries, lambda = 1 / sqrt(p n), p the known share
    and n the larger side: principal component pursuit (arXiv 0912.3599, Theorem 1.2), by its alternating
    directions with a penalty that grows.

    Exact, with high probability, for an incoherent L of low rank and errors in a small random share of the entries,
    of any size. Small or very incomplete matrices are outside of that.

    Returns:
        L everywhere, and S on the known entries (0 elsewhere).
    Raises:
        ValueError: nothing is known, a known entry is NaN or infinite, or no convergence.
    """
    if not known.any():
        raise ValueError("no entry is known")
    if not np.isfinite(observed[known]).all():
        raise ValueError("a known entry is NaN or infinite: mark it as unknown")
    target = np.where(known, observed, 0.0)
    scale = np.linalg.norm(target)
    if scale == 0:
        return np.zeros_like(target), np.zeros_like(target)
    sparsity = 1 / np.sqrt(known.mean() * max(target.shape))
    penalty = 1.25 / np.linalg.norm(target, 2)
    low, sparse, dual = (np.zeros_like(target) for _ in range(3))
    for _ in range(_STEPS):
        left, values, right = np.linalg.svd(target - sparse + dual / penalty, full_matrices=False)
        low = (left * np.maximum(values - 1 / penalty, 0)) @ right
        rest = target - low + dual / penalty
        # An unknown entry costs nothing in S, so it takes up whatever L says there.
        sparse = np.where(known, np.sign(rest) * np.maximum(np.abs(rest) - sparsity / penalty, 0), rest)
        gap = target - low - sparse
        dual = dual + penalty * gap
        if np.linalg.norm(gap) <= _TOLERANCE * scale:
            return low, np.where(known, sparse, 0.0)
        penalty = min(penalty * 1.05, 1e7 / scale)
    raise ValueError(f"no convergence in {_STEPS} steps: gap {np.linalg.norm(gap) / scale:.1e} of the matrix's norm")


@method(shapes=True, response_columns=("wins",))
def complete_comparisons(
    records: Iterable[Record], *, wins: str, clip: Annotated[float, Range(above=0, below=0.5)] = 0.01
) -> Outcomes:
    """Robust and complete scores: Bradley-Terry log-odds as a matrix of low rank plus sparse errors.

    Source: arXiv 2403.02745 (CURATRON) for the problem: log-odds of Bradley-Terry are s_i - s_j, of rank 2, some of
        them missing or corrupted; arXiv 0912.3599 for the solution, see docs/data_methods.md.
    Takes: rankings of K responses; the response column `wins` holds for response i the list of its K probabilities of
        beating response j, null where nobody compared them; the diagonal is not read.
    Makes: rankings whose scores are s_i = mean_j L_ij, log-odds in nats against the average response.

    Probabilities are clipped to [clip, 1 - clip], so that an always and a never have finite log-odds. If P(i beats j)
    is known and P(j beats i) is not, it is taken as 1 - P. Fewer than 12 responses are rejected: they cannot outvote
    an error, and 5 % of errors need about 20. So are responses in groups that nobody compared with each other: the
    log-odds between two groups could be anything.
    """

    def step(record: Record) -> Outcome:
        take_kind(record, "ranked")
        if len(record.responses) < _LEAST:
            raise Refused("few_responses", wins, f"{len(record.responses)} responses, at least {_LEAST} needed")
        win = _probabilities(record, wins)
        win = np.where(np.isnan(win), 1 - win.T, win)
        known = ~np.isnan(win)
        np.fill_diagonal(known, False)
        if not known.any():
            raise Refused("missing_field", wins, "no two responses were compared")
        groups, group_of = scipy.sparse.csgraph.connected_components(known, directed=False)
        if groups > 1:
            other = int((group_of != group_of[0]).argmax())
            apart = f"{groups} groups; responses 0 and {other} were never compared, even by way of others"
            raise Refused("unconnected", wins, apart)
        probability = np.clip(np.where(known, win, 0.5), clip, 1 - clip)
        np.fill_diagonal(known, True)  # log-odds 0
        np.fill_diagonal(probability, 0.5)
        low, _ = low_rank_plus_sparse(np.log(probability / (1 - probability)), known)
        return (rescored(record, low.mean(1)),)

    return each(records, step)


def _probabilities(record: Record, column: str) -> Float64[np.ndarray, "K K"]:
    """NaN where it is null."""
    rows, count = per_response(record, column), len(record.responses)
    if not all(isinstance(row, list | tuple) and len(row) == count for row in rows):
        raise Refused("length_mismatch", column, f"must hold {count} lists of {count} probabilities or nulls")
    entries = [entry for row in rows for entry in row]
    for entry in entries:
        if entry is not None and (isinstance(entry, bool) or not isinstance(entry, int | float) or not 0 <= entry <= 1):
            raise Refused("bad_probability", column, f"{entry!r}")
    return np.array([np.nan if entry is None else entry for entry in entries], np.float64).reshape(count, count)
