"""Numbers, labels, lists and messages as people write them: by the declared rules, counted, or refused by name."""

import decimal
import json

import pytest

from prefjax.data.account import Rejection
from prefjax.data.formats import Columns, RecordFormat, parse
from prefjax.data.records import Message, Record
from prefjax.data.spellings import cell, nearest

ONE = {"prompt": "p", "completion": "c"}
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
CHAT = [{"role": "user", "content": "Hi"}]


def read(row, record_format=None, **more):
    """(record or None, reasons found, details)."""
    items = list(parse(row, "f:1", record_format, Columns(**more)))
    record = next((item for item in items if isinstance(item, Record)), None)
    findings = [item for item in items if not isinstance(item, Record)]
    return record, [item.reason for item in findings], [item.detail for item in findings]


@pytest.mark.parametrize(
    "value, number",
    [("4.5", 4.5), (" -1e-3 ", -1e-3), ("+.5", 0.5), ("7", 7.0), (decimal.Decimal("1.10"), 1.1), ("0", 0.0)],
)
def test_numbers(value, number):
    record, reasons, _ = read(ONE | {"reward": value})
    assert record.targets == (number,) and reasons == [
        "decimal" if value == decimal.Decimal("1.10") else "number_as_text"
    ]
    record, reasons, _ = read({"prompt": "p", "completions": ["a", "b"], "scores": [value, 1]})
    assert record.targets == (number, 1.0) and len(reasons) == 1
    record, reasons, _ = read(
        PAIR | {"score_chosen": 9, "score_rejected": value, "m": value}, RecordFormat(margin_field="m")
    )
    assert record.scores == (9.0, number) and record.margin == number and len(reasons) == 1, "once for each record"


@pytest.mark.parametrize(
    "value, reason",
    [("4,5", "wrong_type"), ("nan", "wrong_type"), ("", "wrong_type"), ("1e999", "not_finite"), ("٣", "wrong_type"),
     (decimal.Decimal("NaN"), "not_finite"), (decimal.Decimal("sNaN"), "not_finite"),
     (decimal.Decimal("1e400"), "not_finite"), ("4/5", "wrong_type"), (True, "wrong_type"), ("0x1", "wrong_type")],
)  # fmt: skip
def test_what_is_no_number(value, reason):
    record, reasons, details = read(ONE | {"reward": value})
    assert record is None and reasons == [reason]
    if value == "4,5":
        assert details == ["must be a number, got the text '4,5'"]


def test_labels():
    for value in (True, 1, 1.0, "true", "TRUE", " Yes ", "y", "t", "1", "1.0", decimal.Decimal(1)):
        record, reasons, _ = read(ONE | {"label": value})
        assert record.targets == (1.0,) and reasons == {str: ["number_as_text"], decimal.Decimal: ["decimal"]}.get(
            type(value), []
        )
    for value in (False, 0, "false", "No", "n", "F", "0", "0.0"):
        assert read(ONE | {"label": value})[0].targets == (0.0,)
    for value in ("good", -1, "", 2, "nan", [], 10**400, float("nan"), "1" * 5000):
        record, reasons, details = read(ONE | {"label": value})
        assert record is None and reasons == ["bad_label"] and "true_labels" in details[0]
    own = RecordFormat(true_labels=("Good",), false_labels=("-1", "bad"))
    assert [read(ONE | {"label": value}, own)[0].targets for value in ("gOOd", -1, "-1.0", "bad", True)] == [
        (1.0,), (0.0,), (0.0,), (0.0,), (1.0,),
    ]  # fmt: skip
    assert read(ONE | {"label": "yes"}, own)[0] is None
    with pytest.raises(ValueError, match="true_labels and false_labels both have no$"):
        RecordFormat(true_labels=("NO",))


def test_messages_and_lists_as_text():
    record, reasons, _ = read(ONE | {"prompt": json.dumps(CHAT)})
    assert record.prompt == (Message("user", "Hi"),) and reasons == ["json_as_text"]
    ranked = {"prompt": "p", "completions": json.dumps(["a", json.dumps(CHAT[:0]), "[1]"]), "scores": "[1, 2, 3]"}
    record, reasons, _ = read(ranked)
    assert record.responses == ("a", "[]", "[1]") and record.targets == (1.0, 2.0, 3.0) and reasons == ["json_as_text"]
    record, _, _ = read(PAIR | {"s": "[[[0, 1, 2.0]], null]"}, RecordFormat(spans_field="s"))
    assert record.spans == (((0, 1, 2.0),), None)
    # Text that is none of it stays text.
    for text in ("[1, 2]", "[", '[{"a": 1}]', "[]", '["role"]', "[" * 9000, "[{'a': 1}]", '[{"role": "user"}, 1]'):
        record, reasons, _ = read(ONE | {"prompt": text})
        assert record.prompt == text and not reasons
    record, reasons, details = read(ONE | {"prompt": str(CHAT)})
    assert record is None and reasons == ["wrong_type"] and "json.dumps" in details[0]


def test_messages_by_columns():
    record, reasons, _ = read(ONE | {"prompt": {"role": ["system", "user"], "content": ["s", "Hi"]}})
    assert record.prompt == (Message("system", "s"), Message("user", "Hi")) and reasons == ["messages_by_column"]
    turns = {"role": ["user"], "content": ["Hi"], "name": None}
    assert read(ONE | {"prompt": turns})[0].prompt == (Message("user", "Hi"),), "null, as Arrow adds it, is no column"
    for wrong in ({}, {"role": ["user"], "content": []}, {"role": "user", "content": ["Hi"]}):
        assert read(ONE | {"prompt": wrong})[0] is None


def test_decimals_of_columns_that_methods_read_are_numbers_too():
    record, _, _ = read(ONE | {"difficulty": decimal.Decimal("0.25")}, record=("difficulty",))
    assert record.columns == {"difficulty": 0.25}


def test_the_nearest_name_is_said():
    assert read({"prompt": "p", "choosen": "a", "rejected": "b"})[2] == ["the row has choosen: did you mean chosen?"]
    assert read({"Prompt": "p", "Completion": "a"})[2][0].startswith("the row has Completion: did you mean completion?")
    assert "this one has answer, question" in read({"question": "p", "answer": "a"})[2][0]
    assert read(PAIR | {"score-choosen": 1, "id": 3})[2] == ["id, score-choosen (did you mean score_chosen?)"]
    assert read(PAIR, RecordFormat(auxiliary_field="y_ref"))[2] == [""]
    assert read(PAIR | {"yref": "a"}, RecordFormat(auxiliary_field="y_ref"))[2] == [
        "the row has yref: did you mean y_ref?"
    ]
    assert nearest("prompt", [3, "promt"]) == "promt" and nearest("prompt", ["completion"]) == ""
    items = list(parse({"prompt": "p", "completion": None}, "f:1"))
    assert [type(item) for item in items] == [Rejection]


def test_cells_of_a_table_that_nothing_is_said_of():
    assert [cell(value) for value in ("1.5", "[1, 2]", "[a", "word", None, "007 b")] == [
        1.5, [1, 2], "[a", "word", None, "007 b",
    ]  # fmt: skip
