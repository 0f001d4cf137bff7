"""Weighted spans: read from a file, found again among the tokens, and in the rows where the tokens are scored."""

import dataclasses
import re

import numpy as np
import pytest

from prefjax.data.account import Rejection
from prefjax.data.encoding import EncodingPolicy, encode
from prefjax.data.formats import RecordFormat, parse
from prefjax.data.jsonl import to_row
from prefjax.data.records import Message, Record
from prefjax.data.spans import read_spans, token_labels
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.data.transforms import adapt
from prefjax.requirements import Requirements
from prefjax.rows.arrays import LAYOUTS, Branches, RowShape
from prefjax.rows.layout import build_rows
from prefjax.rows.parts import write_trees
from prefjax.rows.store import MemoryTrees
from tests.data.small_tokenizers import CHATML, KINDS, NO_END, WITH_BOS, small_tokenizer
from tests.rows.random_trees import random_trees

SPANS = RecordFormat(spans_field="spans")
PAIR = {"prompt": "Why?", "chosen": "yes and no", "rejected": "no to the fox"}
WEIGHTED = PAIR | {"spans": [[[0, 3, 1.0], [8, 10, -2.5]], None]}


def parsed(row, record_format=SPANS) -> Record:
    (record,) = (found for found in parse(row, "mine:1", record_format) if isinstance(found, Record))
    return record


def rejected(row) -> Rejection:
    (found,) = (found for found in parse(row, "mine:1", SPANS) if isinstance(found, Rejection))
    return found


def test_spans_are_read_in_order_and_written_back():
    record = parsed(WEIGHTED)
    assert record.spans == (((0, 3, 1.0), (8, 10, -2.5)), None)
    assert parsed(to_row(record)).spans == record.spans
    assert parsed(PAIR).spans is None
    unread = [found.detail for found in parse(WEIGHTED, "mine:1", RecordFormat()) if not isinstance(found, Record)]
    assert unread == ["spans"]
    single = {"prompt": "Why?", "completion": "yes", "label": True, "spans": [[[1, 2, 3]]]}
    assert parsed(single).spans == (((1, 2, 3.0),),)


def test_a_selection_takes_its_spans_along():
    record = parsed(WEIGHTED).select((1, 0), (1.0, 0.0), "pair")
    assert record.spans == (None, ((0, 3, 1.0), (8, 10, -2.5)))


@pytest.mark.parametrize(
    "spans,detail",
    [
        ([[[0, 11, 1.0]], None], "not a part of the response, which has 10 characters"),
        ([[[3, 3, 1.0]], None], "not a part"),
        ([[[-1, 3, 1.0]], None], "not a part"),
        ([[[0, 2.5, 1.0]], None], "not a part"),
        ([[[0, 3, 1.0], [2, 5, 1.0]], None], "a span begins at 2"),
        ([[[0, 3]], None], "three finite numbers"),
        ([[[0, 3, True]], None], "three finite numbers"),
        ([[[0, 3, float("nan")]], None], "three finite numbers"),
        ([{}, None], "list of \\[start, end, weight\\]"),
    ],
)
def test_spans_that_are_none_reject_the_row(spans, detail):
    found = rejected(PAIR | {"spans": spans})
    assert (found.reason, found.field) == ("bad_span", "spans")
    assert re.search(detail, found.detail)


def test_as_many_lists_as_responses():
    assert rejected(PAIR | {"spans": [None]}).reason == "length_mismatch"


def marked(record, tokenizer, **limits):
    tree = encode(record, tokenizer, EncodingPolicy(**limits))
    assert not isinstance(tree, Rejection), tree
    for labels in (tree.token_weight, tree.token_segment):
        assert [len(x) for x in labels] == [len(response) for response in tree.responses]
    return tree


