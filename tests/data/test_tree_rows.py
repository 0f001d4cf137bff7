"""Trees as data: what becomes of every point, what is context and what is scored, and what is counted."""

import collections
import dataclasses
import json
import random

import pytest

from prefjax.data.account import Notice, Rejection
from prefjax.data.encoding import EncodingPolicy, encode
from prefjax.data.formats import Columns, RecordFormat, parse
from prefjax.data.jsonl import to_row
from prefjax.data.preview import preview_tree
from prefjax.data.readers import read_records
from prefjax.data.records import Message, Record
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.data.treatment import is_held_out
from prefjax.rows.trees import token_ids
from tests.data.small_tokenizers import CHATML, WITH_BOS, small_tokenizer
from tests.documents import ROOT, blocks

BYTE = ByteTokenizer()


def read(row, more: Columns | None = None, **options) -> tuple[list[Record], list]:
    results = list(parse(row, "f:1", RecordFormat(**options), more))
    return [r for r in results if isinstance(r, Record)], [r for r in results if not isinstance(r, Record)]


def answer(text, *replies, **more):
    return {"role": "assistant", "text": text, "replies": list(replies), **more}


def question(text, *replies, **more):
    return {"role": "prompter", "text": text, "replies": list(replies), **more}


def asked(*replies, **more):
    return {"prompt": question("Hi", *replies, **more)}


def said(record: Record) -> tuple:
    plain = lambda text: text if isinstance(text, str) else " / ".join(m.content for m in text)
    return plain(record.prompt), tuple(map(plain, record.responses)), record.targets


def counted(findings) -> dict[str, int]:
    return dict(collections.Counter(finding.reason for finding in findings if finding.reason != "mapped_role"))


def test_every_point_of_a_conversation_with_judged_replies_is_a_record():
    """As OASST publishes them: rank 0 is best; what lies on the way is context, whoever won there."""
    deeper = question("Why?", answer("so", rank=1), answer("thus", rank=0), answer("well", rank=None))
    tree = question("Hi", answer("Hello", deeper, rank=0), answer("Go", question("Oh", answer("Ah")), rank=1))
    records, found = read({"prompt": tree, "tree_state": "ready_for_export"})
    assert list(map(said, records)) == [
        ("Hi", ("Hello", "Go"), (0.0, -1.0)),
        ("Hi / Hello / Why?", ("so", "thus"), (-1.0, 0.0)),
    ]
    assert [r.source for r in records] == ["f:1:prompt.replies", "f:1:prompt.replies[0].replies[0].replies"]
    assert {r.kind for r in records} == {"ranked"} and {r.root for r in records} == {(Message("user", "Hi"),)}
    assert counted(found) == {"unjudged_reply": 1, "lone_reply": 1, "unread_column": 1}
    places = {finding.reason: str(finding) for finding in found}
    assert places["lone_reply"] == "f:1:prompt.replies[1].replies[0].replies[0]"


@pytest.mark.parametrize(
    "replies, kind, targets, reasons",
    [
        ([dict(score=2), dict(score="3.5")], "ranked", (2.0, 3.5), {"number_as_text": 1}),
        ([dict(label=True), dict(label="No"), dict(label=0)], "ranked", (1.0, 0.0, 0.0), {}),
        ([dict(label=False)], "unpaired", (0.0,), {}),
        ([dict(reward=0.5)], "unpaired", (0.5,), {}),
        ([dict(score=0.5)], "unpaired", (0.5,), {}),
        ([dict(rank=0, score=9), dict(rank=2)], "ranked", (0.0, -2.0), {"unread_judgement": 1}),
        ([dict(rank=0), dict(rank=1), dict(deleted=True, rank=2)], "ranked", (0.0, -1.0), {"withdrawn_message": 1}),
        ([dict(rank=0), dict(rank=1), dict(review_result=False)], "ranked", (0.0, -1.0), {"withdrawn_message": 1}),
        ([dict(rank=0), dict(rank=0)], "ranked", (0.0, 0.0), {"all_scores_equal": 1}),
        ([dict(rank=0, lang="en"), dict(rank=1)], "ranked", (0.0, -1.0), {"ignored_key": 1}),
        ([dict(rank=0, weight=2), dict(rank=1)], "ranked", (0.0, -1.0), {"ignored_key": 1}),
    ],
)
def test_what_judges_replies(replies, kind, targets, reasons):
    tree = question("Hi", *(answer(f"a{k}", **own) for k, own in enumerate(replies)))
    (record,), found = read({"prompt": tree})
    assert (record.kind, record.targets, counted(found)) == (kind, targets, reasons)


