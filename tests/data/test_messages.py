"""Messages as people publish them: what is read, what is counted, what is refused by name."""

import json
import re

import pytest

from prefjax.data.account import Finding, Rejection
from prefjax.data.formats import RecordFormat, parse
from prefjax.data.jsonl import to_row
from prefjax.data.records import THOUGHT, Message, Record
from tests.documents import ROOT

ASK, SAY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
NO = [{"role": "assistant", "content": "no"}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"city": "Oslo", "expression": None}}}


def read(row, **options) -> tuple[Record | None, dict[str, str]]:
    """The record, and reason -> place of all that was found."""
    items = list(parse(row, "f:1", RecordFormat(**options)))
    found = {item.reason: f"{item.field}: {item.detail}" for item in items if isinstance(item, Finding)}
    return next((item for item in items if isinstance(item, Record)), None), found


def pair(prompt=(ASK,), chosen=(SAY,), **more):
    return {"prompt": list(prompt), "chosen": list(chosen), "rejected": NO, **more}


@pytest.mark.parametrize(
    "content, text, found",
    [
        ([{"type": "text", "text": "hi"}], "hi", {}),
        ([{"type": "text", "text": "h"}, {"type": "input_text", "text": "i"}], "hi", {"joined_parts": "2 parts"}),
        ([{"type": "text", "text": "hi", "image_url": None}], "hi", {}),
        ([{"text": "hi"}], "hi", {}),
    ],
)
def test_parts_of_text_are_joined(content, text, found):
    record, said = read(pair([{"role": "user", "content": content}]))
    assert record.prompt == (Message("user", text),)
    assert said == {reason: f"prompt[0].content: {detail}" for reason, detail in found.items()}


@pytest.mark.parametrize(
    "content, reason, place",
    [
        ([{"type": "image_url", "image_url": "x"}], "unsupported_part", "prompt[0].content[0]: 'image_url'"),
        ([{"type": "text", "text": "a"}, {"type": "audio"}], "unsupported_part", "prompt[0].content[1]: 'audio'"),
        (["a"], "wrong_type", "prompt[0].content[0]"),
        ([{"type": "text"}], "wrong_type", "prompt[0].content[0].text"),
        ({"text": "a"}, "wrong_type", "prompt[0].content"),
    ],
)
def test_other_parts_are_named(content, reason, place):
    record, said = read(pair([{"role": "user", "content": content}]))
    assert record is None and said[reason].startswith(place)


def test_sharegpt():
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "hi"}]
    gpt = lambda text: {"from": "gpt", "value": text}
    record, found = read({"conversations": turns, "chosen": gpt("yo"), "rejected": [gpt("no")]})
    assert record.prompt == (Message("system", "s"), Message("user", "hi"))
    assert record.responses == ((Message("assistant", "yo"),), (Message("assistant", "no"),))
    assert found == {"mapped_role": "prompt[1]: human is user"}
    record, _ = read({"conversations": [*turns, gpt("yo"), turns[1], gpt("ho")]})
    assert record.kind == "demonstration" and [turn.content for turn in record.responses[0]] == ["yo", "hi", "ho"]
    labelled, _ = read({"messages": [ASK, SAY], "label": False})
    assert labelled.kind == "unpaired" and labelled.prompt == (Message("user", "hi"),)
    assert read({"messages": [ASK]})[1]["no_boundary"].startswith("messages: it has no turn of the assistant's")
    # Beside a whole pair it says the same once more.
    assert read(pair(messages=[ASK, SAY]))[1] == {"unread_column": ": messages"}


def test_roles_are_mapped_as_declared():
    given = pair(chosen=[{"role": "model", "content": "yo"}])
    assert read(given)[0].responses[0] == (Message("assistant", "yo"),)
    assert read(given, roles=())[1]["bad_role"].startswith("chosen: begins with 'model'")
    record, found = read(pair([{"role": "client", "content": "a"}]), roles=("client=user",))
    assert record.prompt[0].role == "user" and found == {"mapped_role": "prompt[0]: client is user"}
    for wrong in (("human",), ("=user",)):
        with pytest.raises(ValueError, match="data.format.roles"):
            RecordFormat(roles=wrong)


def test_keys_that_no_template_is_given_are_counted():
    record, found = read(pair([{**ASK, "id": 3, "weight": None}], [{**SAY, "weight": 1, "mood": "x"}]))
    assert record == read(pair())[0]
    assert found == {"ignored_key": "prompt[0]: id"}  # the first place


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_told_apart(key):
    record, found = read(pair(chosen=[{**SAY, key: "2+2"}]))
    assert record.responses[0][0].more == {THOUGHT: "2+2"} and not found
    assert read(to_row(record))[0] == record
    part = {"type": "thinking", "thinking": "2+2"}
    assert read(pair(chosen=[{"role": "assistant", "content": [part, {"type": "text", "text": "yo"}]}]))[0] == record
    assert read(pair([{**ASK, key: "2+2"}]))[1] == {"ignored_key": f"prompt[0]: {key}"}
    assert read(pair(chosen=[{**SAY, key: ["2+2"]}]))[1]["wrong_type"].startswith(f"chosen[0].{key}")
    both = {**SAY, "thinking": "2+2", "reasoning": "2 + 2"}
    assert read(pair(chosen=[both]))[1] == {"unclear_thought": "chosen[0]: reasoning and thinking differ: keep one"}


