"""Several processes as one run; one is stopped, killed or slow: all end alike, and the same command goes on."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from experiments.chaos.runs import LONGEST, MOMENTS, Runs, read_until, state_of
from experiments.chaos.tally import DIFFERENT, FAULT, FINE, REFUSED, Tally
from prefjax.interrupts import STATUS
from prefjax.training.processes import PATIENCE, VARIABLES

COUNTS = (2, 4)  # processes, in turns
_NO_SAMPLES = "--config.sampling.prompts=0"
_DEVICES = 4  # of all processes of a run together
_ANSWER = 30  # seconds in which all must have stopped at one step: on few cores a step of four processes takes long
_GONE = PATIENCE + 30  # seconds after which nobody may wait for one that is gone


class Ended(NamedTuple):
    """How a process ended: its exit status (below 0: by that signal), after how many seconds, and what it said."""

    status: int
    seconds: float
    said: str


class Several:
    """Tiny runs of several processes by the command, and the one of as many that nobody disturbed."""

    def __init__(self, runs: Runs, count: int):
        self._runs, self.count, self.draw = runs, count, runs.draw
        self.whole = runs.folder / f"undisturbed-{count}"
        ended = wait(self.start(self.whole))
        if any(one.status for one in ended):
            raise RuntimeError(f"{count} processes do not run here: {ended}")
        self.expected = state_of(self.whole)

    def start(self, workdir: Path) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        devices = f"--xla_force_host_platform_device_count={_DEVICES // self.count}"
        own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{self._runs.environment['XLA_FLAGS']} {devices}"}
        said = lambda index: dict(zip(VARIABLES, (address, str(self.count), str(index)), strict=True))
        return [
            self._runs.start(workdir, "--distributed", _NO_SAMPLES, environment=own | said(index))
            for index in range(self.count)
        ]

    def disturbed(self, workdir: Path) -> tuple[list[subprocess.Popen], int, str]:
        """A run at a moment that was drawn, the process that something is to happen to, and both in words."""
        started, victim, moment = self.start(workdir), self.draw.randrange(self.count), self.draw.choice(MOMENTS)
        read_until(started[victim], moment)
        time.sleep(self.draw.uniform(0, 0.2))
        return started, victim, f"process {victim} of {self.count} at {moment!r}"

    def goes_on(self, tally: Tally, name: str, workdir: Path, problem: str) -> None:
        """Continues a run to its end; its last state must be equal bit for bit to that of as many processes.

        Args:
          problem: with how it ended before; "": none.
        """
        if problem:
            tally.ends.append((FAULT, f"{name}: {problem}"))
            return
        ended = wait(self.start(workdir))
        if any(one.status for one in ended):
            tally.ends.append((FAULT, f"{name}, continued: {_words(ended)}"))
            return
        same = state_of(workdir) == self.expected
        damaged = any("is damaged" in one.said for one in ended)
        tally.ends.append((DIFFERENT if not same else REFUSED if damaged else FINE, name))


def stops(all_of: Callable[[int], Several], size: int) -> Tally:
    """SIGINT or SIGTERM to one of them."""
    tally = Tally("SIGINT or SIGTERM to one of two or four processes")
    for number in range(size):
        several = all_of(COUNTS[number % 2])
        workdir = several.whole.with_name(f"one-stopped-{number}")
        which = several.draw.choice((signal.SIGINT, signal.SIGTERM))
        started, victim, name = several.disturbed(workdir)
        started[victim].send_signal(which)
        ended = wait(started)
        several.goes_on(tally, f"{which.name} to {name}", workdir, problem_after_a_stop(ended, victim))
    return tally


def kills(all_of: Callable[[int], Several], size: int) -> Tally:
    """kill -9 of one of them."""
    tally = Tally("kill -9 of one of two or four processes")
    for number in range(size):
        several = all_of(COUNTS[number % 2])
        workdir = several.whole.with_name(f"one-killed-{number}")
        started, victim, name = several.disturbed(workdir)
        started[victim].kill()
        several.goes_on(tally, name, workdir, problem_after_a_kill(wait(started), victim))
    return tally


def slow(all_of: Callable[[int], Several], size: int) -> Tally:
    """One of them stands still for seconds, fewer than those after which it counts as dead."""
    tally = Tally("one of two or four processes that stands still for seconds")
    for number in range(size):
        several = all_of(COUNTS[number % 2])
        workdir = several.whole.with_name(f"one-slow-{number}")
        started, victim, name = several.disturbed(workdir)
        started[victim].send_signal(signal.SIGSTOP)
        time.sleep(several.draw.uniform(1, PATIENCE / 3))
        started[victim].send_signal(signal.SIGCONT)
        ended = wait(started)
        same = state_of(workdir) == several.expected
        if any(one.status for one in ended):
            tally.ends.append((FAULT, f"{name}: {_words(ended)}"))
        else:
            tally.ends.append((FINE if same else DIFFERENT, name))
    return tally


def wait(started: list[subprocess.Popen]) -> list[Ended]:
    """How all end; one that does not within `LONGEST` is killed."""
    began, ended = time.monotonic(), []
    for process in started:
        try:
            said, _ = process.communicate(timeout=max(1, began + LONGEST - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
        ended.append(Ended(process.returncode, time.monotonic() - began, said))
    return ended


def problem_after_a_stop(ended: list[Ended], victim: int) -> str:
    """What is wrong with how processes ended of which one was asked to stop; "": nothing.

    Where it saves, all stop at one step with its status; where there is nothing to save, it ends by itself, and the
    others as after a death. A run that was over anyway ends with 0.
    """
    own = ended[victim]
    if own.status not in (0, STATUS) or "Traceback" in own.said:
        return _words([own])
    if own.status == 0 or "stopped, and saved" in own.said:
        together = all(one.status == own.status for one in ended)
        return "" if together and all(one.seconds < _ANSWER for one in ended) else _words(ended)
    return problem_after_a_kill(ended, victim)


def problem_after_a_kill(ended: list[Ended], victim: int) -> str:
    """What is wrong with how the others ended; "": nothing. All had done their work, or none says so."""
    others = [one for index, one in enumerate(ended) if index != victim]
    done = {one.status == 0 for one in others}
    return "" if len(done) == 1 and all(one.seconds < _GONE for one in others) else _words(ended)


def _words(ended: list[Ended]) -> str:
    return "; ".join(f"status {one.status} after {one.seconds:.0f} s: {one.said[-300:]}" for one in ended)
