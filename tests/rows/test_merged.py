"""Layout `merged`: whatever a row's prompts and responses share from their start stands in it once."""

import dataclasses

import numpy as np
import pytest

from prefjax.rows.arrays import Branches, RowShape
from prefjax.rows.layout import build_rows
from prefjax.rows.trees import TokenTree
from prefjax.rows.tries import merge
from tests.rows.forests import BRANCHES, check_row, merged_row, related_trees


@pytest.mark.parametrize("count", [1, 4, 12])
def test_random_forests_are_spelled_scored_and_merged(count):
    """python -m tests.rows.forests 10000 does the same for many more."""
    for seed in range(20):
        trees = related_trees(count, seed=1000 * count + seed)
        check_row(trees, merged_row(trees))


@pytest.mark.parametrize("field", ["tokens", "target_ids", "predictors", "visible_until", "response_ends", "entries"])
def test_the_check_of_forests_sees_what_is_wrong(field):
    trees = related_trees(6, seed=3)
    rows = merged_row(trees)
    changed = getattr(rows, field).copy()
    changed.flat[0] += 1
    with pytest.raises(AssertionError):
        check_row(trees, rows._replace(**{field: changed}))


def tree(prompt: list[int], *responses: list[int], **changes) -> TokenTree:
    """A pair or a ranking of these ids, best first."""
    targets = np.arange(len(responses))[::-1].astype(np.float32)
    made = TokenTree(np.array(prompt, np.int32), tuple(np.array(r, np.int32) for r in responses), targets, example_id=0)
    return dataclasses.replace(made, **changes)


def test_two_turns_of_a_dialogue_are_one_tree():
    """The second prompt continues the first one's chosen response, and its responses begin alike."""
    first, second = tree([1, 2], [3, 4], [5]), tree([1, 2, 3, 4, 6], [7, 8], [7, 9])
    rows = build_rows([[first, second]], RowShape("merged", 1, 10, 8, 2, Branches(2), entries=8))
    assert rows.tokens[0].tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 5, 0]
    assert rows.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 2, 0]
    assert rows.visible_until[0].tolist() == [9, 9, 8, 8, 8, 8, 7, 8, 9, 10]
    assert rows.segment_ids[0].tolist() == [1, 1, 2, 2, 3, 4, 5, 6, 7, 0]
    assert rows.scored[0].sum() == 6 and rows.target_weights[0].sum() == 7  # token 7 is of two responses
    assert rows.target_ids[0, :6].tolist() == [3, 4, 7, 8, 9, 5] and rows.predictors[0, :6].tolist() == [
        1,
        2,
        4,
        5,
        5,
        1,
    ]
    assert rows.entries[0, :7].tolist() == [0, 1, 5, 2, 3, 2, 4]
    assert rows.response_slots[0, :7].tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert rows.prompt_ends[0].tolist() == [1, 4] and rows.response_ends[0].tolist() == [[3, 8], [6, 7]]


def test_a_token_that_is_read_by_one_and_scored_by_another_is_scored_for_that_one_alone():
    read, scored = tree([1], [2, ~3, 4], [5]), tree([1], [2, 3, 4], [6])
    rows = build_rows([[read, scored]], RowShape("merged", 1, 9, 9, 2, Branches(2), entries=9))
    of = lambda slot: rows.target_ids[
        0, rows.entries[0, (rows.response_slots[0] == slot) & (rows.target_weights[0] > 0)]
    ]
    assert [of(slot).tolist() for slot in range(4)] == [[2, 4], [5], [2, 3, 4], [6]]
    assert rows.tokens[0].tolist() == [1, 2, 3, 4, 5, 6, 0, 0, 0]


def test_what_is_said_of_tokens_stays_with_the_response():
    weights = [tuple(np.full(2, w + k, np.float32) for k in (0, 1)) for w in (1, 3)]
    trees = [tree([1], [2, 3], [2, 4], token_weight=own) for own in weights]
    shape = RowShape("merged", 1, 9, 9, 2, Branches(2), carries=("token_weight",), entries=9)
    rows = build_rows([trees], shape)
    assert rows.token_weight[0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 0] and rows.scored[0].sum() == 3


def test_a_changed_token_changes_the_entries_of_the_responses_that_hold_it_alone():
    trees = related_trees(6, seed=5)

    def spoken(trees):
        rows = merged_row(trees)
        weights, ids = rows.target_weights[0] > 0, rows.target_ids[0, rows.entries[0]]
        count = len(trees) * BRANCHES.count
        return [ids[weights & (rows.response_slots[0] == slot)].tolist() for slot in range(count)]

    before, chosen = spoken(trees), trees[2].responses[0].copy()
    chosen[-1] = 7 if chosen[-1] >= 0 else ~7
    responses = (chosen, *trees[2].responses[1:])
    after = spoken([dataclasses.replace(t, responses=responses) if t.example_id == 2 else t for t in trees])
    scored_last = trees[2].responses[0][-1] >= 0
    differing = [slot for slot, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert scored_last and differing == [2 * BRANCHES.count]


@pytest.mark.parametrize("field", ["row_length", "scored_length", "entries", "groups"])
def test_what_does_not_fit_is_refused_by_name(field):
    shape = RowShape("merged", 1, 99, 99, 2, Branches(2), entries=99)
    with pytest.raises(ValueError, match=f"needs {field} >= "):
        build_rows([[tree([1], [2, 3], [2, 4])] * 2], dataclasses.replace(shape, **{field: 1}))


def test_nothing_merged_is_a_forest_of_chains():
    trie = merge([np.array([1, 2, 3]), np.array([4])], [2, 1])
    assert trie.tokens.tolist() == [1, 2, 3, 4] and trie.before.tolist() == [-1, 0, 1, -1]
    assert trie.lengths.tolist() == [2, 1, 1] and trie.parents.tolist() == [-1, 0, -1]