@pytest.mark.parametrize(
    "row, reason, place",
    [
        (asked(answer("a"), answer("b")), "no_branching", "f:1"),
        (asked(answer("a", rank=0)), "no_branching", "f:1"),
        (asked(answer("a", rank="x"), answer("b", rank=1)), "wrong_type", "replies[0].rank"),
        (asked(answer("a", label=2), answer("b", label=1)), "bad_label", "replies[0].label"),
        (asked(answer("a", score=float("nan")), answer("b", score=1)), "not_finite", "scores[0]"),
        (asked(answer("a", message_id="1"), answer("b", message_id="1")), "broken_tree", "[1].message_id"),
        (asked(answer("a", parent_id="0"), message_id="1"), "broken_tree", "replies[0].parent_id"),
        (asked(answer("a"), message_id=[1]), "wrong_type", "prompt.message_id"),
        (asked(3), "wrong_type", "f:1:prompt.replies[0]"),
        ({"prompt": {"role": "user", "text": "Hi", "replies": "x"}}, "wrong_type", "f:1:prompt.replies"),
        (asked({"rank": 0}, {"rank": 1}), "no_branching", "f:1"),
        (asked(answer("a", rank=0), {"role": "assistant", "rank": 1}), "missing_field", "content"),
        ({"prompt": question("Hi"), "chosen": "a"}, "ambiguous_shape", "f:1"),
        ({"prompt": "Hi", "steps": ["a"], "branches": []}, "ambiguous_shape", "f:1"),
        ({"prompt": "Hi", "messages": [{"role": "assistant", "alternatives": ["x"]}]}, "ambiguous_shape", "f:1"),
        ({"steps": [{"text": "a", "alternatives": ["b"]}]}, "missing_field", "f:1:prompt"),
        ({"prompt": "Hi", "steps": "a"}, "wrong_type", "f:1:steps"),
        ({"prompt": "[{'role': 'user', 'content': 'Hi'}]", "steps": ["a"]}, "wrong_type", "as Python prints them"),
        ({"prompt": "Hi", "steps": [{"alternatives": ["b"]}]}, "missing_field", "f:1:steps[0].text"),
        ({"prompt": "Hi", "steps": [{"text": "a", "alternatives": "b"}]}, "wrong_type", "f:1:steps[0].alternatives"),
        ({"prompt": "Hi", "steps": [{"text": "a", "alternatives": ["b"], "weight": -1}]}, "bad_weight", "weight"),
        ({"prompt": "Hi", "steps": [{"text": "a", "alternatives": ["b"], "weight": "x"}]}, "wrong_type", "[0].weight"),
        ({"prompt": "Hi", "steps": [{"text": "a", "alternatives": ["b"], "ends": "x"}]}, "wrong_type", "ends"),
        ({"prompt": "", "branches": [{"text": "a", "score": 1}, {"text": "b", "score": 0}]}, "empty_prompt", ""),
    ],
)  # fmt: skip
def test_what_is_no_tree_is_refused_by_name(row, reason, place):
    records, found = read(row)
    assert not records and [f.reason for f in found if isinstance(f, Rejection)][0] == reason
    assert place in str(next(f for f in found if isinstance(f, Rejection)))


