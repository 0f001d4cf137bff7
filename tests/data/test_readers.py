"""Files become records: suffixes, line numbers, damaged files, and the counts of the real sets' edge cases."""

import gzip
import json

import pytest

from experiments.chaos.records import fuzzed_file, fuzzed_lines, outcome
from prefjax.data import json_files
from prefjax.data.account import REASONS
from prefjax.data.formats import Columns, RecordFormat
from prefjax.data.readers import find_files, read_records, read_rows
from prefjax.data.records import Message, inspect

ROWS = [
    {"prompt": [{"role": "user", "content": "Hé"}], "chosen": [{"role": "assistant", "content": "a"}],
     "rejected": [{"role": "assistant", "content": "b"}], "score_chosen": 2.0, "score_rejected": 1.0},
    {"prompt": [{"role": "user", "content": "H"}], "chosen": [{"role": "assistant", "content": "c\n"}],
     "rejected": [{"role": "assistant", "content": "d"}], "score_chosen": 3.0, "score_rejected": 3.0},
]  # fmt: skip


def write_jsonl(path, rows) -> None:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_parquet(path, rows) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_one_content_in_every_container(tmp_path, suffix):
    path = tmp_path / f"pairs{suffix}"
    (write_parquet if suffix == ".parquet" else write_jsonl)(path, ROWS)
    records, account = read_records(path, RecordFormat(ties="keep"))
    assert [record.source for record in records] == [f"{path}:1", f"{path}:2"]
    assert records[0].prompt == (Message("user", "Hé"),) and records[1].responses[0] == (Message("assistant", "c\n"),)
    assert records[0].scores == (2.0, 1.0) and account["read"].found == {"tie": 1}
    assert read_records(path)[1]["read"].dropped == {"tie": 1}


def test_parquet_shapes(tmp_path):
    """A column that some rows lack is null in Parquet, and null is absent; lists of texts and numbers work."""
    rows = [
        {"prompt": "p", "completions": ["a", "b"], "scores": [1.0, 2.0]},
        {"prompt": "p", "completion": "a", "label": True},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
    ]
    columns = sorted(set().union(*rows))
    write_parquet(tmp_path / "mixed.parquet", [{c: row.get(c) for c in columns} for row in rows])
    assert [record.kind for record in read_records(tmp_path / "mixed.parquet")[0]] == ["ranked", "unpaired", "pair"]


def test_malformed_lines_are_counted_with_their_number(tmp_path):
    path = tmp_path / "f.jsonl"
    good = json.dumps(ROWS[0], ensure_ascii=False).encode()
    path.write_bytes(b"\n".join([good, b"", b'{"prompt": ', b'"\xff"', b"[1]", b"null", good]))
    records, account = read_records(path)
    assert [record.source for record in records] == [f"{path}:1", f"{path}:7"]
    assert account["read"].dropped == {"malformed_json": 2, "wrong_type": 2}
    assert account["read"].examples["malformed_json"][0].startswith(f"{path}:3: ")
    assert account["read"].read == 6


