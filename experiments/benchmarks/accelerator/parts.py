"""Runs the parts one after the other, each in processes of its own that end at its limit whatever happens in them.

A case that raises is recorded and the next one goes on. One that ends its process, or takes longer than a case may, is
recorded too, and a new process goes on after it.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.benchmarks.accelerator import findings

ROOT = Path(__file__).resolve().parents[3]
LOG = "log.txt"
CHILD = (sys.executable, "-m", "experiments.benchmarks.accelerator.child")
_GRACE = 20.0  # seconds that a killed process may take to be gone: a driver may hold it


@dataclasses.dataclass(frozen=True)
class Part:
    """name        of the module
    title       what the page calls it
    share       seconds it may take of a total of 480; what it leaves goes to the next ones
    case        share of the part's limit that one case may take
    environment of its process
    """

    name: str
    title: str
    share: float
    case: float = 0.5
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


# Programs are kept for the process that goes on after a crash, and for a second try on the same machine.
_KEPT = {"JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "prefjax-accelerator-programs")}

PARTS = (
    Part("card", "The card, and a quickstart step on it", 60, case=0.6),
    Part("proof", "Attention kernels against the dense oracle", 85, case=0.4),
    Part("tiles", "Tiles of the kernels", 65, case=0.5),
    Part("speed", "Attention, forward and backward", 70, case=0.5),
    Part("table", "The paper's table", 170, case=0.6),
    # Its own process must not hold the memory that the two sides need.
    Part("versus", "Against TRL", 30, case=0.9, environment={"JAX_PLATFORMS": "cpu"}),
)


def run_parts(parts: Sequence[Part], folder: Path, total: float, size: str, after=lambda: None) -> None:
    """Runs `parts` within `total` seconds; calls `after` when one has ended."""
    began = time.monotonic()
    for place, part in enumerate(parts):
        left = total - (time.monotonic() - began)
        limit = left * part.share / sum(each.share for each in parts[place:])
        run_part(part, folder, limit, size)
        after()


def run_part(part: Part, folder: Path, limit: float, size: str) -> None:
    """Runs one part's cases until all are done, or `limit` seconds are over, and says how it ended."""
    findings.add(folder, part.name, "start", limit=round(limit, 1))
    print(f"{part.name}: at most {limit:.0f} s", flush=True)
    began = time.monotonic()
    how = ""
    while not how:
        before = len(_begun(folder, part))
        left = limit - (time.monotonic() - began)
        ended = _run_process(part, folder, left, limit * part.case, size)
        if ended == "0":
            how = "finished"
        elif time.monotonic() - began >= limit:
            how = f"stopped at its limit of {limit:.0f} s"
        elif len(_begun(folder, part)) == before:
            how = f"{findings.PROCESS} {ended} before any case began: see {LOG}"
        else:
            findings.add(
                folder, part.name, "failure", case=_begun(folder, part)[-1], error=f"{findings.PROCESS} {ended}"
            )
    seconds = time.monotonic() - began
    findings.add(folder, part.name, "end", how=how, seconds=round(seconds, 1))
    print(f"{part.name}: {how}, {seconds:.0f} s", flush=True)


def _begun(folder: Path, part: Part) -> list[str]:
    return [entry["case"] for entry in findings.of(findings.read(folder), part.name, "begin")]


def _run_process(part: Part, folder: Path, limit: float, case_limit: float, size: str) -> str:
    """Runs the cases that have not begun; "0", or what became of the process."""
    environment = {**_KEPT, **os.environ, **part.environment, "PYTHONUNBUFFERED": "1"}
    with (folder / LOG).open("a") as log:
        # A process group, so that what it started ends with it; not a session, so that both end with their terminal.
        process = subprocess.Popen(
            [*CHILD, str(folder), part.name, size],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        try:
            return _watch(process, lambda: len(_begun(folder, part)), limit, case_limit)
        finally:
            _end(process)


def _watch(process: subprocess.Popen, begun, limit: float, case_limit: float) -> str:
    started = changed = time.monotonic()
    before = count = begun()
    while process.poll() is None:
        now = time.monotonic()
        if begun() != count:
            count, changed = begun(), now
        if now - started >= limit or count > before and now - changed >= case_limit:
            return f"was stopped after {now - changed:.0f} s"
        time.sleep(0.1)
    return "0" if process.returncode == 0 else f"ended with {process.returncode}"


def _end(process: subprocess.Popen) -> None:
    """Kills a process and what it started; one that the system does not give back is left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(_GRACE)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
