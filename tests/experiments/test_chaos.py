"""A small size of experiments.chaos, that it can tell a fault when there is one, and that its page is its result."""

import json
import random

import pytest

from docs import write_chaos
from experiments.chaos import inputs, kinds, several
from experiments.chaos.runs import Runs, kills, refused
from experiments.chaos.several import Ended, problem_after_a_kill, problem_after_a_stop
from experiments.chaos.tally import DIFFERENT, FAULT, FINE, REFUSED, Tally
from prefjax.training.processes import PATIENCE
from tests.experiments.test_commands import run

SAVED = "SIGTERM: stopping after this step\nstopped, and saved. To continue:\n"
LEFT = "SIGTERM: stopping\ninterrupted, with what was saved before. To continue:\n"


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


@pytest.mark.parametrize(
    "status,said,clear",
    [
        (1, "== SFT\nerror: x: No space left on device: make room\n", True),
        (1, "error: x is gone\n", True),
        (0, "report: x\n", False),
        (1, "it failed\n", False),
        (1, "Traceback (most recent call last):\nerror: x\n", False),
        (-9, "error: x\n", False),
    ],
)
def test_one_line_is_told_from_a_traceback_and_from_nothing(status, said, clear):
    tally = Tally("a disk")
    assert refused(tally, "x", status, said) == clear and tally.count(FAULT) == (not clear)


@pytest.mark.parametrize(
    "ended,sound",
    [
        ([Ended(130, 3, SAVED)] * 2, True),
        ([Ended(0, 3, "report: x")] * 2, True),
        ([Ended(130, 3, SAVED), Ended(0, 3, "")], False),
        ([Ended(130, 3, SAVED), Ended(130, 99, SAVED)], False),
        ([Ended(130, 1, LEFT), Ended(1, PATIENCE, "")], True),
        ([Ended(130, 1, LEFT), Ended(-9, 600, "")], False),
        ([Ended(1, 1, "Traceback"), Ended(1, 1, "")], False),
    ],
)
def test_processes_that_stop_together_are_told_from_those_that_do_not(ended, sound):
    assert (problem_after_a_stop(ended, 0) == "") == sound


def test_a_process_that_outlives_another_is_a_fault():
    gone = Ended(-9, 0, "")
    assert not problem_after_a_kill([Ended(1, PATIENCE, ""), gone, Ended(-6, PATIENCE + 10, "")], 1)
    assert "status -9 after 600 s: last words" in problem_after_a_kill([Ended(-9, 600, "last words"), gone], 1)
    assert "status 0" in problem_after_a_kill([Ended(0, 9, ""), gone, Ended(1, 9, "")], 1)


def test_records_files_and_options(tmp_path):
    for tally in (inputs.records(tmp_path, 5, 60), inputs.files(tmp_path, 5, 12), inputs.options(5, 120)):
        assert not list(tally.bad()) and tally.count(REFUSED), tally.what


@pytest.mark.slow
def test_models_folders(tmp_path):
    tally = inputs.folders(tmp_path, 5, 25)
    assert not list(tally.bad()) and tally.count(FINE) and tally.count(REFUSED)


@pytest.mark.slow
def test_a_kill(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # those of the tests ask for eight devices
    tally = kills(Runs(tmp_path, random.Random(1)), 1)
    assert not list(tally.bad()) and len(tally.ends) == 1


@pytest.mark.slow
def test_the_command(tmp_path):
    done = run("chaos", f"--output={tmp_path}", "--share=0.02", "--only=options")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["faults"] == [] and sum(result["kinds"]["options"][end] for end in kinds.ENDS) == 10
    assert (tmp_path / "table.md").read_text().strip() in done.stdout


def test_every_kind_is_there():
    """Of all sizes, at least once."""
    for name in kinds.OF_SEVERAL:
        assert callable(getattr(several, name))
    assert all(1 <= kinds.size_of(name, 0.001) <= kinds.size_of(name, 1) == kinds.SIZES[name] for name in kinds.SIZES)


def test_results_of_some_kinds_each_become_one():
    of = lambda name, share, faults: {
        "kinds": {name: {"what": f"tried {name}", "share": share}},
        "faults": [f"tried {name}: fault: {fault}" for fault in faults],
        "seed": share,
    }
    found = write_chaos.joined([of("disks", 1, "a"), of("records", 1, "c"), of("disks", 2, "b")])
    assert list(found["kinds"]) == ["records", "disks"] and found["kinds"]["disks"]["share"] == 2
    assert found["faults"] == ["tried records: fault: c", "tried disks: fault: b"] and found["seed"] == 2


def test_the_page_is_the_committed_result_and_its_claims_hold():
    result, page = json.loads(write_chaos.RESULT.read_text()), write_chaos.OUTPUT.read_text()
    assert write_chaos.document(page, result) == page, "run python -m docs.write_chaos"
    assert list(result["kinds"]) == list(kinds.SIZES), "a kind is missing"
    for name, kind in result["kinds"].items():
        assert sum(kind[end] for end in kinds.ENDS) == kinds.size_of(name, kind["share"]), name
        assert kind[FAULT] == kind[DIFFERENT] == 0, name
    assert result["faults"] == []
