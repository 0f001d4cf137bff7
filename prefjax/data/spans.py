"""Weighted spans of a response's text, and the tokens that they hold.

A span is (start, end, weight): characters [start, end) of the response's own text, 0 <= start < end, and what an
objective is told of them. The spans of a response do not overlap. None in place of them means the whole response, with
weight 1.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefjax.options import FLOAT32

Span = tuple[int, int, float]
Spans = tuple[Span, ...] | None


def read_spans(value: Any, length: int) -> Spans:
    """Spans of a text of `length` characters, in order, from what a file gives. Raises ValueError: they are none."""
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of [start, end, weight], got {type(value).__name__}")
    spans = []
    for entry in value:
        if not isinstance(entry, list | tuple) or len(entry) != 3 or not all(x in FLOAT32 for x in entry):
            raise ValueError(f"must be [start, end, weight], three finite numbers, got {entry!r}")
        start, end, weight = entry
        if not (start == int(start) and end == int(end) and 0 <= start < end <= length):
            raise ValueError(f"[{start}, {end}) is not a part of the response, which has {length} characters")
        spans.append((int(start), int(end), float(weight)))
    spans.sort()
    for (_, end, _), (start, *_) in itertools.pairwise(spans):
        if start < end:
            raise ValueError(f"a span begins at {start}, before the one before it ends at {end}")
    return tuple(spans)


def token_labels(
    spans: Spans, offsets: Sequence[tuple[int, int]], length: int, tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (float32) and segment numbers (int32) of a response's tokens.

    A token belongs to the span that holds most of its characters, of equals to the later one; a token outside all spans
    has weight 0 and segment 0. What stands around the text goes with its first or last character: what a chat template
    puts between the header and the text, and the end of the turn. Segments are numbered from 1, those without a token
    left out.

    Args:
      offsets: characters [start, end) of every token before the end was added or trimmed, from the text's beginning.
      length: characters of the text.
      tokens: of the response as it is kept.
    """
    if spans is None:
        return np.ones(tokens, np.float32), np.ones(tokens, np.int32)
    weights, numbers = np.zeros(tokens, np.float32), np.zeros(tokens, np.int32)
    if not spans:
        return weights, numbers
    kept = [*offsets[:tokens], *[(length, length)] * (tokens - len(offsets))]
    starts = np.clip([start for start, _ in kept], 0, length - 1)
    ends = np.maximum(np.minimum([end for _, end in kept], length), starts + 1)
    first, last, weight = (np.array(part) for part in zip(*spans, strict=True))
    shared = np.minimum(ends[:, None], last) - np.maximum(starts[:, None], first)
    best = len(spans) - 1 - np.argmax(shared[:, ::-1], axis=1)
    inside = shared[np.arange(tokens), best] > 0
    weights[inside] = weight[best[inside]]
    numbers[inside] = 1 + np.unique(best[inside], return_inverse=True)[1]
    return weights, numbers
