"""The layouts against their definitions: the mask against segment ancestry, the rows against plain sequences."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefjax.rows.arrays import LAYOUTS, Branches, RowShape
from prefjax.rows.layout import attach_reference, branch_slots, build_rows, lay_out_forest
from prefjax.rows.packing import PACKED_LAYOUTS
from prefjax.rows.trees import TokenTree
from tests.rows.forests import by_entry
from tests.rows.random_trees import random_trees

BRANCHES = Branches(responses=3, baseline=True, auxiliary=True)


def visible(visible_until: np.ndarray) -> np.ndarray:
    """[T, T] mask[i, j]: key j is visible to query i."""
    index = np.arange(len(visible_until))
    return (index[None, :] <= index[:, None]) & (index[:, None] < visible_until[None, :])


@st.composite
def forests(draw) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and parents of a random deep forest in depth-first order."""
    parents = [-1]
    for node in range(1, draw(st.integers(1, 14))):
        path, ancestor = [-1], node - 1
        while ancestor >= 0:
            path.append(ancestor)
            ancestor = parents[ancestor]
        parents.append(draw(st.sampled_from(path)))
    lengths = draw(st.lists(st.integers(1, 4), min_size=len(parents), max_size=len(parents)))
    return np.array(lengths), np.array(parents)


@settings(max_examples=150, deadline=None)
@given(forests())
def test_visible_until_is_causal_attention_to_own_segment_and_its_ancestors(forest):
    lengths, parents = forest
    layout = lay_out_forest(lengths, parents)
    ancestry = np.eye(len(lengths), dtype=bool)  # [node, ancestor or itself]
    for node, parent in enumerate(parents):
        if parent >= 0:
            ancestry[node] |= ancestry[parent]
    segment = layout.segment_ids - 1
    causal = np.tril(np.ones((len(segment), len(segment)), bool))
    expected = causal & ancestry[segment[:, None], segment[None, :]]
    np.testing.assert_array_equal(visible(layout.visible_until), expected)
    np.testing.assert_array_equal(layout.positions, expected.sum(axis=1) - 1)  # how many tokens come before on its path
    np.testing.assert_array_equal(np.bincount(segment), lengths)


def test_forests_that_are_not_depth_first_or_hold_empty_nodes_are_refused():
    with pytest.raises(ValueError, match="depth-first"):
        lay_out_forest(np.array([1, 1, 1, 1]), np.array([-1, 0, 0, 1]))  # node 3 goes back into node 1
    with pytest.raises(ValueError, match="node 1 .*empty"):
        lay_out_forest(np.array([1, 0]), np.array([-1, 0]))


def generous_shape(layout: str, branches: Branches = BRANCHES, **changes) -> RowShape:
    groups = 1 if layout in ("pairs", "shared") else 3
    shape = RowShape(layout, 5, 400, 200, groups, branches, prompt_length=60, entries=200)
    return dataclasses.replace(shape, **changes)


def some_rows(layout: str, trees: list[TokenTree]) -> list[list[TokenTree]]:
    """Four rows of trees, one of them empty and one with a single tree, so that rows and groups get padded."""
    if layout in ("pairs", "shared"):
        return [[tree] for tree in trees[:3]] + [[]]
    return [trees[:3], trees[3:4], [], trees[4:6]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(4))
