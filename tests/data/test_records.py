"""Rows become records: every accepted shape, every reason to refuse one, and the split of an implicit prompt."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefjax.data.account import Account, Finding, Notice, Rejection, collect
from prefjax.data.boundaries import split_messages, split_text
from prefjax.data.formats import RecordFormat, parse
from prefjax.data.records import Message, Record, inspect

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "Go away"}


def read(row, **options) -> tuple[Record | None, list[Finding]]:
    results = list(parse(row, "f.jsonl:7", RecordFormat(**options)))
    records = [result for result in results if isinstance(result, Record)]
    return (records[0] if records else None), [result for result in results if isinstance(result, Finding)]


def accept(row, **options) -> Record:
    record, findings = read(row, **options)
    assert record is not None, findings
    return record


def reasons(row, **options) -> list[str]:
    """Reasons of the rejections of a row that must be refused."""
    record, findings = read(row, **options)
    assert record is None
    return [finding.reason for finding in findings if isinstance(finding, Rejection)]


def chat(*turns: str) -> list[dict]:
    """chat("u:Hi", "a:Hello")"""
    return [{"role": {"u": "user", "a": "assistant", "s": "system"}[t[0]], "content": t[2:]} for t in turns]


# Shapes


@pytest.mark.parametrize("explicit", [True, False])
def test_conversational_pair(explicit):
    row = {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}
    if not explicit:
        row = {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}
    record = accept(row)
    assert record.prompt == (Message("user", "Hi"),)
    assert record.responses == ((Message("assistant", "Hello"),), (Message("assistant", "Go away"),))
    assert (record.targets, record.kind, record.scores, record.source) == ((1.0, 0.0), "pair", None, "f.jsonl:7")


def test_standard_pair_with_scores_and_weight():
    row = {"prompt": "Hi", "chosen": " yes", "rejected": " no", "score_chosen": 9, "score_rejected": 7.5, "weight": 2}
    record = accept(row)
    assert (record.prompt, record.responses) == ("Hi", (" yes", " no"))
    assert (record.targets, record.scores, record.weight) == ((1.0, 0.0), (9.0, 7.5), 2.0)


@pytest.mark.parametrize("label, target", [(True, 1.0), (False, 0.0), (1, 1.0), (0.0, 0.0)])
def test_unpaired_label(label, target):
    record = accept({"prompt": "Hi", "completion": " yes", "label": label})
    assert (record.kind, record.targets, record.responses) == ("unpaired", (target,), (" yes",))


def test_unpaired_reward_and_demonstration():
    record = accept({"prompt": "Hi", "completion": " yes", "reward": -0.3})
    assert (record.kind, record.targets, record.scores) == ("unpaired", (-0.3,), (-0.3,))
    both = accept({"prompt": "Hi", "completion": " yes", "reward": -0.3, "label": True})
    assert (both.targets, both.scores) == ((1.0,), (-0.3,))
    assert accept({"prompt": "Hi", "completion": " yes"}).kind == "demonstration"


def test_ranked_texts_under_a_chat_are_assistant_turns():
    record = accept({"prompt": [USER], "completions": ["a", "b", "c"], "scores": [0, -1, -2]})
    assert record.kind == "ranked" and record.targets == record.scores == (0.0, -1.0, -2.0)
    assert record.responses[2] == (Message("assistant", "c"),)


def test_whole_conversations_beside_a_prompt_lose_it():
    record, findings = read({"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]})
    assert record == accept({"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]})
    assert [finding.reason for finding in findings] == ["prompt_repeated"]


def test_auxiliary_field():
    row = {"chosen": [USER, ANSWER], "rejected": [USER, OTHER], "sft": "Welcome"}
    assert accept(row, auxiliary_field="sft").auxiliary == (Message("assistant", "Welcome"),)
    assert accept({**row, "sft": [USER, ANSWER]}, auxiliary_field="sft").auxiliary == (Message("assistant", "Hello"),)
    record, findings = read(row)
    assert record.auxiliary is None and [(f.reason, f.detail) for f in findings] == [("unread_column", "sft")]
    assert reasons({**row, "sft": None}, auxiliary_field="sft") == ["missing_field"]
    assert reasons({**row, "sft": " "}, auxiliary_field="sft") == ["empty_response"]
    with pytest.raises(ValueError, match="has another meaning"):
        RecordFormat(auxiliary_field="chosen")


def test_margin_and_probability_come_from_the_columns_the_format_names():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "gap": 2, "p_chosen": 0.75}
    named = dict(margin_field="gap", target_probability_field="p_chosen")
    record = accept(row, **named)
    assert (record.margin, record.target_probability) == (2.0, 0.75)
    record, findings = read(row, margin_field="gap")
    assert record.target_probability is None and [(f.reason, f.detail) for f in findings] == [
        ("unread_column", "p_chosen")
    ]
    assert accept({**row, "gap": None}, **named).margin is None  # whether it must be there, the objective says
    assert reasons({**row, "gap": "wide"}, **named) == ["wrong_type"]
    assert reasons({**row, "gap": math.inf}, **named) == ["not_finite"]
    assert reasons({**row, "p_chosen": 1.5}, **named) == ["bad_probability"]
    ranked, findings = read({"prompt": "p", "completions": ["a", "b"], "scores": [1, 0], "gap": 2}, **named)
    assert ranked.margin is None and [f.reason for f in findings] == ["unread_column"]
    for clash in (dict(margin_field="chosen"), dict(margin_field="x", target_probability_field="x")):
        with pytest.raises(ValueError, match="has another meaning"):
            RecordFormat(**clash)


def test_only_a_pair_has_a_margin_and_its_selections_have_none():
    pair = Record("p", ("a", "b"), (1.0, 0.0), "pair", margin=1.0, target_probability=0.9)
    chosen = pair.select((0,), (1.0,), "demonstration")
    assert chosen.margin is None and chosen.target_probability is None
    with pytest.raises(ValueError, match="only a pair has margin"):
        Record("p", ("a", "b"), (1.0, 0.0), "ranked", margin=1.0)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        Record("p", ("a", "b"), (1.0, 0.0), "pair", target_probability=-0.1)


# Implicit prompts


HH = "\n\nHuman: hi\n\nAssistant: yo\n\nHuman: more\n\nAssistant:"


@pytest.mark.parametrize(
    "chosen, rejected, boundaries, prompt",
    [
        (HH + " yes", HH + " no", ["\n\nAssistant:"], HH),
        (HH + " yes", HH + " yes!", ["\n\nAssistant:"], HH),  # shared response characters stay in the response
        (HH + " a\n\nAssistant: b", HH + " a\n\nAssistant: c", ["\n\nAssistant:"], HH + " a\n\nAssistant:"),
        (HH + " a\n\nHuman: b\n\nAssistant: c", HH + " a", ["\n\nAssistant:"], HH),  # one is a prefix of the other
        ("Q: hi A: yes, sure", "Q: hi A: yes", ["A:"], "Q: hi A:"),
        ("Q: hi A: yes, sure", "Q: hi A: yes", ["\n\nAssistant:"], None),
        ("blue ", "red ", ["\n\nAssistant:", " "], None),  # only the ends are alike
        ("x|a y", "x|b y", ["|", "x"], "x|"),  # the last boundary, whichever it is
        ("x A", "x B", ["x A"], None),  # a boundary must lie inside the common prefix
    ],
)
def test_split_text(chosen, rejected, boundaries, prompt):
    length = split_text(chosen, rejected, boundaries)
    assert (None if length is None else chosen[:length]) == prompt
    assert split_text(rejected, chosen, boundaries) == length


def test_implicit_text_rows():
    row = {"chosen": "Q: hi A: yes, sure", "rejected": "Q: hi A: yes"}
    record = accept(row, boundaries=("A:",))
    assert (record.prompt, record.responses) == ("Q: hi A:", (" yes, sure", " yes"))
    assert reasons(row) == ["no_boundary"]
    assert reasons({"chosen": "blue ", "rejected": "red "}) == ["no_boundary"]
    assert reasons({"chosen": HH + " yes", "rejected": HH + " yes"}) == ["identical_responses"]
    assert reasons({"chosen": HH + " yes", "rejected": HH}) == ["empty_response"]
    assert reasons(row, boundaries=()) == ["no_boundary"]
    record, findings = read({"chosen": HH + " a\n\nHuman: b\n\nAssistant: c", "rejected": HH + " d"})
    assert record.prompt == HH and [finding.reason for finding in findings] == ["several_messages"]


@pytest.mark.parametrize(
    "chosen, rejected, length",
    [
        (["u:q", "a:x"], ["u:q", "a:y"], 1),
        (["s:s", "u:q", "a:x", "u:r", "a:z"], ["s:s", "u:q", "a:x", "u:r", "a:w"], 4),
        (["u:q", "a:x"], ["u:q", "a:x"], 1),  # equal
        (["u:q", "a:x", "u:r", "a:z"], ["u:q", "a:x"], 1),  # one is a prefix of the other
        (["u:q", "a:x", "u:r", "a:z"], ["u:q", "a:x", "u:other", "a:z"], 1),  # they part at a user's turn
        (["u:q", "a:x"], ["u:p", "a:x"], None),
        (["a:x"], ["a:y"], None),
        (["u:q"], ["u:q"], None),
        (["u:q", "a:x"], ["u:q"], None),
        ([], ["u:q", "a:x"], None),
    ],
)
def test_split_messages(chosen, rejected, length):
    sides = [tuple(Message(**turn) for turn in chat(*side)) for side in (chosen, rejected)]
    assert split_messages(*sides) == length
    assert split_messages(*reversed(sides)) == length


@given(st.text(max_size=30), st.text(max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_split_text_is_common_and_ends_in_a_boundary(a, b, boundaries):
    length = split_text(a, b, boundaries)
    if length is not None:
        assert a[:length] == b[:length] and a[:length].endswith(tuple(boundaries))


# Refusals


@pytest.mark.parametrize(
    "row, expected",
    [
        ("not an object", ["wrong_type"]),
        ({}, ["missing_field"]),
        ({"prompt": "p"}, ["missing_field"]),
        ({"prompt": "p", "chosen": "a"}, ["missing_field"]),
        ({"prompt": "p", "rejected": "a"}, ["missing_field"]),
        ({"prompt": "p", "chosen": "a", "rejected": None}, ["missing_field"]),
        ({"completion": "a", "label": True}, ["missing_field"]),
        ({"completions": ["a"], "scores": [1.0]}, ["missing_field"]),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "completion": "c"}, ["ambiguous_shape"]),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, ["wrong_type"]),
        ({"prompt": "p", "chosen": "a", "rejected": "b\ud83d"}, ["wrong_type"]),
        ({"prompt": {"role": "user"}, "chosen": "a", "rejected": "b"}, ["missing_field"]),
        ({"prompt": ["p"], "chosen": "a", "rejected": "b"}, ["wrong_type"]),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, ["missing_field"]),
        ({"prompt": [{"from": "human"}], "chosen": "a", "rejected": "b"}, ["missing_field"]),
        ({"prompt": [{"role": "user", "content": ["p"]}], "chosen": "a", "rejected": "b"}, ["wrong_type"]),
        ({"prompt": [{**USER, "tool_calls": ["f"]}], "chosen": "a", "rejected": "b"}, ["bad_tools"]),
        ({"chosen": "a", "rejected": [ANSWER]}, ["wrong_type"]),
        ({"chosen": [USER, ANSWER], "rejected": [ANSWER]}, ["no_boundary"]),
        ({"prompt": [USER], "chosen": [USER], "rejected": [ANSWER]}, ["empty_response"]),  # nothing but the prompt
        ({"prompt": "p", "chosen": [USER, ANSWER], "rejected": [ANSWER]}, ["bad_role"]),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, ["empty_prompt"]),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, ["empty_prompt"]),
        ({"prompt": "p", "chosen": "a", "rejected": " \n"}, ["empty_response"]),
        ({"prompt": "p", "chosen": [], "rejected": "b"}, ["empty_response"]),
        ({"prompt": "p", "chosen": chat("a:x", "u:y", "a: "), "rejected": "b"}, ["empty_response"]),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, ["identical_responses"]),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 1.0}, ["tie"]),
        (
            {"prompt": "p", "chosen": "a", "rejected": "a", "score_chosen": 1, "score_rejected": 1},
            ["identical_responses", "tie"],
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1}, ["missing_field"]),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": True, "score_rejected": 0}, ["wrong_type"]),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": float("nan"), "score_rejected": 0},
            ["not_finite"],
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "weight": -1}, ["bad_weight"]),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "weight": "1,0"}, ["wrong_type"]),
        ({"prompt": "p", "completion": "a", "label": "so so"}, ["bad_label"]),
        ({"prompt": "p", "completion": "a", "label": 2}, ["bad_label"]),
        ({"prompt": "p", "completion": "a", "reward": float("inf")}, ["not_finite"]),
        ({"prompt": "p", "completion": "", "label": True}, ["empty_response"]),
        ({"prompt": "p", "completions": ["a", "b"]}, ["missing_field"]),
        ({"prompt": "p", "completions": "ab", "scores": [1, 2]}, ["wrong_type"]),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1]}, ["length_mismatch"]),
        ({"prompt": "p", "completions": [], "scores": []}, ["empty_response"]),
        ({"prompt": "p", "completions": ["a", None], "scores": [1, 2]}, ["missing_field"]),
        ({"prompt": "p", "completions": ["a", ""], "scores": [1, 2]}, ["empty_response"]),
        ({"prompt": "p", "completions": ["a", "a"], "scores": [1, 2]}, ["identical_responses"]),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1, None]}, ["missing_field"]),
    ],
)
def test_refusals(row, expected):
    assert reasons(row) == expected


def test_a_rejection_names_file_line_field_and_reason():
    _, (finding,) = read({"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 1})
    assert finding == Rejection("tie", "f.jsonl:7", "score_rejected", "both 1")
    assert str(finding) == "f.jsonl:7:score_rejected: both 1"
    _, (finding,) = read({"prompt": "p", "completions": ["a", "b"], "scores": ["1,0", 2]})
    assert finding.field == "scores[0]"


def test_ties_may_be_kept_and_are_counted_all_the_same():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 1}
    record, findings = read(row, ties="keep")
    assert record.scores == (1.0, 1.0) and findings == [Notice("tie", "f.jsonl:7", "score_rejected", "both 1")]
    with pytest.raises(ValueError, match="ties"):
        RecordFormat(ties="maybe")
    for boundaries in ("\n\nAssistant:", ("\n\nAssistant:", "")):
        with pytest.raises(Exception, match="boundaries"):
            RecordFormat(boundaries=boundaries)


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"prompt": chat("u:a", "u:b"), "chosen": "x", "rejected": "y"}, ["consecutive_roles"]),
        ({"prompt": chat("u:a", "a:b"), "chosen": "x", "rejected": "y"}, ["consecutive_roles"]),
        (
            {"prompt": chat("u:a"), "chosen": chat("a:x", "a:z"), "rejected": "y"},
            ["consecutive_roles", "several_messages"],
        ),
        ({"prompt": chat("s: ", "u:a"), "chosen": "x", "rejected": chat("a:y")}, ["blank_message"]),
        ({"prompt": "p", "chosen": "p yes", "rejected": "no"}, ["prompt_repeated"]),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2},
            ["contradicting_scores"],
        ),
        ({"prompt": "p", "completions": ["a", "b", "a"], "scores": [1, 2, 1]}, ["duplicate_responses"]),
        ({"prompt": "p", "completions": ["a", "b"], "scores": [1, 1]}, ["all_scores_equal"]),
        ({"prompt": "p", "completions": ["a"], "scores": [1]}, []),
        ({"prompt": "p", "completion": "a", "wieght": 2, "id": 3, "n": None}, ["unread_column"]),
    ],
)
def test_notices_keep_the_record(row, expected):
    record, findings = read(row)
    assert record is not None and [finding.reason for finding in findings] == expected
    assert all(isinstance(finding, Notice) for finding in findings)


@pytest.mark.parametrize(
    "broken",
    [
        {"kind": "triple"},
        {"responses": ("a",), "targets": (1.0,)},
        {"kind": "unpaired"},
        {"targets": (1.0,)},
        {"scores": (1.0,)},
        {"prompt": (Message("user", "p"),)},
        {"kind": "ranked", "responses": (), "targets": ()},
    ],
)
def test_records_made_in_memory_are_checked(broken):
    whole = {"prompt": "p", "responses": ("a", "b"), "targets": (1.0, 0.0), "kind": "pair"}
    assert list(inspect(Record(**whole))) == []
    with pytest.raises(ValueError):
        Record(**(whole | broken))


# Counting


def counted(rows) -> Account:
    return collect("read", enumerate(rows), lambda row: parse(row[1], f"f:{row[0]}", RecordFormat()))[1]


TIED = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 1}
SAME = {**TIED, "rejected": "a"}
GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


def test_every_record_is_charged_once_and_overlaps_are_found():
    stage = counted([TIED, SAME, GOOD, SAME])["read"]
    assert (stage.read, stage.kept, stage.outputs) == (4, 1, 1)
    assert stage.dropped == {"tie": 1, "identical_responses": 2} and sum(stage.dropped.values()) == 3
    assert stage.found == {"tie": 3, "identical_responses": 2}


def test_accounts_add_up_and_print_a_table():
    first, second = counted([TIED, GOOD]), counted([GOOD, SAME, SAME, SAME, SAME])
    whole = counted([TIED, GOOD, GOOD, SAME, SAME, SAME, SAME])
    both = first + second
    assert both["read"].found == whole["read"].found and both["read"].dropped == whole["read"].dropped
    assert (both["read"].read, both["read"].kept) == (7, 2)
    assert len(both["read"].examples["identical_responses"]) == 3
    assert list((first + Account()).stages) == ["read"] and first["read"].read == 2
    lines = str(both).splitlines()
    assert lines[0] == "read: 7 in, kept 2, dropped 5"
    assert any(line.split()[:3] == ["tie", "5", "1"] for line in lines)
    assert any("f:1:rejected" in line for line in lines)
    assert both.as_dict()["read"]["dropped"] == {"tie": 1, "identical_responses": 4}


def test_nothing_goes_missing_uncounted():
    with pytest.raises(AssertionError):
        collect("stage", [1], lambda item: [])
    with pytest.raises(AssertionError):
        collect("stage", [1], lambda item: [Notice("tie", "f:1")])
    with pytest.raises(AssertionError):
        collect("stage", [1], lambda item: [item, Rejection("tie", "f:1")])
    with pytest.raises(ValueError, match="unknown reason"):
        Notice("no such reason", "f:1")
