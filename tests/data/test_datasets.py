"""Named datasets: every entry's real schema through the real builder, the real sets, and what goes wrong by name."""

import functools
import gzip
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from docs import write_datasets
from prefjax.data.account import Rejection, collect
from prefjax.data.dataset_builder import build
from prefjax.data.dataset_entry import File, HubParquet, Split, Variant, local_files, pair
from prefjax.data.dataset_files import read_raw
from prefjax.data.datasets import DATASETS, find
from prefjax.data.formats import RecordFormat, parse
from prefjax.data.readers import read_records
from prefjax.data.records import Record
from prefjax.data.sources import OpenSource
from tests.data.dataset_samples import EXPECTED, FILES, contents, write_samples

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def manual_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("manual")
    for dataset in FILES:
        write_samples(folder, dataset)
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tfds")


def test_every_dataset_has_a_sample():
    assert FILES.keys() == DATASETS.keys() == {name.split("/")[0].split(":")[0] for name in EXPECTED}


@pytest.mark.parametrize("name", EXPECTED)
def test_sample_rows_become_these_records(name, manual_dir, data_dir):
    source = OpenSource(name, data_dir=str(data_dir), manual_dir=str(manual_dir))
    records, account = source.read(RecordFormat())
    made = {record.source: contents(record) for record in records}
    for number, expected in enumerate(EXPECTED[name], 1):
        if isinstance(expected, str):
            assert account["read"].examples[expected][0].startswith(f"{name}:{number}:")
        elif isinstance(expected, list):  # the records of a tree
            assert [made.pop(place) for place in list(made) if place.startswith(f"{name}:{number}:")] == expected
        else:
            assert made.pop(f"{name}:{number}") == expected
    assert not made and account["read"].read == len(EXPECTED[name])
    assert "unread_column" not in account["read"].found, "an entry leaves out what no record needs"


def test_the_registry_is_consistent():
    for name, dataset in DATASETS.items():
        assert dataset.name == name and name.isidentifier() and dataset.licence and dataset.title
        assert dataset.homepage.startswith("https://")
        assert len({variant.name for variant in dataset.variants}) == len(dataset.variants)
        for variant in dataset.variants:
            assert find(dataset.full_name(variant)) == (dataset, variant)
            assert variant.columns and variant.splits and variant.shape in ("pairs", "rankings", "unpaired")
            for file in (file for split in variant.splits.values() for file in split.files):
                assert not Path(file.path).is_absolute()
                assert (file.url if isinstance(file, File) else file.listing).startswith("https://")


def test_docs_are_generated_from_the_registry():
    assert write_datasets.PAGE.read_text() == write_datasets.render(), "run python -m docs.write_datasets"


# Real sets: a file path and the builder read the same.


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, found",
    [
        ("dpo_en_demo", {}),
        ("kto_en_demo", {}),
        ("hh_harmless_base_test", {"empty_response": 4, "several_messages": 5}),
        ("ultrafeedback_1k_train", {"identical_responses": 4, "empty_response": 2, "tie": 111}),
        ("ultrafeedback_1k_eval", {}),
        ("gsm8k_solutions_k4", {"all_scores_equal": 588}),
        ("oasst_en100_ranked", {}),
    ],
)
def test_real_sets_through_a_builder(real_data, tmp_path, name, found):
    """Records and counts by reason are those of the file."""
    path = real_data / f"{name}.jsonl.gz"
    dataset = local_files(name, {"train": path})
    rows = build(dataset, dataset.variants[0], data_dir=str(tmp_path)).as_data_source("train")
    by_name, account = collect(
        "read", range(len(rows)), lambda i: parse(json.loads(rows[i]["record"]), f"{path}:{i + 1}")
    )
    by_path, expected = read_records(path, progress=False)
    assert by_name == by_path and account.as_dict() == expected.as_dict()
    assert found.items() <= account["read"].found.items()


