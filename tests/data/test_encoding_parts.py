"""Preparing data in parts: the same bytes by any number of processes, what a stop leaves, what is held meanwhile."""

import json
import os
import threading
from pathlib import Path

import pytest

from prefjax.data import encoding_parts
from prefjax.data.config import DataConfig
from prefjax.data.encoding import EncodingPolicy
from prefjax.data.encoding_parts import PartEncoder, encode_parts
from prefjax.data.prepare import prepare
from prefjax.data.records import Record
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.data.worker_processes import WorkerProcesses
from prefjax.requirements import Requirements
from prefjax.rows.parts import parts_of
from tests.data.small_tokenizers import CHATML, small_tokenizer


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(encoding_parts, "PART", 8)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> tuple[DataConfig, object]:
    """Two sources of 21 and 12 records, chats of which some are dropped, and a tokenizer with a template."""
    folder = tmp_path_factory.mktemp("given")
    for name, count in (("a", 21), ("b", 12)):
        turn = lambda role, text: [{"role": role, "content": text}]
        rows = [
            {"prompt": turn("user", f"{name} {n}?"), "chosen": turn("assistant", f"yes {n}"),
             "rejected": turn("assistant", "</s>" if n % 5 == 3 else "no")}
            for n in range(count)
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = dict(train=f"{folder / 'a.jsonl'} + {folder / 'b.jsonl'}", eval=str(folder / "a.jsonl"), workers=1)
    return config, small_tokenizer(folder, CHATML)


def made(given, directory: Path, **options):
    config, tokenizer = given
    config = DataConfig(**(config | options))
    return prepare(config, Requirements(2), tokenizer, directory, split="train", progress=False)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def alone(given, tmp_path_factory) -> dict[str, bytes]:
    """The files that one process makes, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding_parts, "PART", 8)
        return contents(made(given, tmp_path_factory.mktemp("alone")).directory)


@pytest.mark.slow
def test_several_processes_write_the_same_bytes(given, alone, tmp_path):
    trees = made(given, tmp_path, workers=2)
    assert contents(trees.directory) == alone
    assert [path.name for path in tmp_path.iterdir()] == [trees.directory.name]
    counts = trees.manifest["account"]["encode"]
    assert (counts["read"], counts["kept"], counts["dropped"]) == (33, 27, {"special_text": 6})
    assert [source["trees"] for source in trees.manifest["sources"]] == [17, 10] and len(trees) == 27
    assert len(list(trees.directory.rglob("*.array_record*"))) == 5, "parts of 8, 8, 5 and of 8, 4 records"


def test_what_a_process_raises_is_raised_here_and_its_end_is_named():
    with WorkerProcesses(int, 1) as call:
        assert [call("7"), call("0b11", 2)] == [7, 3]
        with pytest.raises(ValueError, match="invalid literal for int.*'seven'"):
            call("seven")
        assert call("8") == 8
    with WorkerProcesses(os._exit, 1) as call, pytest.raises(RuntimeError, match="ended with status 3"):
        call(3)


def test_who_is_stopped_goes_on_where_it_was(given, alone, tmp_path, monkeypatch):
    encoded, encode = [], PartEncoder.__call__

    def stopping(self, number, source, records):
        if number == 3 and len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(number)
        return encode(self, number, source, records)

    monkeypatch.setattr(PartEncoder, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        made(given, tmp_path)
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".parts") and len(list(left.iterdir())) == 9
    (left / "part-00001.json").write_text("{")  # as if the machine had failed, too
    assert contents(made(given, tmp_path).directory) == alone
    assert encoded == [0, 1, 2, 1, 3, 4]


def test_a_stream_is_not_read_ahead(tmp_path):
    taken = []
    records = ((0, taken.append(n) or Record("p", ("a",), (1.0,), "unpaired")) for n in range(100))
    encoder = PartEncoder(ByteTokenizer(), EncodingPolicy(), tmp_path)
    parts = encode_parts(records, encoder, workers=1, progress=False)
    assert next(parts)["records"] == 8 and len(taken) == 16
    next(parts), next(parts)
    assert len(taken) == 24


def test_one_process_at_a_time_makes_a_dataset(tmp_path):
    order, inside = [], threading.Event()

    def second():
        inside.wait()
        order.append("waits")
        with parts_of(tmp_path / "set"):
            order.append("second")

    other = threading.Thread(target=second)
    other.start()
    with parts_of(tmp_path / "set"):
        inside.set()
        other.join(0.2)
        order.append("first")
    other.join()
    assert order == ["waits", "first", "second"] and not list(tmp_path.iterdir())