def test_a_fault_of_one_point_is_counted_where_others_become_records():
    bad = question("Why?", answer("x", rank=0), answer("x", rank=1))
    worse = question("How?", answer("x", score="?"), answer("y", score=1))
    records, found = read({"prompt": question("Hi", answer("a", bad, worse, rank=0), answer("b", rank=1))})
    assert len(records) == 1 and all(isinstance(finding, Notice) for finding in found)
    assert counted(found) == {"identical_responses": 1, "wrong_type": 1}


def test_questions_may_branch_and_are_never_scored():
    tree = answer("Welcome", question("Hi", answer("a", rank=0), answer("b", rank=1), rank=0), question("Yo", rank=1))
    records, found = read({"prompt": tree})
    assert [said(r)[:2] for r in records] == [("Welcome / Hi", ("a", "b"))]
    assert counted(found) == {"judged_question": 2, "lone_reply": 1}


def test_a_dialogue_with_alternatives_at_several_turns():
    say = lambda role, content, **more: {"role": role, "content": content, **more}
    chat = [say("system", "Be brief"), say("user", "Hi"), say("assistant", "Hello", alternatives=["Go"], weight=0.5)]
    chat += [say("user", "Why?"), say("assistant", "So"), say("user", "And?")]
    chat += [
        say("assistant", "End", score=1, alternatives=[{"content": "x", "score": 3}, {"content": "y", "score": 0}])
    ]
    records, found = read({"messages": chat, "weight": 2})
    assert list(map(said, records)) == [
        ("Be brief / Hi", ("Hello", "Go"), (1.0, 0.0)),
        ("Be brief / Hi / Hello / Why? / So / And?", ("End", "x", "y"), (1.0, 3.0, 0.0)),
    ]
    assert [r.kind for r in records] == ["pair", "ranked"] and [r.weight for r in records] == [1.0, 2.0]
    assert [r.source for r in records] == ["f:1:messages[2]", "f:1:messages[6]"] and counted(found) == {"lone_reply": 1}
    assert {r.root for r in records} == {(Message("system", "Be brief"), Message("user", "Hi"))}
    (first, second), _ = read({"messages": chat, "weight": 2}, tree_weights="divided")
    assert (first.weight, second.weight) == (0.5, 1.0)
    published = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello", "alternatives": ["Go"]}]
    (record,), _ = read({"conversations": published})
    assert said(record) == ("Hi", ("Hello", "Go"), (1.0, 0.0))


STEPS = [
    {"text": " 2 + 2 = 4.", "alternatives": [" 2 + 2 = 5.", " I give up."]},
    " So",
    {"text": " 7.", "alternatives": [" 8."]},
]


def test_a_solution_in_steps():
    """The step that the solution goes on with is preferred; only the last ends the response."""
    records, found = read({"prompt": "2 + 2 + 3?", "steps": STEPS})
    assert list(map(said, records)) == [
        ("2 + 2 + 3?", (" 2 + 2 = 4.", " 2 + 2 = 5.", " I give up."), (1.0, 0.0, 0.0)),
        ("2 + 2 + 3? 2 + 2 = 4. So", (" 7.", " 8."), (1.0, 0.0)),
    ]
    assert [r.ends for r in records] == [(False, False, False), None] and counted(found) == {"lone_reply": 1}
    decoded = [[BYTE.decode(ids) for ids in encode(record, BYTE).responses] for record in records]
    assert decoded == [[" 2 + 2 = 4.", " 2 + 2 = 5.", " I give up."], [" 7.<eos>", " 8.<eos>"]]
    shown = preview_tree(dataclasses.replace(records[0], weight=0.5), encode(records[0], BYTE), BYTE)
    assert "f:1:steps[0], ranked" in shown and "a step, after which the turn goes on\n[[ 2 + 2 = 5.]]" in shown


