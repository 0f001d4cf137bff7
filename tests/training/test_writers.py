"""Writers: one call reaches all of them, sessions after the first repeat nothing, what is missing is said."""

import importlib.machinery
import json
import sys
import types

import pytest

from prefjax.training import writers
from prefjax.training.loop import LoopConfig
from prefjax.training.writers import MetricsFile, Writers


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def wandb(monkeypatch):
    """Weights & Biases without its package: remembers every run's init, rows and exit code."""
    runs = []

    class Run:
        def __init__(self, **options):
            self.options, self.rows, self.exit_code = options, [], None
            runs.append(self)

        def log(self, values, *, step):
            self.rows.append((step, values))

        def finish(self, exit_code):
            self.exit_code = exit_code

    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.init = Run
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return runs


def test_unknown_and_repeated_names_are_errors():
    with pytest.raises(ValueError, match=r"train.writers=\('tensorbored',\): choose of tensorboard, wandb"):
        LoopConfig(steps=1, writers=("tensorbored",))
    with pytest.raises(ValueError, match="choose of"):
        LoopConfig(steps=1, writers=("jsonl",))
    with pytest.raises(ValueError, match="twice"):
        LoopConfig(steps=1, writers=("wandb", "wandb"))
    assert LoopConfig(steps=1).writers == ()


def test_a_missing_package_is_an_error_that_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(writers.WRITERS, "wandb", ("a_package_that_is_not_there", "pip install it"))
    config = LoopConfig(steps=1, writers=("wandb",))  # reading such a run's config needs no package
    with pytest.raises(ModuleNotFoundError, match="needs the package a_package_that_is_not_there.*: pip install it"):
        Writers(config.writers, tmp_path, resume_step=0, config={})
    assert not list(tmp_path.iterdir())


def test_metrics_file_cuts_what_comes_again(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    first = MetricsFile(path)
    for step in (5, 10, 15):
        first.write(step, "train", {"loss": 1.0 / step})
    with path.open("a") as file:
        file.write('{"step": 16, "spl')  # killed while writing
    second = MetricsFile(path, resume_step=10)
    second.write(15, "train", {"loss": 0.25})
    assert [(line["step"], line["loss"]) for line in lines(path.parent)] == [(5, 0.2), (10, 0.1), (15, 0.25)]


def test_wandb_continues_its_run_and_sends_no_step_twice(wandb, tmp_path):
    workdir = tmp_path / "runs" / "a"
    with Writers(("wandb",), workdir, resume_step=0, config={"seed": 3}) as writer:
        for step in (5, 10, 15):
            writer.write(step, "train", {"loss": 0.5})
        writer.write(10, "eval", {"loss": 0.6})
    with Writers(("wandb",), workdir, resume_step=10, config={"seed": 3}) as writer:
        writer.write(15, "train", {"loss": 0.5})
        writer.write(15, "eval", {"loss": 0.55})
        writer.write(20, "train", {"loss": 0.4})
    first, second = wandb
    assert first.options["id"] == second.options["id"] and second.options["resume"] == "allow"
    assert first.options["project"] == "prefjax" and first.options["name"] == "runs/a"
    assert first.options["config"] == {"seed": 3} and first.options["dir"] == str(workdir)
    assert [step for step, _ in first.rows] == [5, 10, 15, 10]
    assert second.rows == [(15, {"eval/loss": 0.55}), (20, {"train/loss": 0.4})]
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert [line["step"] for line in lines(workdir)] == [5, 10, 10, 15, 15, 20]


def test_another_folder_is_another_wandb_run_and_an_error_is_a_failure(wandb, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    for name in "ab":
        with pytest.raises(RuntimeError), Writers(("wandb",), tmp_path / name, resume_step=0, config={}):
            raise RuntimeError
    assert wandb[0].options["id"] != wandb[1].options["id"]
    assert [run.exit_code for run in wandb] == [1, 1] and wandb[0].options["project"] == "mine"


def events(directory):
    """tag -> [(step, value)] as TensorBoard keeps them: a session's start makes it forget that step and later ones."""
    from tensorboardX.proto import event_pb2

    kept = {}
    for path in sorted(directory.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):  # TFRecord: length, its checksum, the record, its checksum
            size = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.HasField("session_log"):
                kept = {tag: [(s, v) for s, v in points if s < event.step] for tag, points in kept.items()}
            for value in event.summary.value:
                kept.setdefault(value.tag, []).append((event.step, value.simple_value))
    return kept


def test_tensorboard_files_hold_every_step_once(tmp_path):
    pytest.importorskip("tensorboardX", reason="pip install -r requirements-loggers.txt")
    with Writers(("tensorboard",), tmp_path, resume_step=0, config={}) as writer:
        for step in (5, 10, 15):
            writer.write(step, "train", {"loss": 0.5, "margin": float(step)})
        writer.write(15, "eval", {"loss": 0.25})
    with Writers(("tensorboard",), tmp_path, resume_step=10, config={}) as writer:  # within the same second
        writer.write(15, "train", {"loss": 0.75, "margin": 1.0})
        writer.write(20, "train", {"loss": 1.0, "margin": 2.0})
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert events(tmp_path / "tensorboard") == {
        "train/loss": [(5, 0.5), (10, 0.5), (15, 0.75), (20, 1.0)],
        "train/margin": [(5, 5.0), (10, 10.0), (15, 1.0), (20, 2.0)],
        "eval/loss": [],
    }
    assert not {"tensorflow", "torch"} & set(sys.modules)


def test_real_wandb_offline(tmp_path, monkeypatch):
    """The installed package takes these calls, offline; two sessions leave two folders of one run."""
    pytest.importorskip("wandb", reason="pip install -r requirements-loggers.txt")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for start in (0, 5):
        with Writers(("wandb",), tmp_path, resume_step=start, config={"train": {"steps": 10}}) as writer:
            writer.write(start + 5, "train", {"loss": 0.5})
            writer.write(start + 5, "eval", {"loss": 0.5})
    saved = json.loads((tmp_path / "wandb.json").read_text())
    assert saved["sent"] == {"train": 10, "eval": 10}
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{saved['id']}/run-{saved['id']}.wandb"))) == 2
