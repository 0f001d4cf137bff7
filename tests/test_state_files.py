"""Files of state: whole or as they were, named where they are damaged, begun anew where they can be."""

import json
import os

import pytest

from prefjax import ByteTokenizer, state_files
from prefjax.data.config import DataConfig
from prefjax.data.prepare import prepare
from prefjax.data.world_records import WorldOptions
from prefjax.requirements import Requirements
from prefjax.state_files import read_object, staying, write_whole
from prefjax.training import provenance
from prefjax.training.runs import open_run
from prefjax.training.writers import MetricsFile


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_whole(path, '{"a": "é"}')
    monkeypatch.setattr(state_files.os, "fsync", lambda file: 1 / 0)  # the process ends while it writes
    with pytest.raises(ZeroDivisionError):
        write_whole(path, '{"b": 1}')
    assert read_object(path) == {"a": "é"} and os.listdir(tmp_path) == ["state.json"]


def test_a_folder_that_was_taken_away_and_made_anew_is_told(tmp_path):
    folder = tmp_path / "run"
    with staying(folder):
        (folder / "kept").touch()
    for again in (False, True):
        with pytest.raises(OSError, match=f"^{folder} was taken away in the middle of the run"), staying(folder):
            folder.rename(tmp_path / f"aside-{again}")
            folder.mkdir() if again else None


def test_metrics_of_a_folder_that_is_gone_are_not_begun_anew(tmp_path):
    file = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    file.write(1, "train", {"loss": 1.0})
    (tmp_path / "run").rename(tmp_path / "aside")
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        file.write(2, "train", {"loss": 1.0})
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        file.write(2, "train", {"loss": 1.0})


@pytest.mark.parametrize("content", [b"", b'{"seed": 0, "da', b"\xff\xfe{}", b"[" * 100_000])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json is damaged: "):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json must hold a JSON object, not a list"):
        open_run(tmp_path)


def test_a_damaged_record_of_sessions_is_begun_anew(tmp_path, capfd):
    (tmp_path / "run.json").write_text('{"sessions": [{"from_st')
    with provenance.session(tmp_path, {"seed": 3}, from_step=5) as session:
        session.reached(9, finished=True)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["seed"] == 3 and [entry["from_step"] for entry in record["sessions"]] == [5]
    assert (tmp_path / "run.json.damaged").read_text() == '{"sessions": [{"from_st'
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and f"{tmp_path}/run.json is damaged: " in said and "begun anew" in said


def test_damaged_lines_of_metrics_are_left_out_and_named(tmp_path, capfd):
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"step": %d, "split": "train", "loss": 0.5}' % step for step in (1, 2, 3)]
    cut = b'{"step": 4, "split": "tr'
    path.write_bytes(b"\n".join([lines[0], b"x}", lines[1], b"{}", b"\xff\x00", lines[2], cut]))
    MetricsFile(path, resume_step=2).write(3, "eval", {"loss": 0.25})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert capfd.readouterr().err == f"{path}: damaged and left out: line 2, 4, 5, 7\n"


@pytest.mark.parametrize("name,content", [("manifest.json", "{"), ("manifest.json", "{}"), ("index.npz", "")])
def test_damaged_prepared_data_are_prepared_again(tmp_path, name, content, capfd):
    config = DataConfig(world=WorldOptions(train_examples=8, eval_examples=4))
    ready = lambda: prepare(config, Requirements(), ByteTokenizer(), tmp_path, split="train", progress=False)
    whole = ready()
    (whole.directory / name).write_text(content)
    assert ready().content_hash == whole.content_hash
    said = capfd.readouterr().err
    assert f"{whole.directory}/{name} is" in said and "prepared again" in said