def test_a_search_over_steps():
    """A step ends the response where neither it nor one beside it goes on, or where it says so."""
    leaves = [{"text": " b", "reward": 1, "ends": False}, {"text": " c", "reward": 0.5}]
    tree = [{"text": " a", "score": 1, "branches": leaves}, {"text": " d", "score": 0, "ends": True}]
    records, found = read({"prompt": "q", "branches": tree}, Columns(response=("why",)))
    assert list(map(said, records)) == [("q", (" a", " d"), (1.0, 0.0)), ("q a", (" b", " c"), (1.0, 0.5))]
    assert [r.ends for r in records] == [(False, True), (False, True)] and not found
    for one in tree:
        one |= {"why": one["text"], "note": 3}
    (first, _), found = read({"prompt": "q", "branches": tree}, Columns(response=("why",)))
    assert first.response_columns == {"why": (" a", " d")} and counted(found) == {"ignored_key": 2}


@pytest.mark.parametrize(
    "template, header, end", [(CHATML, "<|start|>assistant\n", "<|end|>"), (WITH_BOS, "[A]", "</s>")]
)
def test_steps_of_a_turn_are_parts_of_what_the_template_renders(tmp_path, template, header, end):
    """Prompt and scored tokens of every record, one after the other, are the whole turn's; steps have no end."""
    tokenizer = small_tokenizer(tmp_path, template)
    steps = [{"text": "yes,", "alternatives": ["no,"]}, {"text": " sure.\n", "alternatives": [" no"]}, "yes"]
    steps[2] = {"text": "yes", "alternatives": ["no no"]}
    records, _ = read({"prompt": [{"role": "user", "content": "hello"}], "steps": steps})
    whole = ""
    for record, own in zip(records, ("yes,", " sure.\n", "yes"), strict=True):
        tree = encode(record, tokenizer)
        prompt, response = tokenizer.decode(tree.prompt), tokenizer.decode(token_ids(tree.responses[0]))
        assert (tree.responses[0] >= 0).all() and whole in ("", prompt) and header in prompt
        assert response.lstrip() == (own + (end if record.ends is None else "")).lstrip()
        whole = prompt + response
    chat = (*records[0].prompt, Message("assistant", "yes, sure.\nyes"))
    assert whole.removeprefix("<s>") == tokenizer.render(chat, generate=False).rstrip().removeprefix("<s>")
    assert [r.begun for r in records] == [False, True, True]
    begun = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes,"}]
    (record,), _ = read({"prompt": begun, "steps": steps[2:]})
    assert record.begun and tokenizer.decode(encode(record, tokenizer).prompt).endswith("yes,")
    assert EncodingPolicy().prefill is False


def test_a_tree_is_held_out_as_a_whole():
    rows = [{"prompt": f"q{i}", "steps": STEPS} for i in range(60)]
    sides = [{is_held_out(record, 0.3) for record in read(row)[0]} for row in rows]
    assert all(len(side) == 1 for side in sides) and 8 < sides.count({True}) < 30


def test_records_of_trees_go_into_rows_and_back():
    rows = [{"prompt": "q", "steps": STEPS}, {"prompt": [{"role": "user", "content": "q"}], "steps": STEPS}]
    rows += [{"prompt": question("Hi", answer("a", rank=0), answer("b", rank=1))}]
    for record in (record for row in rows for record in read(row)[0]):
        (again,), found = list(parse(to_row(record), record.source)), []
        assert again == record and not found


@pytest.mark.parametrize(
    "columns, reason",
    [
        (dict(ends=[True]), "length_mismatch"),
        (dict(ends="x"), "wrong_type"),
        (dict(begun=True, prompt=[{"role": "user", "content": "q"}]), "bad_role"),
        (dict(begun=3), "wrong_type"),
        (dict(root=3), "wrong_type"),
    ],
)
def test_what_a_row_says_of_its_turn_is_checked(columns, reason):
    records, found = read({"prompt": "q", "chosen": "a", "rejected": "b", **columns})
    assert not records and [f.reason for f in found] == [reason]
    with pytest.raises(ValueError, match="ends"):
        Record("q", ("a", "b"), (1.0, 0.0), "pair", ends=(True,))
    with pytest.raises(ValueError, match="begun"):
        Record("q", ("a", "b"), (1.0, 0.0), "pair", begun=True)