def test_every_scored_token_is_predicted_from_exactly_its_own_prefix(layout, seed):
    """The round trip: contexts and targets read back through the mask are the plain prompt + branch sequences."""
    packed = some_rows(layout, random_trees(6, seed=seed))
    shape = generous_shape(layout)
    rows = by_entry(build_rows(packed, shape))
    copies = len(rows.tokens) // shape.rows
    assert copies == (BRANCHES.count if layout == "pairs" else 1)
    scored = 0
    for b, trees in enumerate(packed):
        for g, tree in enumerate(trees):
            for slot, branch in branch_slots(tree, BRANCHES):
                row = b * copies + (slot if layout == "pairs" else 0)
                mask = visible(rows.visible_until[row])
                terms = np.flatnonzero(
                    (rows.response_slots[row] == g * BRANCHES.count + slot) & (rows.target_weights[row] > 0)
                )
                np.testing.assert_array_equal(rows.target_ids[row, terms], branch)
                assert (rows.target_weights[row, terms] == 1).all()
                for t, predictor in enumerate(rows.predictors[row, terms]):
                    seen = mask[predictor]
                    prefix = np.concatenate([tree.prompt, branch[:t]])
                    np.testing.assert_array_equal(rows.tokens[row, seen], prefix)
                    np.testing.assert_array_equal(rows.positions[row, seen], np.arange(len(prefix)))
                scored += len(branch)
    assert rows.target_weights.sum() == scored
    copied = layout in ("pairs", "packed_pairs")
    nodes = [
        node
        for trees in packed
        for tree in trees
        for node in (tree.prompt,) * (len(branch_slots(tree, BRANCHES)) if copied else 1) + tree.branches
    ]
    if layout == "merged":
        return  # what chance gave a common start stands once: see test_merged.py
    inputs = rows.tokens[rows.segment_ids > 0]  # every token, the last of every branch included, is an input once
    np.testing.assert_array_equal(np.sort(inputs), np.sort(np.concatenate(nodes)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_per_group_arrays_prompt_ends_and_prompt_rows(layout):
    packed = some_rows(layout, random_trees(6, seed=7))
    shape = generous_shape(layout)
    rows = by_entry(build_rows(packed, shape))
    copies = len(rows.tokens) // shape.rows
    seen = np.zeros((shape.rows, shape.groups), bool)
    for b, trees in enumerate(packed):
        for g, tree in enumerate(trees):
            seen[b, g] = True
            count = len(tree.responses)
            np.testing.assert_array_equal(rows.valid[b, g], np.arange(3) < count)
            np.testing.assert_array_equal(rows.target[b, g, :count], tree.targets)
            assert not rows.target[b, g, count:].any()
            assert (rows.weight[b, g], rows.example_id[b, g]) == (np.float32(tree.weight), tree.example_id)
            for tokens, until, end in (
                (rows.tokens[b * copies], rows.visible_until[b * copies], rows.prompt_ends[b, g]),
                (rows.prompts.tokens[b], rows.prompts.visible_until[b], rows.prompts.prompt_ends[b, g]),
            ):
                np.testing.assert_array_equal(tokens[visible(until)[end]], tree.prompt)
            first = np.flatnonzero(rows.response_slots[b * copies] == g * BRANCHES.count)[0]  # response 0: first copy
            assert rows.prompt_ends[b, g] == rows.predictors[b * copies, first]
    assert (rows.example_id[~seen] == -1).all() and not rows.valid[~seen].any() and not rows.weight[~seen].any()
    padding = rows.segment_ids == 0
    own_only = np.broadcast_to(np.arange(1, shape.row_length + 1), padding.shape)
    np.testing.assert_array_equal(rows.visible_until[padding], own_only[padding])


def test_shared_packed_copies_no_token_and_pairs_leave_absent_branches_empty():
    tree = dataclasses.replace(random_trees(1, seed=3)[0], baseline=None, auxiliary=None)
    tree = dataclasses.replace(tree, responses=tree.responses[:1], targets=tree.targets[:1])
    rows = build_rows([[tree]], generous_shape("pairs", Branches(3), rows=1))
    assert rows.tokens.shape[0] == 3
    assert (rows.segment_ids[0] > 0).any() and not (rows.segment_ids[1:] > 0).any()
    rows = build_rows([[tree, tree]], generous_shape("shared_packed", Branches(3), prompt_length=0))
    assert (rows.segment_ids > 0).sum() == 2 * (len(tree.prompt) + len(tree.responses[0]))
    assert rows.prompts is None and rows.reference_logp is None


def test_dtypes_are_what_the_step_is_compiled_for():
    rows = build_rows([random_trees(2)], generous_shape("shared_packed"))
    floats = {"target_weights", "target", "weight"}
    for name, array in rows._asdict().items():
        if name == "valid":
            assert array.dtype == np.bool_
        elif array is not None and name != "prompts":
            assert array.dtype == (np.float32 if name in floats else np.int32), name
    assert all(array.dtype == np.int32 for array in rows.prompts)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_carry_the_numbers_that_are_asked_for(layout):
    trees = random_trees(6)
    rows = build_rows(some_rows(layout, trees), generous_shape(layout, carries=("margin",)))
    assert rows.margin.dtype == np.float32 and rows.target_probability is None
    assert rows.margin.shape == rows.weight.shape
    real = rows.example_id >= 0
    np.testing.assert_array_equal(rows.margin[real], [np.float32(trees[i].margin) for i in rows.example_id[real]])
    assert real.any() and not rows.margin[~real].any()
    assert build_rows(some_rows(layout, trees), generous_shape(layout)).margin is None
    with pytest.raises(ValueError, match="example 0 has no target_probability"):
        build_rows(some_rows(layout, trees), generous_shape(layout, carries=("margin", "target_probability")))


@pytest.mark.parametrize("field", ["row_length", "scored_length", "groups", "prompt_length", "rows"])
def test_what_does_not_fit_is_refused_by_name(field):
    trees = random_trees(6)
    with pytest.raises(ValueError, match=field):
        build_rows([trees[:3], trees[3:]], generous_shape("shared_packed", **{field: 1}))


def test_branches_that_the_tree_lacks_or_has_too_many_of_are_refused():
    tree = dataclasses.replace(random_trees(1, seed=5)[0], baseline=None)
    with pytest.raises(ValueError, match="example 0 has no baseline"):
        branch_slots(tree, BRANCHES)
    tree = dataclasses.replace(tree, responses=(tree.prompt, tree.prompt), targets=np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="example 0 has 2 responses"):
        branch_slots(tree, Branches(1))
    with pytest.raises(ValueError, match="groups must be 1"):
        build_rows([], generous_shape("pairs", groups=2))
    with pytest.raises(ValueError, match="expected one of"):
        build_rows([], generous_shape("trees"))


def test_reference_table_is_looked_up_by_example_id():
    trees = random_trees(6)
    table = np.arange(6 * BRANCHES.count, dtype=np.float32).reshape(6, -1)
    rows = attach_reference(build_rows([trees[3:5], trees[:1]], generous_shape("shared_packed")), table)
    np.testing.assert_array_equal(rows.reference_logp[0, :2], table[3:5])
    np.testing.assert_array_equal(rows.reference_logp[1, 0], table[0])
    assert not rows.reference_logp[1, 1:].any() and not rows.reference_logp[2:].any()
    with pytest.raises(ValueError, match="example 4 is not in the reference table"):
        attach_reference(rows, table[:4])
    table[3, 1] = np.nan
    with pytest.raises(ValueError, match="no finite log-prob for example 3"):
        attach_reference(rows, table)


def test_data_side_imports_no_jax():
    program = (
        "import sys, prefjax.data; from prefjax.rows import arrays, layout, mismatch, packing, steps, store, trees; "
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_scored_token_of_a_response_is_found_by_its_place_in_it(layout):
    """Responses with tokens between that are not scored, of one to nine tokens; -1 behind each."""
    rng = np.random.default_rng(0)

    def tokens():
        ids = rng.integers(1, 99, rng.integers(1, 10))
        return np.where(rng.random(len(ids)) < 0.8, ids, ~ids).astype(np.int32)

    trees = [
        TokenTree(np.arange(3, dtype=np.int32), (tokens(), tokens()), np.zeros(2, np.float32), example_id=i)
        for i in range(8)
    ]
    packed = layout in PACKED_LAYOUTS
    shape = RowShape(layout, 4 if packed else 8, 80, 60, 2 if packed else 1, Branches(2, longest=9), entries=60)
    per_row = 2 if packed else 1
    rows = by_entry(build_rows([trees[i : i + per_row] for i in range(0, 8, per_row)], shape))
    spoken = rows.target_ids.reshape(len(rows.valid), -1)
    for b, g, k in np.ndindex(*rows.valid.shape):
        own = trees[rows.example_id[b, g]].responses[k]
        places = rows.response_tokens[b, g, k]
        count = int((own >= 0).sum())
        np.testing.assert_array_equal(spoken[b, places[:count]], own[own >= 0])
        assert (places[count:] == -1).all()
    assert build_rows([], dataclasses.replace(shape, branches=Branches(2))).response_tokens is None
