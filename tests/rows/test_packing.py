"""First-fit-decreasing against a plain reference, size vectors against the rows they predict, suggested shapes."""

import dataclasses
import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefjax.rows.arrays import LAYOUTS, Branches, RowShape
from prefjax.rows.layout import build_rows
from prefjax.rows.packing import TreeLengths, first_fit_decreasing, real_tokens, row_capacity, suggest_shape, tree_sizes
from prefjax.rows.steps import FullRows, StepSampler, simulate
from tests.rows.random_trees import random_trees

BRANCHES = Branches(responses=3, baseline=True, auxiliary=True)


def plain_first_fit_decreasing(sizes: np.ndarray, capacity: np.ndarray) -> list[list[int]]:
    rows: list[list[int]] = []
    for tree in sorted(range(len(sizes)), key=lambda i: -sizes[i, 0]):
        for row in rows:
            if all(sizes[row, k].sum() + sizes[tree, k] <= capacity[k] for k in range(4)):
                row.append(tree)
                break
        else:
            rows.append([tree])
    return [sorted(row) for row in rows]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(1, 5), st.integers(40, 200), st.integers(20, 200))
def test_first_fit_decreasing_is_the_plain_algorithm_with_every_capacity(seed, count, groups, tokens, scored):
    rng = np.random.default_rng(seed)
    columns = (rng.integers(1, 40, count), rng.integers(1, 20, count), np.ones(count, int), rng.integers(1, 20, count))
    sizes = np.stack(columns, axis=1).astype(np.int64)
    capacity = np.array([tokens, scored, groups, 50])
    rows = first_fit_decreasing(sizes, capacity)
    assert [row.tolist() for row in rows] == plain_first_fit_decreasing(sizes, capacity) or groups == 1
    assert sorted(int(i) for row in rows for i in row) == list(range(count))  # nothing lost, nothing twice
    assert all((sizes[row].sum(axis=0) <= capacity).all() for row in rows)