def test_bytes_by_hand():
    """Bytes of a character that takes several are all in its span; EOS goes with the last character."""
    row = {"prompt": "Q", "chosen": "aé-z", "rejected": "no", "spans": [[[1, 2, 2.0], [3, 4, 0.5]], []]}
    tree = marked(parsed(row), ByteTokenizer())
    np.testing.assert_array_equal(tree.token_weight[0], np.float32([0, 2, 2, 0, 0.5, 0.5]))
    np.testing.assert_array_equal(tree.token_segment[0], [0, 1, 1, 0, 2, 2])
    np.testing.assert_array_equal(tree.token_weight[1], np.float32([0, 0, 0]))
    whole = marked(parsed(row | {"spans": [None, [[0, 2, 1.0]]]}), ByteTokenizer())
    for weights, segments in zip(whole.token_weight, whole.token_segment, strict=True):
        assert (weights == 1).all() and (segments == 1).all()


def test_spans_count_from_where_the_template_puts_the_text():
    """The plain template puts a space before an answer: it goes with the first character, and shifts all others."""
    chat = lambda text: (Message("assistant", text),)
    spans = (((0, 1, 1.0), (2, 3, 5.0)), None)
    record = Record((Message("user", "Q"),), (chat("abc"), chat("no")), (1.0, 0.0), "pair", spans=spans)
    tree = marked(record, ByteTokenizer())
    assert ByteTokenizer().decode(tree.responses[0]) == " abc<eos>"
    np.testing.assert_array_equal(tree.token_weight[0], np.float32([1, 1, 0, 5, 5]))


