"""Diversity over embeddings: subsets of large volume, and the responses worth annotating."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64

from prefjax.data.account import Refused
from prefjax.data.methods import method
from prefjax.data.methods.stream import (
    Outcome,
    Outcomes,
    Seed,
    each,
    generator,
    kept_in_order,
    measured,
    number,
    numbers,
    response_vectors,
    take_kind,
)
from prefjax.data.records import Record
from prefjax.options import Count, Index, NonNegative, Positive, Several

_NO_VOLUME = 1e-10  # relative to the largest first gain: below it a determinant is rounding noise


def greedy_volume(features: Float64[np.ndarray, "n D"], count: int, bandwidth: float | None = None) -> list[int]:
    """Indices picked one by one so that log det of their kernel matrix grows most (arXiv 1709.05135, Algorithm 1).

    Item i's gain is log det L_{S+i} - log det L_S = log d_i^2, kept up to date by one row of a Cholesky factor a pick:
    O(n count (D + count)) in all. Of equal gains the first is taken.

    Args:
        features: row i is q_i phi_i: a unit vector times its quality, so L_ij = q_i q_j k(phi_i, phi_j).
        bandwidth: None for k = phi_i . phi_j; else k = exp(-||phi_i - phi_j||^2 / (2 bandwidth^2)).
    Raises:
        ValueError: more picks than the kernel's rank: a larger set has volume 0, whatever is added; or a feature that
            is NaN or infinite.
    """
    if not np.isfinite(features).all():
        raise ValueError("a feature is NaN or infinite: leave such items out")
    quality = np.linalg.norm(features, axis=1)
    unit = features / quality[:, None]
    gain = quality**2
    floor = _NO_VOLUME * gain.max(initial=0)
    factor = np.zeros((len(features), count))
    picked: list[int] = []
    for step in range(count):
        left = gain.copy()
        left[picked] = -np.inf
        best = int(left.argmax())
        if left[best] <= floor:
            raise ValueError(
                f"{step} vectors span all that these embeddings do, so {count} have no volume: ask for at most {step}, "
                "or give a bandwidth"
            )
        kernel = unit @ unit[best]
        if bandwidth is not None:
            kernel = np.exp((kernel - 1) / bandwidth**2)  # ||a - b||^2 = 2 - 2 a.b of unit vectors
        row = (quality * quality[best] * kernel - factor @ factor[best]) / np.sqrt(gain[best])
        factor[:, step] = row
        gain = gain - row**2
        picked.append(best)
    return picked


@method(record_columns=("embedding", "quality"), streams=False)
def diverse_subset(
    records: Iterable[Record],
    *,
    size: Count,
    embedding: str,
    quality: str | None = None,
    bandwidth: Positive | None = None,
) -> Outcomes:
    """The most diverse subset: greedy maximisation of the log-determinant of a kernel, the mode of a DPP.

    Source: arXiv 2402.02318 (DPP subsets of diversity and quality); greedy algorithm arXiv 1709.05135; L_ij = q_i q_j
        k(phi_i, phi_j) as in arXiv 1207.6083.
    Takes: all records; the column `embedding` holds a vector (its length is divided out), `quality` a positive number.
    Makes: `size` of them, in the order they came in.

    bandwidth None is the cosine kernel, whose rank is the embeddings' dimension at most; else a Gaussian kernel of the
    unit vectors. Multiplying all qualities by one number changes nothing.

    Raises:
        ValueError: fewer records than size or than the kernel's rank allows, or embeddings of two lengths.
    """

    def measure(record: Record) -> np.ndarray:
        vector = numbers(record, embedding)
        length = np.linalg.norm(vector)
        if length == 0:
            raise Refused("outside_window", embedding, "the zero vector has no direction")
        weight = 1.0 if quality is None else number(record, quality)
        if weight <= 0:
            raise Refused("outside_window", quality, f"{weight:g}: a quality is above 0")
        return vector / length * weight

    usable, vectors, lost = measured(records, measure)
    if len({len(vector) for vector in vectors}) > 1:
        raise ValueError(f"column {embedding!r}: embeddings of different lengths cannot be compared")
    if size > len(usable):
        raise ValueError(f"diverse_subset size={size} of {len(usable)} records with an embedding: take fewer")
    yield from kept_in_order(usable, greedy_volume(np.stack(vectors), size, bandwidth), "adds less volume")
    yield from lost


def representative_and_diverse(
    similarity: Float64[np.ndarray, "n n"],
    count: int,
    diversity: float,
    exchanges: int = 0,
    rng: np.random.Generator | None = None,
) -> list[int]:
    """Indices that maximise 1' S x / ((n - 1) k) - diversity x' S x / (k (k - 1)): greedily, then by exchanges.

    x marks the k = `count` picks; the diagonal of S does not count (arXiv 2405.13541 and its code). An exchange gives
    up one pick and takes the item, the same or another, that is then best, so the objective never falls.

    Args:
        exchanges: how many; the pick that each gives up is drawn by `rng`.
    Raises:
        ValueError: a similarity that is NaN or infinite.
    """
    if not np.isfinite(similarity).all():
        raise ValueError("a similarity is NaN or infinite: leave such items out")
    others = similarity - np.diag(np.diag(similarity))
    size = len(others)
    representative = others.sum(0) / ((size - 1) * count)
    picked: list[int] = []

    def best() -> int:
        # Adding i to S changes x' S x by the similarities of i to the picks, in both orders.
        close = others[picked].sum(0) + others[:, picked].sum(1)
        gain = representative - diversity * close / (count * (count - 1))
        gain[picked] = -np.inf
        return int(gain.argmax())

    for _ in range(count):
        picked.append(best())
    for _ in range(exchanges):
        place = int(rng.integers(count))
        del picked[place]
        picked.insert(place, best())
    return picked


@method(shapes=True, response_columns=("embedding",))
def aepo(
    records: Iterable[Record],
    *,
    embedding: str,
    count: Several = 2,
    diversity: NonNegative = 1.0,
    exchanges: Index = 20,
    seed: Seed = 0,
) -> Outcomes:
    """Annotation-efficient preferences (AEPO): the few responses that represent all and differ from each other.

    Source: arXiv 2405.13541 (objective, greedy search and 20 random exchanges after it as in its code).
    Takes: rankings; the response column `embedding` holds a vector of each response; similarity is their cosine.
    Makes: rankings of `count` responses in the order picked, to be annotated, or paired by the scores there are.

    exchanges=0 stops at the greedy set.
    """
    rng = generator(seed)

    def step(record: Record) -> Outcome:
        take_kind(record, "ranked")
        vectors = response_vectors(record, embedding)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        if len(vectors) < count or not length.all():
            detail = f"{len(vectors)} responses, {int((length == 0).sum())} with the zero vector, {count} to pick"
            raise Refused("few_responses", embedding, detail)
        unit = vectors / length
        picked = tuple(representative_and_diverse(unit @ unit.T, count, diversity, exchanges, rng))
        return (record.select(picked, tuple(record.targets[k] for k in picked), "ranked"),)

    return each(records, step)
