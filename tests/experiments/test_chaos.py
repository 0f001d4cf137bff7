"""A small size of experiments.chaos, and that it can tell a fault when there is one."""

import json

import pytest

from experiments.chaos import inputs
from experiments.chaos.tally import DIFFERENT, FAULT, FINE, REFUSED, Tally
from tests.experiments.test_commands import run


def test_a_fault_and_a_silent_difference_are_told_from_a_refusal():
    def fails(error):
        raise error

    tally = Tally("a try")
    tally.attempt("equal", lambda: 1, 1, names="file")
    tally.attempt("other", lambda: 2, 1, names="file")
    tally.attempt("named", lambda: fails(ValueError("file is damaged")), 1, names="file")
    tally.attempt("unnamed", lambda: fails(ValueError("damaged")), 1, names="file")
    tally.attempt("crash", lambda: fails(KeyError("file")), 1, names="file")
    assert [end for end, _ in tally.ends] == [FINE, DIFFERENT, REFUSED, FAULT, FAULT]
    assert [line.split(": ")[2] for line in tally.bad()] == ["other", "unnamed", "crash"]


def test_records_files_and_options(tmp_path):
    for tally in (inputs.records(tmp_path, 5, 60), inputs.files(tmp_path, 5, 12), inputs.options(5, 120)):
        assert not list(tally.bad()) and tally.count(REFUSED), tally.what


@pytest.mark.slow
def test_models_folders(tmp_path):
    tally = inputs.folders(tmp_path, 5, 25)
    assert not list(tally.bad()) and tally.count(FINE) and tally.count(REFUSED)


@pytest.mark.slow
def test_the_command(tmp_path):
    only = "--only=options,kills,signals,flips_of_a_finished_run"
    done = run("chaos", f"--output={tmp_path}", "--share=0.02", only)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["faults"] == [] and len(result["counts"]) == 4
    assert sum(sum(counts.values()) for counts in result["counts"].values()) == 10 + 1 + 1 + 3
    assert (tmp_path / "table.md").read_text().strip() in done.stdout
    assert run("chaos", f"--output={tmp_path}", "--only=kill", check=False).returncode == 1
