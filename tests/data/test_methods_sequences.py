"""Sequences of methods as text, their columns and score files, and what preparing data and `curate` make of them."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import quickstart
from docs import write_data_methods
from prefjax.data.account import Account
from prefjax.data.config import DataConfig
from prefjax.data.formats import Columns, RecordFormat, parse
from prefjax.data.jsonl import to_row, write_records
from prefjax.data.methods import METHODS
from prefjax.data.methods.sequences import (
    apply_methods,
    columns_of,
    parse_methods,
    provenance,
    split_steps,
)
from prefjax.data.prepare import prepare
from prefjax.data.readers import read_records
from prefjax.data.records import Message, Record
from prefjax.data.tokenizers import load_tokenizer
from prefjax.registry import REQUIRED
from prefjax.requirements import Requirements
from prefjax.rows.store import open_trees
from prefjax.training.runs import run_config

ROOT = Path(__file__).resolve().parents[2]
PAIRS = Requirements(2)


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair_row(n, **more):
    return {"prompt": f"q{n}?", "chosen": f" yes {n}", "rejected": f" no {n}", **more}


def ranked_row(n, count=6, **more):
    return {"prompt": f"q{n}?", "completions": [f" a{k}" for k in range(count)], "scores": list(range(count)), **more}


def prepared(directory, data, methods="", split="train", need=PAIRS, **options):
    config = DataConfig(train=data, methods=methods, holdout=0.25, **options)
    return prepare(config, need, load_tokenizer("byte", None), directory, split=split, progress=False)


def applied(records, text, **options):
    """The records that a sequence makes, and their account."""
    account = Account()
    return list(apply_methods(records, parse_methods(text), account, **options)), account


def texts(trees):
    return [tuple(bytes(r[:-1].tolist()).decode() for r in trees[i].responses) for i in range(len(trees))]


def test_a_sequence_is_read_from_left_to_right_with_all_options():
    steps = parse_methods("rso(count=4, beta=1) | flip_labels(rate=0.5,\n seed=3) | easiest(by='loss')")
    assert [step.as_dict() for step in steps] == [
        {"method": "rso", "options": dict(count=4, beta=1.0, pairing="first_round", reward=None, seed=0)},
        {"method": "flip_labels", "options": dict(rate=0.5, rate_undesirable=None, seed=3)},
        {"method": "easiest", "options": dict(by="loss", share=0.5)},
    ]
    assert parse_methods(" ") == ()
    before, after = split_steps(steps)
    assert [step.method.name for step in before] == ["rso"]
    assert [step.method.name for step in after] == ["flip_labels", "easiest"]


@pytest.mark.parametrize(
    "text, hints",
    [
        ("flip(rate=1)", ["no data method named 'flip'", "flip_labels", "docs/data_methods.md"]),
        ("flip_labels(0.1)", ["name(option=value"]),
        ("flip_labels", ["flip_labels needs the option 'rate'"]),
        ("flip_labels(rate=0.1) + subset(size=1)", ["name(option=value"]),
        ("flip_labels(rate=0.1", ["never closed", "name(option=value"]),
        ("flip_labels(rate=x)", ["rate=x"]),
        ("flip_labels(**{})", ["name every option"]),
        ("flip_labels(rate='a')", ["flip_labels(rate=...)", "a number"]),
        ("rso(count=2.0)", ["rso(count=...)", "an integer"]),
        ("rso(count=True)", ["rso(count=...)", "an integer"]),
        ("rso(pairing='swiss')", ["'first_round'", "'tournament'", "'none'"]),
        ("join(file='f', columns='loss')", ["a list of texts"]),
        ("margin_window(at_least=1, reward='scores')", ["'scores' has another meaning"]),
        ("easiest(by='x') | margin_window(at_least=1, reward='x')", ["'x'", "for each response"]),
    ],
)
def test_what_cannot_be_read_is_refused_when_the_config_is_made(text, hints):
    with pytest.raises(ValueError) as error:
        DataConfig(methods=text)
    assert all(hint in str(error.value) for hint in hints), error.value


@pytest.mark.parametrize("name", METHODS)
def test_every_method_refuses_foreign_and_missing_options_and_names_columns_that_exist(name):
    method = METHODS[name]
    some = {option: "x" for option, default in method.options.items() if default is REQUIRED}
    with pytest.raises(ValueError, match=f"{name} takes no option 'colour'"):
        method.check(some | {"colour": 1})
    for option in some:
        with pytest.raises(ValueError, match=f"{name} needs the option '{option}'"):
            method.check({other: value for other, value in some.items() if other != option})
    assert {*method.record_columns, *method.response_columns, *method.files} <= set(method.options)
    assert write_data_methods.facts(method)["Source"]


def test_the_page_is_current():
    assert write_data_methods.PAGE.read_text() == write_data_methods.render(), "run python -m docs.write_data_methods"


def test_columns_are_those_that_no_join_before_brings_in():
    text = "margin_window(at_least=0, reward='rm') | join(file='f', columns=('loss',)) | easiest(by='loss')"
    assert columns_of(parse_methods(text)) == Columns(response=("rm",))
    assert columns_of(parse_methods("easiest(by='loss') | join(file='f', columns=['loss'])")) == Columns(("loss",))


def test_columns_are_kept_as_they_are_and_counted_where_broken():
    more = Columns(record=("loss",), response=("rm",))
    (record,) = parse(pair_row(1, loss=0.5, rm=[1, {"x": 2}]), "f:1", None, more)
    assert (record.columns, record.response_columns) == ({"loss": 0.5}, {"rm": (1, {"x": 2})})
    (record,) = parse({"prompt": "p", "completion": "c", "reward": 1, "rm": 3}, "f:1", None, more)
    assert record.response_columns == {"rm": (3,)}
    found = [next(parse(pair_row(1, rm=value), "f:1", None, more)).reason for value in (3, [1])]
    assert found == ["wrong_type", "length_mismatch"]
    assert [item.reason for item in parse(pair_row(1, rm=[1, 2]), "f:1") if not isinstance(item, Record)] == [
        "unread_column"
    ]
    assert record.select((0,), (1.0,), "unpaired").response_columns == {"rm": (3,)}
    with pytest.raises(ValueError, match="values of rm"):
        dataclasses.replace(record, response_columns={"rm": (1, 2)})
    assert hash(record) == hash(dataclasses.replace(record))


def test_counts_and_provenance():
    records = [Record(f"p{n}", ("a", "b"), (1.0, 0.0), "pair", source=f"f:{n}") for n in range(10)]
    records.append(Record("p", ("a",), (1.0,), "demonstration", source="f:10"))
    text = "flip_labels(rate=1) | subset(size=4) | subset(size=2)"
    made, account = applied(records, text)
    facts = provenance(parse_methods(text), account)
    assert [(fact["in"], fact["kept"], fact["out"]) for fact in facts] == [(11, 10, 10), (10, 4, 4), (4, 2, 2)]
    assert facts[0]["dropped"] == {"wrong_kind": 1} and facts[0]["found"] == {"wrong_kind": 1, "flipped": 10}
    assert facts[1]["dropped"] == {"not_selected": 6} and facts[1]["options"] == dict(size=4, share=None, seed=0)
    assert list(account.stages) == ["1 flip_labels", "2 subset", "3 subset"] and len(made) == 2
    assert json.loads(json.dumps(facts)) == facts


def test_the_sources_of_a_mixture_draw_independently():
    records = [Record(f"p{n}", ("a", "b"), (1.0, 0.0), "pair") for n in range(40)]
    text = "flip_labels(rate=0.5, seed=2)"
    made = [[r.responses for r in applied(records, text, stream=stream)[0]] for stream in (0, 0, 1, 2)]
    assert made[0] == made[1] and made[0] != made[2] != made[3] != made[0]


def test_a_sequence_takes_records_as_they_are_asked_for():
    taken = []
    records = (taken.append(n) or Record(f"p{n}", ("a", "b"), (1.0, 0.0), "pair") for n in range(100))
    account = Account()
    made = apply_methods(records, parse_methods("flip_labels(rate=0.5) | flip_labels(rate=0.5)"), account)
    assert list(account.stages) == ["1 flip_labels", "2 flip_labels"] and not taken
    next(made), next(made)
    assert taken == [0, 1] and account["2 flip_labels"].outputs == 2
    assert len(list(made)) == 98 and account["1 flip_labels"].read == 100


def test_join_averages_what_several_models_said(tmp_path):
    write(tmp_path / "a.jsonl", [pair_row(n, loss=float(n), e=[n, 0]) for n in range(4)])
    write(tmp_path / "b.jsonl", [pair_row(n, loss=n + 2.0, e=[n, 2]) for n in range(3)])
    records, _ = read_records(write(tmp_path / "data.jsonl", [pair_row(n) for n in range(5)]), progress=False)
    files = str(tmp_path / "[ab].jsonl")
    made, account = applied(records, f"join(file={files!r}, columns=('loss', 'e'))")
    assert [record.columns["loss"] for record in made] == [1.0, 2.0, 3.0, 3.0]
    assert made[1].columns["e"] == [1.0, 1.0]
    assert account["1 join"].dropped == {"missing_field": 1}
    text = f"join(file={files!r}, columns=('loss',), count=2) | easiest(by='loss', share=0.7)"
    made, account = applied(records, text)
    assert [record.prompt for record in made] == ["q0?", "q1?"] and account["1 join"].dropped == {"missing_field": 2}


def test_join_for_each_response_and_what_it_refuses(tmp_path):
    data = write(tmp_path / "data.jsonl", [ranked_row(0, 3), ranked_row(1, 3)])
    records, _ = read_records(data, progress=False)
    scores = write(tmp_path / "s.jsonl", [ranked_row(0, 3, rm=[3, 1, 2]), ranked_row(1, 3, rm=[2, 1, 5])])
    text = f"join(file={scores!r}, columns=('rm',), per='response') | rso(count=2, beta=0.001, reward='rm')"
    made, _ = applied(records, text)
    assert [record.responses for record in made] == [(" a0", " a2"), (" a2", " a0")]
    for rows, hint in (
        ([ranked_row(0, 3)], "rm: the column is missing"),
        ([ranked_row(0, 3, rm=["a", 1, 2])], "must be a number"),
        ([ranked_row(0, 3, rm=[float("nan"), 1, 2])], "not finite"),
        ([{"id": 3, "rm": [1, 2, 3]}], "repeat a record's prompt"),
    ):
        path = write(tmp_path / "broken.jsonl", rows)
        with pytest.raises(ValueError, match=hint):
            applied(records, f"join(file={path!r}, columns=('rm',), per='response')")
    with pytest.raises(FileNotFoundError):
        applied(records, "join(file='nowhere.jsonl', columns=('rm',))")


_text = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=8)
_number = st.floats(-100, 100)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_rows_read_back_as_the_records_they_were(data):
    kind = data.draw(st.sampled_from(["pair", "unpaired", "rewarded", "ranked", "demonstration"]))
    count = {"pair": 2, "ranked": data.draw(st.integers(1, 4))}.get(kind, 1)
    chat = data.draw(st.booleans())
    responses = data.draw(st.lists(_text, min_size=count, max_size=count, unique=True))
    prompt = data.draw(_text)
    if chat:
        prompt, responses = (Message("user", prompt),), [(Message("assistant", text),) for text in responses]
    scores = tuple(data.draw(st.lists(_number, min_size=count, max_size=count, unique=True)))
    targets = {"pair": (1.0, 0.0), "unpaired": (1.0,), "demonstration": (1.0,)}.get(kind, scores)
    own = None if kind == "demonstration" or (kind in ("pair", "unpaired") and data.draw(st.booleans())) else scores
    graded = kind == "pair" and data.draw(st.booleans())
    record = Record(
        prompt=prompt,
        responses=tuple(responses),
        targets=targets,
        kind="unpaired" if kind == "rewarded" else kind,
        scores=own,
        weight=data.draw(st.sampled_from([1.0, 2.5])),
        source="f:1",
        margin=data.draw(_number) if graded else None,
        target_probability=data.draw(st.floats(0, 1)) if graded else None,
        columns={"loss": 0.5},
        response_columns={"rm": tuple(range(count))},
    )
    fields = RecordFormat(margin_field="margin", target_probability_field="target_probability")
    row = json.loads(json.dumps(to_row(record)))
    read = [item for item in parse(row, "f:1", fields, Columns(("loss",), ("rm",))) if isinstance(item, Record)]
    assert read == [record]


def test_a_pair_whose_targets_are_scores_has_no_row(tmp_path):
    record = Record("p", ("a", "b"), (3.0, 1.0), "pair", scores=(3.0, 1.0))
    with pytest.raises(ValueError, match="targets"):
        write_records(tmp_path / "f.jsonl", [record])


def test_prepared_data_is_what_the_methods_make_and_says_so(tmp_path):
    data = write(tmp_path / "data.jsonl", [ranked_row(n) for n in range(40)])
    trees = prepared(tmp_path, data, "rso(count=2, beta=0.001) | subset(share=0.5) | flip_labels(rate=1)")
    assert set(texts(trees)) == {(" a4", " a5")}
    facts, train = trees.manifest["methods"], 40 - len(prepared(tmp_path, data, split="eval"))
    assert len(trees) == train // 2
    assert [(fact["method"], fact["in"], fact["out"]) for fact in facts] == [
        ("rso", train, train),
        ("subset", train, len(trees)),
        ("flip_labels", len(trees), len(trees)),
    ]
    assert facts[2]["found"] == {"flipped": len(trees)}
    assert list(trees.manifest["account"])[:5] == ["read", "1 rso", "adapt", "2 subset", "3 flip_labels"]
    assert "2 subset" in trees.manifest["account_text"]


def test_held_out_records_stay_as_they_are(tmp_path):
    data = write(tmp_path / "data.jsonl", [pair_row(n) for n in range(40)])
    trees, plain = (prepared(tmp_path, data, methods, "eval") for methods in ("flip_labels(rate=1)", ""))
    assert trees.directory == plain.directory and all(a.startswith(" yes") for a, _ in texts(trees))
    assert trees.manifest["methods"] == []


def test_everything_that_decides_makes_another_key(tmp_path):
    data = write(tmp_path / "data.jsonl", [pair_row(n, loss=n % 7) for n in range(20)])
    scores = tmp_path / "scores.jsonl"
    write(scores, [pair_row(n, rank=n) for n in range(20)])
    joined = f"join(file={str(scores)!r}, columns=('rank',)) | easiest(by='rank')"
    sequences = ["", "flip_labels(rate=0.5)", "flip_labels(rate=0.5, seed=1)", "flip_labels(rate=0.4)", joined]
    sequences += ["flip_labels(rate=0.5) | easiest(by='loss')", "easiest(by='loss') | flip_labels(rate=0.5)"]
    found = [prepared(tmp_path, data, methods).directory for methods in sequences]
    assert len(set(found)) == len(found)
    assert prepared(tmp_path, data, "flip_labels( rate = .5,seed=0 )").directory == found[1]
    moved = scores.rename(tmp_path / "moved.jsonl")
    assert prepared(tmp_path, data, joined.replace("scores", "moved")).directory == found[4]
    write(moved, [pair_row(n, rank=-n) for n in range(20)])
    edited = prepared(tmp_path, data, joined.replace("scores", "moved"))
    assert edited.directory != found[4]
    (before,), (after,) = (open_trees(path).manifest["methods"][0]["sha256"] for path in (found[4], edited.directory))
    assert after == hashlib.sha256(moved.read_bytes()).hexdigest() != before


def test_pairs_that_a_method_grades_meet_the_need_of_an_objective(tmp_path):
    data = write(tmp_path / "data.jsonl", [pair_row(n, score_chosen=1, score_rejected=0) for n in range(20)])
    need = Requirements(2, inputs=frozenset({"target_probability"}))
    trees = prepared(tmp_path, data, "bradley_terry_targets()", need=need)
    assert trees[0].target_probability == pytest.approx(1 / (1 + np.exp(-1)))
    with pytest.raises(ValueError, match="target_probability"):
        prepared(tmp_path, data, need=need)


def test_a_missing_column_is_named_where_nothing_is_left(tmp_path):
    data = write(tmp_path / "data.jsonl", [pair_row(n) for n in range(20)])
    with pytest.raises(ValueError, match=r"(?s)no record.*1 easiest.*missing_field.*loss.*join\(file="):
        prepared(tmp_path, data, "easiest(by='loss')")


def test_real_solutions_by_tests_passed(real_data):
    records, _ = read_records(real_data / "gsm8k_solutions_k4.jsonl.gz", progress=False)
    made, account = applied(records, "pass_fail()")
    passed = [sum(record.targets) for record in records]
    unanimous = sum(total in (0, 4) for total in passed)
    assert account["1 pass_fail"].dropped == {"no_pair": unanimous}
    assert len(made) <= sum(int(total * (4 - total)) for total in passed)
    assert all(record.scores == (1.0, 0.0) for record in made)


def test_curate_writes_records_and_their_account(tmp_path):
    data = write(tmp_path / "data.jsonl", [ranked_row(n) for n in range(12)])
    output = tmp_path / "pairs.jsonl"
    flags = [f"--data={data}", f"--output={output}", "--methods=rso(count=4, beta=0.001) | subset(size=10)"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.curate", *flags], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert "10 records" in done.stdout and "2 subset: 24 in, kept 10" in done.stdout
    records, _ = read_records(output, progress=False)
    assert {record.responses for record in records} <= {(" a5", " a4"), (" a3", " a2")} and len(records) == 10
    account = json.loads((tmp_path / "pairs.jsonl.account.json").read_text())
    assert [fact["out"] for fact in account["methods"]] == [24, 10] and account["records"] == 10
    assert len(account["sources"][0]["sha256"]) == 64


def test_sft_takes_only_its_own_methods():
    config = quickstart.get_config("dpo")
    config.data.methods = "flip_labels(rate=0.2)"
    run = run_config(config.to_dict())
    assert (run.stage.data.methods, run.find("sft").data.methods) == ("flip_labels(rate=0.2)", "")