def test_real_hh_transcripts_are_split_as_the_set_was(real_data, tmp_path):
    """Put back into the published text, real rows, all the odd ones among them, become those of the message form."""
    path = tmp_path / "chats.jsonl"
    odd = {86, 516, 925, 1103, 1254, 1688, 1950, 1952, 2036, 667, 763, 1319, 1849}
    with gzip.open(real_data / "hh_harmless_base_test.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for number, line in enumerate(file) if number < 300 or number in odd]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def transcript(messages) -> str:
        who = {"user": "Human", "assistant": "Assistant"}
        return "".join(f"\n\n{who[m['role']]}: {m['content']}" for m in messages)

    whole = [{side: transcript(row["prompt"] + row[side]) for side in ("chosen", "rejected")} for row in rows]
    for split in ("train", "test"):
        target = tmp_path / "manual" / "hh_rlhf" / "harmless-base" / f"{split}.jsonl.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(target, "wt", compresslevel=1) as file:
            file.writelines(json.dumps(row) + "\n" for row in whole)
    name = "hh_rlhf/harmless-base:test"
    source = OpenSource(name, data_dir=str(tmp_path / "tfds"), manual_dir=str(tmp_path / "manual"))
    records, account = source.read(RecordFormat())
    expected, _ = read_records(path, progress=False)
    assert account["read"].dropped == {"empty_response": 4} and account["read"].found["several_messages"] == 5
    assert [(r.prompt, r.responses) for r in records] == [(r.prompt, r.responses) for r in expected]


# Raw files and the builder.


def test_containers_are_known_by_their_content_not_their_name(tmp_path):
    """A download may be unpacked on the way, or named anew."""
    rows = [{"a": 1}, {"a": None}]
    text = "".join(json.dumps(row) + "\n\n" for row in rows).encode()
    for name, content in [("plain.gz", text), ("packed", gzip.compress(text))]:
        (tmp_path / name).write_bytes(content)
        assert list(read_raw(tmp_path / name, "jsonl", ("a",))) == rows
    for whole in (rows, {"first": rows[:1], "second": rows[1:]}):
        (tmp_path / "whole").write_text(json.dumps(whole))
        assert list(read_raw(tmp_path / "whole", "json", ())) == rows
    (tmp_path / "cells").write_text('a,b\n"1,\n2",\n,x\n')
    assert list(read_raw(tmp_path / "cells", "csv", ("b",))) == [{"a": "1,\n2", "b": None}, {"a": None, "b": "x"}]
    with pytest.raises(ValueError, match="format must be one of"):
        File("f.xml", None, "xml")


def test_a_pair_is_what_the_judgement_says():
    assert pair("p", "a", "b", 2) == {
        "prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 2.0, "score_rejected": 0.0,
    }  # fmt: skip
    assert [pair("p", "a", "b", by)["chosen"] for by in (0.5, 0, -0.5)] == ["a", "a", "b"]
    assert [pair("p", "a", "b", by)["score_chosen"] for by in (0, -3)] == [0.0, 3.0]


def test_records_lie_in_array_record_files_and_are_built_once(manual_dir, tmp_path):
    dataset, variant = find("orca_dpo_pairs")
    built = build(dataset, variant, data_dir=str(tmp_path), manual_dir=str(manual_dir))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(".array_record" in path.name for path in files) and built.info.homepage == dataset.homepage
    before = {path: path.stat().st_mtime_ns for path in files}
    build(dataset, variant, data_dir=str(tmp_path))  # neither the folder nor the network is asked again
    assert {path: path.stat().st_mtime_ns for path in files} == before


@pytest.fixture
def server(manual_dir):
    """The sample files over http, and the hub's listing of Parquet files."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        asked: list[str] = []

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.asked.append(self.path)
            if self.path != "/listing":
                return super().do_GET()
            host = f"http://{self.headers['Host']}"
            body = json.dumps([f"{host}/rpr/default/{s}/0000.parquet" for s in ("train", "test")]).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

    handler = functools.partial(Handler, directory=str(manual_dir))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        Handler.asked.clear()
        yield f"http://127.0.0.1:{running.server_port}", Handler.asked
        running.shutdown()


def test_files_are_downloaded_by_tfds_once(server, tmp_path, monkeypatch):
    url, asked = server
    dataset, variant = find("helpsteer2/preference")
    path = "preference/preference.jsonl.gz"
    files = (File(path, f"{url}/helpsteer2/{path}", "jsonl"),)
    splits = {name: Split(files, split.where) for name, split in variant.splits.items()}
    served = Variant(variant.shape, splits, variant.columns, variant.records, variant.name)
    built = build(dataset, served, data_dir=str(tmp_path))
    assert {name: split.num_examples for name, split in built.info.splits.items()} == {"train": 3, "validation": 1}
    assert asked == [f"/helpsteer2/{path}"]


def test_parquet_shards_are_those_the_hub_lists(server, tmp_path, monkeypatch):
    url, _ = server
    monkeypatch.setattr(HubParquet, "listing", property(lambda self: f"{url}/listing"))
    dataset, variant = find("rpr")
    built = build(dataset, variant, data_dir=str(tmp_path))
    assert built.info.splits["train"].num_examples == 4  # both files, one row each, two records a row


def test_the_published_addresses():
    """As the sources give them."""
    assert HubParquet("allenai/multipref", "train").listing == (
        "https://huggingface.co/api/datasets/allenai/multipref/parquet/default/train"
    )
    _, variant = find("hh_rlhf/helpful-online")
    assert variant.splits["test"].files[0].url == (
        "https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/main/helpful-online/test.jsonl.gz"
    )


# What goes wrong.


def test_a_missing_file_says_where_to_get_it_and_where_it_belongs(tmp_path):
    for name, file, origin in [
        ("hh_rlhf/harmless-base:test", "hh_rlhf/harmless-base/train.jsonl.gz",
         "https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/main/harmless-base/train.jsonl.gz"),
        ("coig_p:train", "coig_p/default/train/*.parquet",
         "https://huggingface.co/datasets/m-a-p/COIG-P/tree/refs%2Fconvert%2Fparquet/default/train"),
    ]:  # fmt: skip
        with pytest.raises(FileNotFoundError) as error:
            OpenSource(name, data_dir=str(tmp_path / "tfds"), manual_dir=str(tmp_path / "manual"))
        message = str(error.value)
        assert str(tmp_path / "manual" / file) in message and origin in message
        assert f"put it into {(tmp_path / 'manual' / file).parent}/" in message


@pytest.mark.parametrize(
    "name, hints",
    [
        (
            "hh_rlfh/harmless-base:train",
            ["no dataset named 'hh_rlfh'", "hh_rlhf", "docs/datasets.md", "docs/shapes.md"],
        ),
        ("hh_rlhf:train", ["several variants", "hh_rlhf/harmless-base", "hh_rlhf/helpful-online"]),
        ("hh_rlhf/harmles-base:train", ["hh_rlhf/harmless-base"]),
        ("hh_rlhf/harmless-base", ["give a split", "hh_rlhf/harmless-base:train", "hh_rlhf/harmless-base:test"]),
        ("hh_rlhf/harmless-base:validation", ["no such split", "hh_rlhf/harmless-base:test"]),
        ("something_else", ["no dataset named 'something_else'"]),
    ],
)
def test_unknown_names_list_what_is_near(name, hints, tmp_path):
    with pytest.raises(ValueError) as error:
        OpenSource(name, data_dir=str(tmp_path))
    assert all(hint in str(error.value) for hint in hints), error.value


def test_a_changed_source_is_refused(tmp_path):
    folder = tmp_path / "manual" / "orca_dpo_pairs"
    folder.mkdir(parents=True)
    (folder / "orca_rlhf.jsonl").write_text(json.dumps({"system": "", "question": "q", "chatgpt": "a"}) + "\n")
    with pytest.raises(ValueError, match="no column chosen, rejected .there are system, question, chatgpt"):
        OpenSource("orca_dpo_pairs:train", data_dir=str(tmp_path / "tfds"), manual_dir=str(tmp_path / "manual"))
    (folder / "orca_rlhf.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="Git LFS pointer"):
        OpenSource("orca_dpo_pairs:train", data_dir=str(tmp_path / "tfds"), manual_dir=str(tmp_path / "manual"))
    (folder / "orca_rlhf.jsonl").write_text("{}{}\n")
    with pytest.raises(ValueError, match="orca_rlhf.jsonl is damaged at or after line 1"):
        OpenSource("orca_dpo_pairs:train", data_dir=str(tmp_path / "tfds"), manual_dir=str(tmp_path / "manual"))


def test_half_a_character_is_counted_not_lost(tmp_path):
    """JSON can spell one; it passes the store as it is and the record is rejected with its place."""
    (tmp_path / "f.jsonl").write_text('{"prompt": "p", "chosen": "a\\ud83d", "rejected": "b"}\n')
    dataset = local_files("halves", {"train": [tmp_path / "f.jsonl"]})
    rows = build(dataset, dataset.variants[0], data_dir=str(tmp_path)).as_data_source("train")
    (found,) = parse(json.loads(rows[0]["record"]), "halves:1")
    assert isinstance(found, Rejection) and found.reason == "wrong_type" and not isinstance(found, Record)


def test_no_tensorflow_and_no_torch(manual_dir, tmp_path):
    code = f"""
import sys
from prefjax.data.sources import OpenSource
from prefjax.data.formats import RecordFormat
for name in ("multipref/all:train", "hh_rlhf/helpful-base:test", "community_alignment/en:train"):
    source = OpenSource(name, data_dir={str(tmp_path)!r}, manual_dir={str(manual_dir)!r})
    assert source.read(RecordFormat())[0] and source.fingerprint()
assert not {{"tensorflow", "torch", "jax", "datasets"}} & set(sys.modules), "imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
