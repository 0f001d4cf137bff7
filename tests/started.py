"""Processes that tests start: what they print goes to a file, waiting has an end, and none outlives its test."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SLOWEST = 300.0  # seconds for what takes less than a tenth of it on an idle machine


class Started:
    """A process whose output can be read while it runs; use it as a context, which kills it where it still runs.

    Its output is a file, not a pipe: it goes on though nobody reads, and a test that gives up shows what it said.

    Args:
      arguments: the command line.
      output: file for stdout and stderr.
      how: keyword arguments of `subprocess.Popen`.
    """

    def __init__(self, arguments: Sequence[object], output: Path, **how: object):
        with open(output, "wb") as file:
            self.process = subprocess.Popen([str(one) for one in arguments], stdout=file, stderr=file, **how)
        self._output = output

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self._output.read_text(errors="replace")

    def until(self, words: str, seconds: float = SLOWEST) -> None:
        """Waits until it said the words; fails if it ends without them, or has not said them in time."""
        self._wait(lambda: words in self.said, seconds, f"did not say {words!r}")

    def ended(self, seconds: float = SLOWEST) -> int:
        """Waits for its end; its exit status."""
        self._wait(lambda: self.process.poll() is not None, seconds, "did not end")
        return self.process.returncode

    def _wait(self, true: Callable[[], bool], seconds: float, lacks: str) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            # What it printed last counts, though it ended since the look above.
            assert self.process.poll() is None or true(), f"it ended and {lacks}:\n{self.said[-3000:]}"
            assert time.monotonic() < deadline, f"it {lacks} in {seconds:.0f} s:\n{self.said[-3000:]}"
            time.sleep(0.05)