def test_packing_100k_trees_takes_seconds_and_fills_rows():
    rng = np.random.default_rng(0)
    tokens = rng.lognormal(5.5, 0.7, 100_000).astype(np.int64).clip(8, 2000)
    sizes = np.stack([tokens, tokens // 2, np.ones_like(tokens), tokens // 2], axis=1)
    start = time.perf_counter()
    rows = sum(len(first_fit_decreasing(s, np.array([2048, 1536, 64, 1536]))) for s in np.split(sizes, 25))
    assert time.perf_counter() - start < 20  # about 1 s on an idle core
    assert tokens.sum() / (rows * 2048) > 0.99


def test_a_tree_that_can_never_fit_is_named_with_its_size_and_the_field_to_raise():
    sizes = np.array([[5, 3, 1, 2], [9, 8, 1, 2], [4, 7, 1, 2]])
    with pytest.raises(ValueError, match=r"example 1 needs scored_length >= 8, but it is 6 \(2 of 3 .* to 8"):
        first_fit_decreasing(sizes, np.array([10, 6, 4, 10]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("branches", [BRANCHES, Branches(3), Branches(4, auxiliary=True)])
def test_size_vectors_are_exactly_what_the_rows_need(layout, branches):
    trees = random_trees(8, seed=1)
    lengths = TreeLengths.of(trees)
    sizes = tree_sizes(lengths, layout, branches)
    for tree, size, real in zip(trees, sizes, real_tokens(lengths, layout, branches), strict=True):
        entries = int(size[4]) if layout == "merged" else 0
        shape = RowShape(layout, 1, int(size[0]), int(size[1]), 1, branches, int(size[3]), entries=entries)
        assert (row_capacity(shape) == size).all()
        rows = build_rows([[tree]], shape)  # fits exactly
        assert (rows.segment_ids > 0).sum() == real
        for field in ("row_length", "scored_length", "prompt_length", "entries")[: len(size) - 1]:
            smaller = dataclasses.replace(shape, **{field: getattr(shape, field) - 1})
            if getattr(smaller, field):  # prompt_length 0 would mean: build none
                with pytest.raises(ValueError, match=field):
                    build_rows([[tree]], smaller)


def test_lengths_know_which_branches_are_missing():
    lengths = TreeLengths.of(random_trees(5, extras=False))
    with pytest.raises(ValueError, match="example 0 has no baseline branch"):
        lengths.branches(BRANCHES)
    with pytest.raises(ValueError, match="has 3 responses, but branches.responses is 2"):
        lengths.branches(Branches(2))
    assert lengths.branches(Branches(5)).shape == (5, 5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_suggested_shape_holds_every_tree_and_says_what_it_costs(layout):
    lengths = TreeLengths.of(random_trees(300, seed=2))
    suggestion = suggest_shape(lengths, layout, BRANCHES, rows=4, prompt_rows=True, multiple=4)
    shape, sizes = suggestion.shape, tree_sizes(lengths, layout, BRANCHES)
    assert (sizes <= row_capacity(shape)).all() and suggestion.too_long == 0
    assert shape.row_length % 4 == shape.scored_length % 4 == shape.prompt_length % 4 == 0
    if layout in ("pairs", "shared"):
        assert shape.groups == 1
        copies = BRANCHES.count if layout == "pairs" else 1
        fill = real_tokens(lengths, layout, BRANCHES).sum() / (len(sizes) * copies * shape.row_length)
        assert suggestion.fill == pytest.approx(fill, rel=0.02)
    else:
        unit = 1.1 * np.percentile(sizes[:, 0], 95)
        assert suggestion.fill >= 0.985
        assert any(0 <= shape.row_length - max(unit * times, sizes[:, 0].max()) < 4 for times in range(1, 33))
        # S and G bind rarely, yet are bounds worth having: far below the row's tokens.
        wider = dataclasses.replace(shape, scored_length=shape.row_length, groups=1000, prompt_length=shape.row_length)
        rows, free_rows = (len(first_fit_decreasing(sizes, row_capacity(s))) for s in (shape, wider))
        assert rows <= free_rows * 1.01 and shape.scored_length < shape.row_length and shape.groups < 100


def test_trees_above_the_longest_row_are_counted_never_fitted():
    lengths = TreeLengths.of(random_trees(300, seed=2))
    tokens = tree_sizes(lengths, "shared_packed", BRANCHES)[:, 0]
    limit = int(np.percentile(tokens, 80))
    suggestion = suggest_shape(lengths, "shared_packed", BRANCHES, rows=4, max_row_length=limit, multiple=16)
    assert suggestion.shape.row_length == limit and suggestion.too_long == (tokens > limit).sum() > 0
    with pytest.raises(ValueError, match="raise row_length"):
        StepSampler(lengths, suggestion.shape, FullRows(seed=0))
    with pytest.raises(ValueError, match="fits a row of 1 tokens"):
        suggest_shape(lengths, "shared_packed", BRANCHES, rows=4, max_row_length=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_length_that_is_given_stays_and_the_other_bounds_follow(layout):
    lengths = TreeLengths.of(random_trees(300, seed=2))
    sizes = tree_sizes(lengths, layout, BRANCHES)
    length = int(sizes[:, 0].max()) + 5
    suggestion = suggest_shape(lengths, layout, BRANCHES, rows=4, row_length=length, multiple=8)
    assert suggestion.shape.row_length == length and suggestion.too_long == 0
    assert (sizes <= row_capacity(suggestion.shape)).all()
    shorter = suggest_shape(lengths, layout, BRANCHES, rows=4, row_length=length - 6, multiple=8)
    assert shorter.shape.row_length == length - 6 and shorter.too_long > 0
    with pytest.raises(ValueError, match="leave max_row_length out"):
        suggest_shape(lengths, layout, BRANCHES, rows=4, row_length=length, max_row_length=length)


def byte_lengths(path: Path) -> TreeLengths:
    """Tree lengths of a real set under UTF-8 bytes plus one end token, read without the encoding code."""

    def size(text: str | list[dict[str, str]]) -> int:
        parts = [text] if isinstance(text, str) else [f"{m['role']}: {m['content']}\n" for m in text]
        return len("".join(parts).encode()) + 1

    prompts, responses = [], []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            sides = [row[key] for key in ("chosen", "rejected", "completion") if key in row] + row.get(
                "completions", []
            )
            prompts.append(size(row["prompt"]))
            responses.append([size(side) for side in sides])
    return TreeLengths.stack([(p, r, 0, 0) for p, r in zip(prompts, responses, strict=True)])


def test_fill_on_every_real_set_is_at_least_98_percent(real_data):
    files = sorted(real_data.glob("*.jsonl.gz"))
    assert files
    for path in files:
        lengths = byte_lengths(path)
        branches = Branches(lengths.responses.shape[1])
        suggestion = suggest_shape(lengths, "shared_packed", branches, rows=8)
        two_epochs = 2 * real_tokens(lengths, "shared_packed", branches).sum()
        steps = math.ceil(two_epochs / (8 * suggestion.shape.row_length))
        run = simulate(StepSampler(lengths, suggestion.shape, FullRows(seed=0)), steps)
        assert min(run.fill, suggestion.fill) >= 0.98, (path.name, run, suggestion)