def test_several_files_and_patterns(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.jsonl.gz"):
        write_jsonl(tmp_path / name, ROWS[:1])
    assert [path.name for path in find_files(str(tmp_path / "*.jsonl"))] == ["a.jsonl", "b.jsonl"]
    records, account = read_records([tmp_path / "c.jsonl.gz", str(tmp_path / "?.jsonl")])
    assert [record.source.split("/")[-1] for record in records] == ["c.jsonl.gz:1", "a.jsonl:1", "b.jsonl:1"]
    assert account["read"].read == 3
    (tmp_path / "[x].jsonl").write_text("")
    assert [path.name for path in find_files(tmp_path / "[x].jsonl")] == ["[x].jsonl"]
    with pytest.raises(ValueError, match="named twice"):
        find_files([tmp_path / "a.jsonl", str(tmp_path / "a*")])
    with pytest.raises(FileNotFoundError, match=r"nothing\*"):
        find_files(str(tmp_path / "nothing*"))
    (tmp_path / "d.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"\.jsonl\.gz"):
        find_files(tmp_path / "d.xlsx")


def test_a_folder_is_the_files_in_it_where_that_can_mean_one_thing(tmp_path):
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    for name in ("b.jsonl", "more/a.jsonl", "README.md", ".hidden", "state.json"):
        (folder / name).write_text("")
    assert [path.name for path in find_files(folder)] == ["b.jsonl", "a.jsonl"]
    for name, message in (
        ("b.csv", r"holds .csv and .jsonl: choose, as '.*/data/\*.csv'"),
        ("b.png", "holds b.png too: name what is meant"),
        ("train-0.jsonl", None),
        ("more/Training.jsonl", None),
        ("more/validation.jsonl", r"several splits \(eval, train\): choose"),
    ):
        (folder / name).write_text("")
        if message is None:
            assert folder / name in find_files(str(folder))
        else:
            with pytest.raises(ValueError, match=message):
                find_files(folder)
        if name.startswith("b."):
            (folder / name).unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no file with one of the suffixes"):
        find_files(tmp_path / "empty")


def test_a_damaged_archive_is_an_error_not_a_short_data_set(tmp_path):
    path = tmp_path / "f.jsonl.gz"
    write_jsonl(path, ROWS * 50)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="f.jsonl.gz is damaged"):
        read_records(path)


CHAT = {"prompt": "p", "completion": "a"}
REFUSED = {
    "f.jsonl": [
        (json.dumps(CHAT).encode("utf-16"), "is UTF-16, not UTF-8: convert it"),
        (json.dumps(CHAT).encode("utf-16-be"), "is UTF-16, not UTF-8"),
        (json.dumps(CHAT).encode("utf-32"), "is UTF-32, not UTF-8"),
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xe9", "completion": "b"}', ":2 is not UTF-8 but JSON"),
        (json.dumps([CHAT]).encode(), "is JSON over the whole file.*: name it .json"),
        (json.dumps(CHAT, indent=1).encode(), "is JSON over the whole file"),
        (b"prompt,chosen,rejected\np,a,b\n", r"is a table with separators \(CSV\), not JSON: name it .csv"),
        (b"prompt\tchosen\trejected\np\ta\tb\n", "name it .tsv"),
        (gzip.compress(b"{}"), "is gzip: name it with .gz at the end"),
        (b"PAR1\0", "is Parquet: name it"),
        (b"ARROW1\0\0", "is Arrow: name it"),
        (b"PK\x03\x04", "is a ZIP archive"),
        (b"\n" * 150_000, ":100001: 100000 blank lines"),
    ],
    "f.jsonl.gz": [
        (gzip.compress(b" " * 2**26), "expands to more than 200 times its size: unpack it first"),
        (gzip.compress(b"\n" * 2**24), ":100001: 100000 blank lines"),
        (gzip.compress(b"{}" * 999)[:20], "is damaged"),
        (b"{}", "is damaged: Not a gzipped file"),
        # A byte of the compressed stream itself, which no checksum finds.
        (gzip.compress(b"{}")[:10] + b"\xff" * 20, "is damaged: Error -3"),
    ],
    "f.json": [
        (b'[{"prompt": "a"}, 1]', "after row 1 stands ', 1' where an object, or the end, should"),
        (b'[{"prompt": "a"} {"prompt": "b"}]', "after row 1 stands 'one more object' where a comma"),
        (b'[{"prompt": "a"}]{}', "after row 1 stands 'one more object' where nothing should"),
        (b'["a", {"prompt": "b"}]', "after row 0 stands '\"a\",'"),
        (b'[{"prompt": "a"}]]', "is damaged after row 1: ] closes nothing"),
        (b'[{"prompt": "a"}, {"pro', "is damaged: it ends inside of what follows row 1"),
        (b'[{"prompt": "a"}', "is damaged: it ends inside of what follows row 1"),
        (b'{"prompt": "' + b"a" * 2**24 * 2, "what follows row 0 is longer than"),
        (json.dumps({"data": [CHAT]}).encode(), "is one object, not rows: its 'data' holds them, and jq .data"),
        (b'{"prompt": {"0": "a"}, "completion": {"0": "b"}}', "holds columns, as pandas writes them"),
        (b"prompt,completion\na,b\n", "is a table .*: name it .csv"),
        (b'[{"prompt": "\xe9"}]', ":1 is not UTF-8 but JSON in another encoding"),
        (json.dumps([CHAT]).encode("utf-16"), "is UTF-16, not UTF-8"),
    ],
    "f.json.gz": [(gzip.compress(b"[" + b" " * 2**26), "expands to more than|what follows row 0 is longer")],
    "f.csv": [
        (b"[1]", "is JSON, not a table: name it .json"),
        (b"prompt\tcompletion\na\tb", "is separated by tabs, not commas: name it .tsv"),
        (b"prompt,prompt\na,b", "the header names prompt twice"),
        (b'prompt,completion\na,"b\nc,d\n', "cannot be read as a table, at or before line 3: unexpected end"),
        (b'prompt,completion\na,"b"c\n', "cannot be read as a table, at or before line 2.*: a cell with quotes"),
        (b"prompt,completion\n\xe9,b\n", r":2 is not UTF-8 \(invalid continuation byte\): convert it"),
        (gzip.compress(b"a"), "is gzip: name it with .gz"),
    ],
    "f.tsv": [(b"prompt,completion\na,b", "is not separated by tabs: name it .csv")],
    "f.arrow": [
        (b"", "cannot be read as Arrow, after 0 rows"),
        (b"ARROW1" * 9, "cannot be read as Arrow"),
        (b"PAR1" * 9, "is Parquet: name it"),
        (b"FEA1", "is Feather of version 1"),
    ],
    "f.parquet": [(b"{}", "cannot be read as Parquet"), (b"PAR1" * 9, "cannot be read as Parquet")],
}


@pytest.mark.parametrize(
    "name, content, message",
    [pytest.param(name, *case, id=f"{name} {case[1]}") for name in REFUSED for case in REFUSED[name]],
)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path, name, content, message):
    if name.endswith(("parquet", "arrow")):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path / name}.*{message}"):
        read_records(tmp_path / name)