def test_a_token_belongs_to_the_span_that_holds_most_of_it():
    offsets = [(0, 4), (4, 6), (6, 7), (7, 12)]
    weights, segments = token_labels(((0, 3, 1.0), (3, 5, 2.0), (5, 6, 3.0), (8, 9, 4.0)), offsets, 12, 5)
    # The second token lies half in the second span and half in the third; the end of the turn in none.
    np.testing.assert_array_equal(weights, np.float32([1, 3, 0, 4, 0]))
    # The second span holds no token of its own: numbers stay without gaps.
    np.testing.assert_array_equal(segments, [1, 2, 0, 3, 0])
    trimmed, numbers = token_labels(((0, 3, 1.0), (8, 9, 4.0)), offsets, 12, 2)
    np.testing.assert_array_equal(trimmed, np.float32([1, 0]))
    np.testing.assert_array_equal(numbers, [1, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [None, CHATML, WITH_BOS, NO_END])
def test_the_tokens_of_a_span_spell_it(kind, template, tmp_path):
    """Through chat templates that put text before and after the response, and tokenizers that mark beginnings."""
    tokenizer = small_tokenizer(tmp_path, template or CHATML, kind)
    texts = [PAIR["chosen"], PAIR["rejected"]]
    responses = tuple((Message("assistant", text),) if template else text for text in texts)
    prompt = (Message("user", "hello"),) if template else "hello"
    # "and" of the first; of the second "fox", and everything before it.
    spans = (((4, 7, 2.0),), ((0, 10, 0.25), (10, 13, 4.0)))
    tree = marked(Record(prompt, responses, (1.0, 0.0), "pair", spans=spans), tokenizer)
    inside = lambda k, number: tokenizer.decode(tree.responses[k][tree.token_segment[k] == number]).strip()
    assert inside(0, 1) == "and"
    assert inside(1, 1).replace(" ", "") == "notothe"
    assert inside(1, 2).startswith("fox")
    assert tree.token_segment[1].all() and tree.token_segment[1][-1] == 2, "the end goes with the last character"
    np.testing.assert_array_equal(tree.token_weight[1], np.where(tree.token_segment[1] == 2, 4, 0.25))


def test_a_template_that_changes_the_text_is_refused(tmp_path):
    tokenizer = small_tokenizer(tmp_path, CHATML.replace("m.content", "m.content | upper"))
    response = lambda text: (Message("assistant", text),)
    prompt = (Message("user", "HELLO"),)
    record = Record(prompt, (response("yes"), response("no")), (1.0, 0.0), "pair", spans=(((0, 2, 1.0),), None))
    found = encode(record, tokenizer)
    assert (found.reason, found.field) == ("unlocated_span", "chosen")
    nothing = encode(dataclasses.replace(record, spans=(None, None)), tokenizer)
    assert all((weights == 1).all() for weights in nothing.token_weight)


def test_trimmed_responses_keep_the_labels_of_what_is_left():
    tree = marked(parsed(WEIGHTED), ByteTokenizer(), max_response_length=9, truncation="trim_responses")
    np.testing.assert_array_equal(tree.token_weight[0], np.float32([1, 1, 1, 0, 0, 0, 0, 0, -2.5]))


def test_a_record_without_spans_is_rejected_where_they_are_read():
    records, account = adapt([parsed(WEIGHTED), parsed(PAIR)], Requirements(2, inputs=frozenset({"token_weight"})))
    assert [record.spans is not None for record in records] == [True]
    assert "missing_field" in str(account) and "spans" in str(account)


def with_labels(trees, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda tree, make: tuple(make(len(response)) for response in tree.responses)
    return [
        dataclasses.replace(
            tree,
            token_weight=draw(tree, lambda n: rng.normal(size=n).astype(np.float32)),
            token_segment=draw(tree, lambda n: np.cumsum(rng.random(n) < 0.5).astype(np.int32)),
        )
        for tree in trees
    ]


def test_labels_are_stored_and_part_of_the_content(tmp_path):
    trees = random_trees(6)
    marked_trees = [*with_labels(trees[:4]), *trees[4:]]
    stored, memory = write_trees(tmp_path / "trees", marked_trees, manifest={}), MemoryTrees(marked_trees)
    assert stored.content_hash == memory.content_hash != MemoryTrees(trees).content_hash
    for name in ("token_weight", "token_segment"):
        changed = dataclasses.replace(marked_trees[0], **{name: tuple(x + 1 for x in getattr(marked_trees[0], name))})
        assert memory.content_hash != MemoryTrees([changed, *marked_trees[1:]]).content_hash, name
    for index, tree in enumerate(marked_trees):
        for source in (stored, memory):
            for name in ("token_weight", "token_segment"):
                got, given = getattr(source[index], name), getattr(tree, name)
                assert (got is None) == (given is None)
                for a, b in zip(got or (), given or (), strict=True):
                    np.testing.assert_array_equal(a, b)
                    assert a.dtype == b.dtype


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_carry_every_label_beside_its_token(layout):
    branches, packed = (
        Branches(3, baseline=True, auxiliary=True, longest=9),
        layout.endswith(("packed", "packed_pairs")),
    )
    trees = with_labels(random_trees(7))
    groups = 3 if packed else 1
    labels = ("token_weight", "token_segment")
    shape = RowShape(layout, 7, 300, 300, groups, branches, carries=labels, entries=300)
    rows = build_rows([trees[i : i + groups] for i in range(0, len(trees), groups)], shape)
    copies, seen = len(rows.tokens) // 7, 0
    for row, slot in np.ndindex(len(rows.tokens), groups * branches.count):
        here = (rows.response_slots[row] == slot) & (rows.target_weights[row] != 0)
        group, branch = divmod(slot, branches.count)
        example = rows.example_id[row // copies, group]
        if not here.any():
            continue
        for name in labels:
            found = getattr(rows, name)[row][here]
            expected = getattr(trees[example], name)[branch] if branch < 3 else np.zeros(len(found))
            np.testing.assert_array_equal(found, expected)
        seen += branch < 3
    assert seen == sum(len(tree.responses) for tree in trees)
    assert not rows.token_weight[rows.target_weights == 0].any()
    assert build_rows([trees[:groups]], dataclasses.replace(shape, carries=())).token_weight is None
    with pytest.raises(ValueError, match="example 0 has no token_weight, but shape.carries asks for it"):
        build_rows([random_trees(7)[:groups]], shape)


def test_a_response_longer_than_the_longest_is_refused():
    shape = RowShape("shared", 1, 300, 300, 1, Branches(3, longest=2))
    with pytest.raises(ValueError, match="response of [3-9] tokens, but branches.longest is 2: raise it"):
        build_rows([[next(tree for tree in random_trees(7) if max(map(len, tree.responses)) > 2)]], shape)


def test_spans_know_their_text():
    assert read_spans([[2, 4, 1], [0, 2, 0]], 4) == ((0, 2, 0.0), (2, 4, 1.0))
    assert read_spans(None, 4) is None and read_spans([], 4) == ()
