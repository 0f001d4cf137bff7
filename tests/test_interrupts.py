"""Ctrl-C and SIGTERM anywhere: noted where the work is saved first, an end within seconds elsewhere."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from prefjax.interrupts import STATUS, StopRequest, at_once, saving
from tests.experiments.test_commands import ENVIRONMENT, TINY, command
from tests.started import Started

ROOT = Path(__file__).resolve().parents[1]


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_while_the_work_is_saved_and_ends_the_program_elsewhere(number, capsys, monkeypatch):
    monkeypatch.setattr(os, "_exit", sys.exit)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, StopRequest() as stop:
        with saving():
            send(number)
            assert stop.requested, "noted"
            time.sleep(0.2)  # so that the thread has said it
            with pytest.raises(KeyboardInterrupt), at_once():
                send(number)
            with pytest.raises(KeyboardInterrupt):
                send(number)  # once more
        send(number)
        time.sleep(60)
    assert ended.value.code == STATUS and signal.getsignal(number) == before
    said = capsys.readouterr().out
    assert f"{number.name}: stopping after this step (again: at once)" in said
    assert "interrupted, with what was saved before. To continue:\n  python" in said


@pytest.mark.slow
def test_compiled_code_that_does_not_come_back_is_left_behind(tmp_path):
    program = """
import jax
from prefjax.interrupts import StopRequest
with StopRequest():
    endless = jax.jit(lambda x: jax.lax.while_loop(lambda x: x >= 0, lambda x: (x + 1) % 7, x))
    print("begins", flush=True)
    jax.block_until_ready(endless(1))
"""
    with Started([sys.executable, "-c", program], tmp_path / "said", cwd=ROOT) as started:
        started.until("begins")
        time.sleep(2)
        started.process.send_signal(signal.SIGTERM)
        assert started.ended(seconds=30) == STATUS
    assert "SIGTERM: stopping\ninterrupted, with what was saved before" in started.said


@pytest.mark.slow
@pytest.mark.parametrize("around", ["at_once", "saving"])
def test_an_interrupt_that_python_ignores_ends_the_program_all_the_same(around, tmp_path):
    """It is left after a while; or, in a loop that saves, the wish is heeded with the next step."""
    program = f"""
import time
from prefjax import interrupts
interrupts._CLOSING = 1
class Ignores:
    def __del__(self):
        print("begins", flush=True)
        time.sleep(30)
with interrupts.StopRequest() as stop, interrupts.{around}():
    with interrupts.at_once():
        Ignores()
    print("goes on", flush=True)
    while not stop.requested or "{around}" == "at_once":
        time.sleep(0.1)
    stop.end()
"""
    with Started([sys.executable, "-c", program], tmp_path / "said", cwd=ROOT) as started:
        started.until("begins")
        started.process.send_signal(signal.SIGINT)
        assert started.ended(seconds=60) == STATUS
    assert "KeyboardInterrupt" in started.said and "goes on" in started.said  # ignored, and said so on stderr
    heeded = {"at_once": "interrupted, with what was saved before", "saving": "stopped, and saved"}[around]
    assert f"{heeded}. To continue:" in started.said


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["== SFT", "shared_packed:", "first step"])
def test_training_answers_in_every_phase(phase, tmp_path):
    """In preparation, in compilation, and between steps."""
    options = [*TINY, "--config.sft.train.steps=100000"]
    arguments = command("train", "--config=configs/quickstart.py:dpo", f"--workdir={tmp_path / 'run'}", *options)
    with Started(arguments, tmp_path / "said", cwd=ROOT, env=ENVIRONMENT) as started:
        started.until(phase)
        started.process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        assert started.ended(seconds=60) == STATUS and time.monotonic() - sent < 15
    said = started.said
    assert "Traceback" not in said and "To continue:\n  python -m experiments.train --config=" in said