def test_rows_of_an_array_are_found_wherever_a_piece_of_the_file_ends(tmp_path, monkeypatch):
    rows = [CHAT | {"completion": text} for text in ('"\\"', "[{", "é\n", "\\", "}]" * 9)] + [{"a": [[1], {"b": {}}]}]
    for text in (json.dumps(rows), json.dumps(rows, ensure_ascii=False, indent=3), "\n".join(map(json.dumps, rows))):
        (tmp_path / "f.json").write_text("\ufeff \n" + text + " \n")
        for size in (4, 7, 100, 2**20):
            monkeypatch.setattr(json_files, "_CHUNK", size)
            assert list(read_rows(tmp_path / "f.json", progress=False)) == [
                (f"{tmp_path / 'f.json'}:{number}", row) for number, row in enumerate(rows, 1)
            ]
    (tmp_path / "f.json").write_text('[{"a": }, {"b" 1}, {"prompt": "p", "completion": "b"}]')
    assert read_records(tmp_path / "f.json")[1]["read"].dropped == {"malformed_json": 2}
    for empty in ("", "[]", " \n", "[\n]\n"):
        (tmp_path / "f.json").write_text(empty)
        assert read_records(tmp_path / "f.json")[1]["read"].read == 0


def test_a_column_that_few_rows_name_otherwise_is_said_where_most_are_right(tmp_path):
    rows = [{"prompt": f"{i}", "chosen" if i % 3 else "choosen": "a", "rejected": "b"} for i in range(9)]
    write_jsonl(tmp_path / "f.jsonl", rows)
    records, account = read_records(tmp_path / "f.jsonl")
    assert len(records) == 6 and account["read"].dropped == {"missing_field": 3}
    said = f"{tmp_path / 'f.jsonl'}:1:chosen: the row has choosen: did you mean chosen?"
    assert account["read"].examples["missing_field"] == [said], "once, with how often"


def test_tables(tmp_path):
    path = tmp_path / "f.csv.gz"
    text = 'prompt,completion,,label\r\n"a\nb, ""c""",d,0,t\r\n\r\ne,,1,F\r\nf,g\r\n' + "h," + "i" * 200_000 + ",2,\r\n"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    records, account = read_records(path)
    assert [(r.prompt, r.kind, r.source) for r in records] == [
        ('a\nb, "c"', "unpaired", f"{path}:2"), ("h", "demonstration", f"{path}:7"),
    ]  # fmt: skip
    assert records[0].targets == (1.0,) and records[1].responses == ("i" * 200_000,)
    stage = account["read"]
    assert stage.dropped == {"missing_field": 1, "ragged_row": 1}
    assert stage.examples["ragged_row"] == [f"{path}:6: 2 cells, the header has 4"]
    assert stage.examples["unread_column"] == [f"{path}:2: column 3"]