def test_tools_and_calls_as_json_text():
    tool, call = {"name": "f"}, {"name": "f", "arguments": {"x": 1}}
    turn = lambda calls: {"role": "assistant", "content": "yo", "tool_calls": calls}
    record, found = read(pair(chosen=[turn([call])], tools=[tool]))
    assert not found and record.tools == '[{"name": "f"}]'
    for tools in (json.dumps([tool]), [json.dumps(tool)]):
        assert read(pair(chosen=[turn(json.dumps([call]))], tools=tools))[0] == record
    assert read(pair(chosen=[turn("[]")], tools=[]))[0] == read(pair())[0]
    assert read(pair(tools=["{"]))[1]["bad_tools"].startswith("tools[0]: text that is no JSON")
    assert read(pair(chosen=[turn("{")]))[1]["bad_tools"].startswith("chosen[0].tool_calls: text that is no JSON")


def test_nulls_inside_of_tools_and_calls_are_left_out_and_counted():
    """As Arrow writes a row whose keys another row has not, and JSON text does not."""
    schema = {"name": "f", "parameters": {"properties": {"city": {"type": "string"}, "expression": None}}}
    given = pair(chosen=[{"role": "assistant", "content": "", "tool_calls": [CALL]}], tools=[schema])
    record, found = read(given)
    assert json.loads(record.tools)[0]["parameters"] == {"properties": {"city": {"type": "string"}}}
    (call,) = record.responses[0][0].more["tool_calls"]
    assert call["function"]["arguments"] == {"city": "Oslo"}
    assert found == {"dropped_nulls": "chosen[0].tool_calls[0].function.arguments: expression"}
    kept, found = read(given, nested_nulls="keep")
    assert '"expression": null' in kept.tools and '"expression": null' in kept.responses[0][0].fields and not found
    record, found = read(pair(tools=json.dumps([schema])))
    assert '"expression": null' in record.tools and not found
    record, found = read(pair(chat_template_kwargs={"thinking": True, "other": None}))
    assert record.chat_template_kwargs == '{"thinking": true}'
    assert found == {"dropped_nulls": "chat_template_kwargs: other"}


def test_nulls_of_parquet(tmp_path):
    """What pyarrow makes of two rows with different tools is what their JSON lines make."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    tool = lambda name, key: {"name": name, "parameters": {"properties": {key: {"type": "string"}}}}
    call = lambda name, key: [{"role": "assistant", "tool_calls": [{"name": name, "arguments": {key: "x"}}]}]
    rows = [pair(chosen=call(*both), tools=[tool(*both)]) for both in (("f", "city"), ("g", "expression"))]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    arrow = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert arrow != rows and [read(row)[0] for row in arrow] == [read(row)[0] for row in rows]
    assert "dropped_nulls" in read(arrow[0])[1]


@pytest.mark.parametrize(
    "given, said",
    [
        ("{", "must be a JSON object"),
        ([1], "must be a JSON object of arguments, got list"),
        ({"messages": 1}, "'messages' is decided elsewhere"),
        ({"a b": 1}, "'a b' is no name"),
    ],
)
def test_arguments_that_are_none(given, said):
    record, found = read(pair(chat_template_kwargs=given))
    assert record is None and said in found["bad_arguments"]


def test_arguments_of_a_record():
    record, _ = read(pair(chat_template_kwargs={"b": 1, "a": [True]}))
    assert record.chat_template_kwargs == '{"a": [true], "b": 1}' and read(to_row(record))[0] == record
    assert read(pair(chat_template_kwargs='{"b": 1, "a": [true]}'))[0] == record
    assert read(pair(chat_template_kwargs="{}"))[0].chat_template_kwargs == ""
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "chat_template_kwargs": {"b": 1}}
    assert read(row)[1] == {"unread_column": ": chat_template_kwargs"}  # plain text has no template


def test_a_rejected_row_is_found_once():
    items = list(parse(pair([{"role": "user", "content": [{"type": "video"}]}]), "f:1"))
    assert [type(item) for item in items] == [Rejection]


def test_the_page_of_chats_says_what_becomes_of_its_rows():
    page = (ROOT / "docs/chats.md").read_text()
    blocks = re.split(r"```jsonl\n(.*?)```\n", page, flags=re.DOTALL)
    assert len(blocks) > 20
    for rows, after in zip(blocks[1::2], blocks[2::2], strict=True):
        says, _, reason = re.match(r"\s*(Counted|Dropped|)(: `(\w+)`)?", after).groups()
        for row in rows.splitlines():
            record, found = read(json.loads(row))
            assert (record is None) == (says == "Dropped") and list(found) == ([reason] if reason else []), row
