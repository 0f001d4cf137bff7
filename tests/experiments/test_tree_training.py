"""One command trains DPO from a file of trees to a report."""

import json
import runpy

import pytest

from prefjax.data.jsonl import write_rows
from prefjax.data.synthetic import World
from prefjax.data.synthetic_trees import dialogues
from tests.commands import as_program
from tests.documents import ROOT
from tests.experiments.test_commands import TINY


@pytest.mark.slow
def test_a_file_of_trees_becomes_a_report(tmp_path, monkeypatch):
    file, workdir = tmp_path / "trees.jsonl", tmp_path / "run"
    write_rows(file, dialogues(World(), 24, turns=2))
    options = [
        "--config.sft={}",
        "--config.train.steps=2",
        f"--config.data.train={file}",
        "--config.data.holdout=0.3",
        "--config.sampling.prompts=0",
    ]
    config = f"--config={ROOT / 'configs/quickstart.py'}:dpo"
    options = [option for option in TINY if ".sft." not in option] + options
    with as_program(["train", config, f"--workdir={workdir}", *options], monkeypatch):
        runpy.run_path(str(ROOT / "experiments/train.py"), run_name="__main__")
    assert "trees.jsonl" in (workdir / "report.md").read_text()
    (manifest,) = (workdir / "data").glob("train-*/manifest.json")
    account = json.loads(manifest.read_text())["account"]
    read = account["read"]
    assert read["outputs"] == 2 * read["read"] == 48 and read["found"]["lone_reply"] == 24
    assert account["adapt"]["outputs"] + account["encode"]["outputs"] > 0
