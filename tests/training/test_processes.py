"""Several processes, as far as one can play them: programs that reduce over processes, and folders that one holds."""

import errno
import fcntl
import os

import jax
import jax.numpy as jnp
import pytest

from prefjax.training.processes import alone_in, one_at_a_time


@pytest.mark.parametrize("processes,backend,waits", [(2, "cpu", True), (1, "cpu", False), (2, "gpu", False)])
def test_cpus_of_several_processes_wait_for_every_program(processes, backend, waits, monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "block_until_ready", lambda results: waited.append(results) or results)
    results = jnp.ones(2)
    assert one_at_a_time(results) is results and len(waited) == waits


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path):
    lock = tmp_path / "run" / ".lock"
    with alone_in(tmp_path / "run"), alone_in(tmp_path / "run"):  # a stage, in its run's folder
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
        with lock.open("a") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with lock.open("w") as other:  # as another process's
        fcntl.flock(other, fcntl.LOCK_EX)
        print("process 7 on there (train --x)", file=other, flush=True)
        held = r"run is held by process 7 on there \(train --x\), which trains there: wait until .* another --workdir$"
        with pytest.raises(RuntimeError, match=held), alone_in(tmp_path / "run"):
            pass
    with alone_in(tmp_path / "run"):
        assert str(os.getpid()) in lock.read_text()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone_in(tmp_path):
        assert "cannot be locked (No locks available): see to it that nothing else" in capsys.readouterr().out


def test_of_several_processes_the_first_holds_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with alone_in(tmp_path):
        assert not list(tmp_path.iterdir())