def test_arrow_batches_and_columns(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    feather = pytest.importorskip("pyarrow.feather")
    table = pyarrow.table({"prompt": ["p"] * 300, "completion": ["a"] * 300, "at": [[{"b": 1}]] * 300})
    for compression in ("uncompressed", "lz4", "zstd"):
        feather.write_feather(table, tmp_path / "f.arrow", compression=compression, chunksize=200)
        rows = list(read_rows(tmp_path / "f.arrow", columns=["prompt"], progress=False))
        assert [row for _, row in rows] == [{"prompt": "p", "completion": ..., "at": ...}] * 300
        assert rows[-1][0] == f"{tmp_path / 'f.arrow'}:300"
    feather.write_feather(table.select(["at"]), tmp_path / "f.arrow")
    assert read_records(tmp_path / "f.arrow")[1]["read"].dropped == {"missing_field": 300}
    whole = (tmp_path / "f.arrow").read_bytes()
    (tmp_path / "f.arrow").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="f.arrow cannot be read as Arrow"):
        read_records(tmp_path / "f.arrow")


def test_a_line_that_cannot_be_taken_is_counted_alone(tmp_path):
    path = tmp_path / "f.jsonl"
    lines = [
        b"\xef\xbb\xbf" + json.dumps(CHAT).encode(),  # with a byte order mark
        b"[" * 100_000 + b"]" * 100_000,
        json.dumps(CHAT | {"reward": 10**400}).encode(),
        json.dumps(CHAT | {"reward": 1e39}).encode(),
        json.dumps(CHAT | {"weight": -1e39}).encode(),
        b'{"reward": ' + b"9" * 5000 + b"}",
        json.dumps({"prompt": [{"role": "\ud800", "content": "a"}], "completion": "b"}).encode(),
        json.dumps(CHAT | {"\udfff": 1}).encode(),
        b'{"prompt": "' + b"a" * 2**24 + b'"}',
        json.dumps(CHAT | {"id": "\U0001f600"}).encode(),
    ]
    path.write_bytes(b"\n".join(lines))
    records, account = read_records(path)
    assert [record.source for record in records] == [f"{path}:1", f"{path}:10"]
    dropped = {"too_deep": 1, "not_finite": 3, "malformed_json": 3, "line_too_long": 1}
    assert account["read"].dropped == dropped and account["read"].read == 10
    assert account["read"].examples["malformed_json"][1] == f"{path}:7: half of a character: '\\ud800'"


