"""experiments.report: where the page goes, what runs are called, errors in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.analysis.synthetic_runs import CONFIG, write
from tests.commands import load

report = load("report")
common_folder, run_names = report.common_folder, report.run_names

ROOT = Path(__file__).resolve().parents[2]


def report(*options):
    command = [sys.executable, "-m", "experiments.report", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_several_runs(tmp_path):
    a, b = write(tmp_path / "runs" / "a"), write(tmp_path / "runs" / "b", config=CONFIG | {"loss": {"beta": 0.5}})
    done = report(f"--runs={a},{b}")
    assert done.returncode == 0, done.stderr
    page = tmp_path / "runs" / "overview.md"
    assert done.stdout == f"written to {page}\n" and "| `loss.beta` | `0.1` | `0.5` |" in page.read_text()


def test_errors_are_one_line(tmp_path):
    done = report(f"--runs={tmp_path}")
    assert done.returncode == 1 and "holds no metrics.jsonl" in done.stderr and "Traceback" not in done.stderr


def test_names_and_places(tmp_path, monkeypatch):
    a, b = tmp_path / "x" / "a", tmp_path / "y" / "a"
    assert run_names([a, b]) == ["x/a", "y/a"] and run_names([a]) == ["a"]
    assert run_names([a, a / "sft"]) == ["a", "a/sft"]
    assert common_folder([a]) == a and common_folder([a, b]) == tmp_path
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--output: the folder that holds all runs is"):
        common_folder([a, b])
