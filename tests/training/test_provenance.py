"""run.json: sessions are added and never lost, and the code of each can be had back from git and a patch."""

import json
import subprocess
import sys

import pytest

from prefjax.training import provenance

FACTS = {"objective": "dpo", "seed": 1, "start_check": {"loss": 0.69}}


def record(workdir):
    return json.loads((workdir / "run.json").read_text())


def test_sessions_are_added(tmp_path, monkeypatch):
    workdir = tmp_path / "new" / "run"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments.train", "--workdir=two words"])
    with provenance.session(workdir, FACTS, from_step=0) as session:
        assert record(workdir)["sessions"][0]["ended"] is None, "on disk while it runs"
        session.reached(10, finished=False)
    with pytest.raises(ValueError), provenance.session(workdir, FACTS | {"start_check": None}, from_step=10):
        raise ValueError("the loss is odd")
    with provenance.session(workdir, FACTS | {"start_check": None}, from_step=10) as session:
        session.reached(20, finished=True)
    saved = record(workdir)
    assert (saved["objective"], saved["seed"], saved["start_check"]) == ("dpo", 1, {"loss": 0.69})
    first, failed, last = saved["sessions"]
    assert (first["from_step"], first["to_step"], first["outcome"]) == (0, 10, "stopped")
    assert (failed["from_step"], failed["to_step"], failed["outcome"]) == (10, None, "ValueError: the loss is odd")
    assert (last["from_step"], last["to_step"], last["outcome"]) == (10, 20, "finished")
    for session in saved["sessions"]:
        assert session["started"] <= session["ended"] and session["started"].endswith("+00:00")
        assert session["command"] == "python -m experiments.train '--workdir=two words'" and session["packages"]["jax"]
        assert session["devices"] == {"count": 8, "kind": "cpu", "processes": 1}
        assert "commit" in session["code"] and session["code"]["version"]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository that holds `prefjax`, with one commit."""
    root = tmp_path / "repository"
    (root / "prefjax").mkdir(parents=True)
    (root / "prefjax" / "__init__.py").write_text("version = 1\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    monkeypatch.setattr(provenance.prefjax, "__file__", str(root / "prefjax" / "__init__.py"))
    return root


def git(root, *arguments):
    return subprocess.run(["git", "-C", root, *arguments], check=True, capture_output=True, text=True).stdout


def test_clean_code_is_its_commit(repository, tmp_path):
    state = provenance.code_state(tmp_path)
    assert state["commit"] == git(repository, "rev-parse", "HEAD").strip()
    assert state["dirty"] is False and state["changed"] == [] and "patch" not in state


def test_changed_code_comes_back_from_the_patch(repository, tmp_path):
    """Tracked changes, new Python files and binary ones; the repository's index and the run's own files stay out."""
    workdir = repository / "results" / "a"  # a run inside the repository, not ignored
    workdir.mkdir(parents=True)
    (workdir / "metrics.jsonl").write_text("{}\n")
    (repository / "prefjax" / "__init__.py").write_text("version = 2  # né\n")
    (repository / "mine.py").write_text("new = True\n")
    (repository / "notes.txt").write_text("not code\n")
    before = git(repository, "status", "--porcelain")
    state = provenance.code_state(workdir)
    assert git(repository, "status", "--porcelain") == before
    assert state["dirty"] and sorted(line[3:] for line in state["changed"]) == [
        "mine.py",
        "notes.txt",
        "prefjax/__init__.py",
    ]
    copy = tmp_path / "copy"
    git(tmp_path, "clone", "-q", repository, copy)
    git(copy, "checkout", "-q", state["commit"])
    git(copy, "apply", workdir / state["patch"])
    assert (copy / "prefjax" / "__init__.py").read_text() == "version = 2  # né\n"
    assert (copy / "mine.py").read_text() == "new = True\n" and not (copy / "notes.txt").exists()
    assert provenance.code_state(workdir)["patch"] == state["patch"], "the same changes, the same file"


def test_a_difference_that_is_too_large_or_no_code_is_said(repository, tmp_path):
    (repository / "notes.txt").write_text("not code\n")
    assert provenance.code_state(tmp_path)["why"] == "only files that are no code are new"
    (repository / "data.py").write_text("x" * provenance.LARGEST_PATCH)
    state = provenance.code_state(tmp_path)
    assert state["patch"] is None and "above 1000000: commit it" in state["why"]
    assert not list(tmp_path.glob("*.patch"))


def test_no_repository_and_no_git_are_said(repository, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere" / "prefjax"
    elsewhere.mkdir(parents=True)
    monkeypatch.setattr(provenance.prefjax, "__file__", str(elsewhere / "__init__.py"))
    state = provenance.code_state(tmp_path)
    assert state["commit"] is None and "is in no git repository that can be read" in state["why"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.code_state(tmp_path) == {
        "version": state["version"],
        "commit": None,
        "why": "git is not installed",
    }


def test_a_copy_inside_another_repository_is_not_its_code(repository, tmp_path, monkeypatch):
    """A virtual environment in a user's repository: that commit says nothing about this package."""
    packages = repository / ".venv" / "prefjax"
    packages.mkdir(parents=True)
    (packages / "__init__.py").write_text("")
    monkeypatch.setattr(provenance.prefjax, "__file__", str(packages / "__init__.py"))
    assert provenance.code_state(tmp_path)["commit"] is None