def test_columns_that_nobody_asked_for_are_not_read(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "f.parquet"
    table = pyarrow.table({"prompt": ["p"], "completion": ["a"], "at": pyarrow.array([1], pyarrow.timestamp("ns"))})
    parquet.write_table(table, path)
    records, account = read_records(path)
    assert len(records) == 1 and account["read"].examples["unread_column"] == [f"{path}:1: at"]
    with pytest.raises(ValueError, match="f.parquet cannot be read as Parquet, after 0 rows: .*[Nn]anosecond"):
        read_records(path, more=Columns(record=("at",)))
    parquet.write_table(table.select(["at"]), path)
    assert read_records(path)[1]["read"].dropped == {"missing_field": 1}


def test_fuzzed_records_and_files_are_counted_or_refused_by_name(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'{"prompt": "\xc3\xa9", "completion": "b"}\n' + b"\n".join(fuzzed_lines(seed=1, count=300)))
    kept, dropped = outcome(path)
    assert kept > 20 and len(dropped) > 12, "most kinds of faults are among them"
    outcomes = [outcome(fuzzed_file(tmp_path, seed)) for seed in range(150)]
    refused = {found.partition(" ")[2][:30] for found in outcomes if isinstance(found, str)}
    assert sum(not isinstance(found, str) for found in outcomes) > 20 and len(refused) > 5


def test_a_missing_pyarrow_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.delitem(__import__("sys").modules, "pyarrow.parquet", raising=False)
    (tmp_path / "f.parquet").write_bytes(b"")
    with pytest.raises(ImportError, match="pip install pyarrow"):
        read_records(tmp_path / "f.parquet")


# Real sets. `dropped` charges a record to its first reason; `found` counts overlaps too.


@pytest.mark.parametrize(
    "name, read, kinds, dropped, found",
    [
        ("dpo_en_demo", 300, "pair", {}, {}),
        ("kto_en_demo", 300, "unpaired", {}, {}),
        ("hh_harmless_base_test", 2312, "pair", {"empty_response": 4},
         {"empty_response": 4, "several_messages": 5, "consecutive_roles": 9}),
        # One of the four identical pairs has equal scores as well.
        ("ultrafeedback_1k_train", 1000, "pair", {"identical_responses": 4, "empty_response": 2, "tie": 110},
         {"identical_responses": 4, "empty_response": 2, "tie": 111, "unread_column": 1000}),
        ("ultrafeedback_1k_eval", 200, "pair", {"identical_responses": 1, "tie": 24},
         {"identical_responses": 1, "tie": 25, "unread_column": 200}),
        ("gsm8k_solutions_k4", 1319, "ranked", {},
         {"all_scores_equal": 588, "duplicate_responses": 8, "unread_column": 1319}),
        ("oasst_en100_ranked", 212, "ranked", {}, {"unread_column": 212}),
    ],
)  # fmt: skip
def test_real_sets(real_data, name, read, kinds, dropped, found):
    records, account = read_records(real_data / f"{name}.jsonl.gz", progress=False)
    stage = account["read"]
    assert stage.read == read and {record.kind for record in records} == {kinds}
    assert (stage.dropped, stage.found) == (dropped, found)
    assert stage.kept == len(records) == read - sum(dropped.values())
    assert all(reason in str(account) and REASONS[reason] in str(account) for reason in found)


@pytest.mark.slow
def test_hh_edge_cases_lie_where_they_are_known_to_lie(real_data):
    path = real_data / "hh_harmless_base_test.jsonl.gz"
    records, account = read_records(path, progress=False)
    rows = {int(record.source.rsplit(":", 1)[1]) - 1: record for record in records}
    assert set(range(2312)) - rows.keys() == {86, 516, 925, 1103}  # an empty completion
    assert account["read"].examples["empty_response"][0] == f"{path}:87:chosen"
    notices = [(row, notice.reason, notice.field) for row, record in rows.items() for notice in inspect(record)]
    several = {row for row, reason, _ in notices if reason == "several_messages"}
    assert several == {1254, 1688, 1950, 1952, 2036}
    in_prompt = {row for row, reason, field in notices if (reason, field) == ("consecutive_roles", "prompt")}
    assert in_prompt == {667, 763, 1319, 1849}
    # The several messages of those five completions are all the assistant's.
    assert {row for row, reason, field in notices if (reason, field) == ("consecutive_roles", "responses")} == several
    assert max(len(record.prompt) for record in records) == 35


def test_hh_as_whole_conversations(real_data, tmp_path):
    """The implicit prompt, found in message space and in text, is the one the set was split at."""
    with gzip.open(real_data / "hh_harmless_base_test.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    rows = rows[:500] + [rows[at] for at in (667, 763, 1319, 1849)]  # with roles that do not alternate

    def text(messages) -> str:
        return "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in messages)

    sides = ("chosen", "rejected")
    chats = [{side: row["prompt"] + row[side] for side in sides} for row in rows]
    for name, whole in (
        ("explicit", rows),
        ("chats", chats),
        ("texts", [{side: text(row[side]) for side in sides} for row in chats]),
    ):
        write_jsonl(tmp_path / f"{name}.jsonl", whole)
    (explicit, _), (implicit, in_chats), (plain, in_texts) = (
        read_records(tmp_path / f"{name}.jsonl", progress=False) for name in ("explicit", "chats", "texts")
    )
    assert in_chats["read"].dropped == in_texts["read"].dropped == {"empty_response": 1}
    assert [(r.prompt, r.responses) for r in implicit] == [(r.prompt, r.responses) for r in explicit]
    for record, chat in zip(plain, explicit, strict=True):
        assert record.prompt == text(map(vars, chat.prompt)) + "\n\nAssistant:"
        assert record.responses == tuple(f" {response[0].content}" for response in chat.responses)