def test_very_deep_trees_are_read_or_refused():
    node = answer("end", rank=0)
    for _ in range(1500):
        node = question("q", answer("a", node))
    assert [f.reason for f in read({"prompt": node})[1]] == ["too_deep"]
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "alternatives": ["b"]}] * 40
    assert len(read({"messages": chat})[0]) == 40


def test_no_message_is_forgotten():
    """Random trees: what is scored and what is counted make up all answers, each once."""
    rng = random.Random(0)

    def grow(depth, role):
        make, other = (question, "assistant") if role == "prompter" else (answer, "prompter")
        replies = [grow(depth - 1, other) for _ in range(rng.randrange(4) if depth else 0)]
        more = {"rank": rng.randrange(5)} if role == "assistant" and rng.random() < 0.8 else {}
        more |= {"deleted": True} if rng.random() < 0.1 and depth < 5 else {}
        return make(f"{rng.random()}", *replies, **more)

    def answers(node):
        if node.get("deleted"):
            return 0
        return (node["role"] == "assistant") + sum(map(answers, node["replies"]))

    for _ in range(30):
        tree = grow(5, "prompter")
        records, found = read({"prompt": tree})
        reasons = counted(found)
        unused = reasons.get("lone_reply", 0) + reasons.get("unjudged_reply", 0)
        assert sum(len(r.responses) for r in records) + unused == answers(tree)
        assert len({r.source for r in records}) == len(records)
        assert bool(records) != any(isinstance(f, Rejection) for f in found)


def test_real_rankings_grow_back_into_trees_and_are_read_as_they_were(real_data, tmp_path):
    """OASST's rankings, put below the answers that their prompts go on from, are the same records."""
    ranked, _ = read_records(real_data / "oasst_en100_ranked.jsonl.gz", progress=False)
    trees: dict = {}
    for record in sorted(ranked, key=lambda record: len(record.prompt)):
        node = trees.setdefault(record.prompt[0], question(record.prompt[0].content))
        for turn in record.prompt[1:]:
            make = answer if turn.role == "assistant" else question
            below = [one for one in node["replies"] if one["text"] == turn.content]
            node["replies"] += [] if below else [make(turn.content)]
            node = below[0] if below else node["replies"][-1]
        for response, score in zip(record.responses, record.targets, strict=True):
            below = next((one for one in node["replies"] if one["text"] == response[0].content), None)
            if below is None:
                node["replies"].append(answer(response[0].content, rank=int(-score)))
            else:
                below["rank"] = int(-score)
    file = tmp_path / "trees.jsonl"
    file.write_text("".join(json.dumps({"prompt": tree}) + "\n" for tree in trees.values()))
    records, account = read_records(file, progress=False)
    key = lambda r: (r.prompt, frozenset(zip(r.responses, r.targets, strict=True)))
    assert collections.Counter(map(key, records)) == collections.Counter(map(key, ranked))
    assert account["read"].read == len(trees) < len(ranked) == account["read"].outputs


def test_the_page_shows_what_becomes_of_its_trees():
    trees, rows = blocks("docs/trees.md", "json"), blocks("docs/trees.md", "jsonl")
    (preview,) = blocks("docs/trees.md", "text")
    for tree, expected in zip(trees, rows, strict=True):
        records, found = read(json.loads(tree))
        assert [to_row(record) for record in records] == list(map(json.loads, expected.splitlines()))
        reasons = collections.Counter(finding.reason for finding in found)
        said = ", ".join(f"`{reason}` {count}" for reason, count in reasons.items())
        assert not reasons or f"Counted: {said}." in (ROOT / "docs/trees.md").read_text()
    record = dataclasses.replace(records[0], source=records[0].source.replace("f:1", "trees.jsonl:1"))
    tree = dataclasses.replace(encode(record, BYTE), example_id=0)
    assert preview_tree(record, tree, BYTE) == preview.rstrip("\n")
