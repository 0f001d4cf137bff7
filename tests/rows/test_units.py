"""Units of records that begin alike: what they take together, where they are cut, and steps made of them."""

import dataclasses

import numpy as np
import pytest

from prefjax.rows.arrays import Branches, RowShape
from prefjax.rows.layout import build_rows
from prefjax.rows.packing import row_capacity, suggest_for_units, suggest_shape, unbounded
from prefjax.rows.pipeline import row_dataset
from prefjax.rows.steps import FixedPrompts, FullRows, InOrder, rows_for_prompts, sampled, simulate
from prefjax.rows.store import MemoryTrees
from prefjax.rows.trees import token_ids
from prefjax.rows.units import measure, plan_units, units_of
from tests.rows.forests import BRANCHES, related_trees
from tests.rows.test_merged import tree

FREE = np.full(5, 10**9)


def prefixes(trees) -> set[tuple[int, ...]]:
    """One for every token of the trees' trie."""
    chains = [[*tree.prompt, *token_ids(b)] for tree in trees for b in (*tree.responses, tree.baseline)]
    return {tuple(chain[:end]) for chain in chains for end in range(1, len(chain) + 1)}


@pytest.mark.parametrize("seed", range(8))
def test_what_records_take_together_is_an_independent_count_of_their_prefixes(seed):
    trees = related_trees(9, seed=seed)
    sharing = measure(trees, BRANCHES)
    assert sharing.separate == sum(len(t.prompt) + len(b) for t in trees for b in (*t.responses, t.baseline))
    units = plan_units(sharing, np.array([40, 30, 5, 60, 200]), 2)
    assert sorted(sum(units.members, ())) == list(range(9))
    for members, size in zip(units.members, units.sizes, strict=True):
        own = [trees[i] for i in members]
        tokens, scored, groups, prompt, entries = (size + [sharing.trunk, 0, 0, 0, 0]).tolist()
        assert tokens == len(prefixes(own)) and groups == len(own) and prompt == sum(len(t.prompt) for t in own)
        rows = build_rows([own], RowShape("merged", 1, tokens, scored, groups, BRANCHES, prompt, entries=entries))
        assert entries >= rows.target_weights.sum()  # what is read and not scored is counted too
        assert len(own) == 1 or (size <= [40 - sharing.trunk, 30, 5, 60, 200]).all()


def test_a_unit_that_outgrows_the_row_is_cut_where_least_is_repeated():
    """Three records begin with 1, two of them with 1 2 3 4: with room for two, those two stay together."""
    trees = [tree([1, 2, 3, 4], [5], [6]), tree([1, 9], [5], [6]), tree([1, 2, 3, 4], [7], [8]), tree([2], [5], [6])]
    sharing = measure(trees, Branches(2))
    plan = lambda tokens, merge_from: plan_units(sharing, np.array([tokens, *FREE[1:]]), merge_from).members
    assert plan(10**9, 1) == ((0, 1, 2), (3,))
    assert plan(8, 1) == ((0, 2), (1,), (3,))
    assert plan(7, 1) == ((0,), (1,), (2,), (3,))
    assert plan(10**9, 2) == plan(10**9, 4) == ((0, 2), (1,), (3,)) and len(plan(10**9, 5)) == 4


def test_what_all_records_begin_with_makes_no_unit_and_is_counted_once_a_row():
    """A system message: any records share it, so none has to stay with another for it."""
    system = [*range(50, 90)]
    trees = MemoryTrees([tree([*system, i], [40], [41]) for i in range(12)])
    shape = RowShape("merged", 2, 49, 49, 9, Branches(2), entries=99, merge_from=8)
    units = units_of(trees, shape)
    assert units.sharing.trunk == 40 and len(units) == 12 and units.largest == 43
    sampler = sampled(trees, shape, FullRows(0, epochs=1))
    assert [len(row) for step in sampler.steps() for row in step] == [3, 3, 3, 3]
    assert simulate(sampler).fill == 1.0
    for rows in row_dataset(trees, shape, FullRows(0, epochs=1), prefetch=0):
        assert (rows.segment_ids > 0).all()


SOURCE = MemoryTrees(related_trees(60, seed=4))


def shape_of(rows: int = 2) -> RowShape:
    shape = suggest_shape(SOURCE.lengths, "merged", BRANCHES, rows, prompt_rows=True, multiple=8).shape
    shape = dataclasses.replace(shape, merge_from=2)
    units = units_of(SOURCE, unbounded(shape))
    shape = suggest_for_units(shape, units.sizes, units.sharing.trunk, multiple=8)
    assert (units.sizes <= row_capacity(shape)).all() and units_of(SOURCE, shape).members == units.members
    assert len(units) < 30
    return shape


SHAPE = shape_of()


@pytest.mark.parametrize(
    "batching", [FullRows(0, epochs=3, window=20), FixedPrompts(7, seed=0, epochs=2), InOrder()], ids=repr
)
def test_steps_of_units_hold_every_record_once_an_epoch_and_go_on_where_they_stopped(batching):
    shape = SHAPE
    if isinstance(batching, FixedPrompts):
        count = rows_for_prompts(SOURCE.lengths, shape, batching, units=units_of(SOURCE, shape))
        shape = dataclasses.replace(shape, rows=count)
    iterator = iter(row_dataset(SOURCE, shape, batching, prefetch=0))
    batches, states = [], []
    while True:
        states.append(iterator.get_state())
        try:
            batches.append(next(iterator))
        except StopIteration:
            break
    ids = [rows.example_id[rows.example_id >= 0].tolist() for rows in batches]
    epochs = getattr(batching, "epochs", 1)
    assert sorted(sum(ids, [])) == sorted([*range(60)] * epochs)
    if isinstance(batching, FixedPrompts):
        assert [len(own) for own in ids] == [7] * 17 + [1]
    simulated = simulate(sampled(SOURCE, shape, batching))
    assert simulated.fill == pytest.approx(np.mean([(rows.segment_ids > 0).mean() for rows in batches]))
    again = iter(row_dataset(SOURCE, shape, batching, prefetch=0))
    again.set_state(states[2])
    np.testing.assert_array_equal(next(again).tokens, batches[2].tokens)


def test_units_take_fewer_rows_than_chance():
    steps = lambda shape: simulate(sampled(SOURCE, shape, FullRows(0, epochs=1))).steps
    alone = suggest_shape(SOURCE.lengths, "merged", BRANCHES, 2, row_length=SHAPE.row_length, prompt_rows=True).shape
    assert 1.5 * steps(SHAPE) < steps(alone)


def test_an_order_that_is_fixed_is_kept():
    batching = FullRows(None, epochs=1)
    order = [i for step in sampled(SOURCE, SHAPE, batching).steps() for i in sorted(i for row in step for i in row)]
    assert order == list(range(60))
