"""The process of one part: runs its cases that have not begun; what begins and what is found is on disk at once.

COMMAND   python -m experiments.benchmarks.accelerator.child DIR PART SIZE      (started by the command)
"""

import importlib
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from experiments.benchmarks.accelerator import findings

DEVICE_LOST = 3  # exit status: no program runs any more in this process


def run_cases(folder: Path, part: str, size: str) -> None:
    """Adds what the cases of a part find; a failure is one line, and the next case goes on.

    Raises:
      SystemExit: DEVICE_LOST; a process that starts anew may go on.
    """
    module = importlib.import_module(f"experiments.benchmarks.accelerator.{part}")
    begun = {entry["case"] for entry in findings.of(findings.read(folder), part, "begin")}
    cases = module.cases(module.TINY if size == "tiny" else module.Size(), folder)
    for name, case in cases.items():
        if name in begun:
            continue
        print(f"{part}: {name}", flush=True)
        findings.add(folder, part, "begin", case=name)
        began = time.monotonic()
        try:
            for row in case():
                findings.add(folder, part, "row", case=name, row=row, seconds=round(time.monotonic() - began, 2))
        except Exception as error:  # whatever it is, the next case is worth its time
            said = (str(error).strip() or "no message").splitlines()[0][:300]
            trace = traceback.format_exc()
            print(trace, flush=True)
            findings.add(
                folder, part, "failure", case=name, error=f"{type(error).__name__}: {said}", trace=trace[-3000:]
            )
            _leave_if_the_device_is_lost()


def _leave_if_the_device_is_lost() -> None:
    """An access out of bounds on a GPU ends all later programs of the process with the same error."""
    import jax

    try:
        jax.block_until_ready(jax.numpy.zeros(8) + 1)
    except Exception:
        sys.exit(DEVICE_LOST)


def _end_with(parent: int) -> None:
    """Whoever kills the command alone must not leave a process on the device."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main() -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    folder, part, size = sys.argv[1:]
    run_cases(Path(folder), part, size)


if __name__ == "__main__":
    main()
