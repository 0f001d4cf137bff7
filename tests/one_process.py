"""Many commands in one process of their own, which imports once: each as `python -m` runs it, one after the other.

python -m tests.one_process      reads {"argv": ..., "output": FILE} line by line, and answers with the exit status
"""

import contextlib
import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import grain  # noqa: F401  its flags stay
from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]


class OneProcess:
    """Starts with the first command, and ends with the context. Paths are from its folder.

    Args:
      folder: where commands run, and keep what they print.
      environment: of all of them.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        self._folder, self._process = folder, None
        self._environment = {**environment, "PYTHONPATH": str(ROOT)}

    def __enter__(self) -> "OneProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.stdin.close()
            self._process.wait()

    def run(self, argv: Sequence[str]) -> subprocess.CompletedProcess:
        """What `python -m` with these words comes to; stdout and stderr are one text."""
        if self._process is None:
            words = [sys.executable, "-m", __name__]
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._process = subprocess.Popen(words, cwd=self._folder, env=self._environment, **pipes)
        output = self._folder / "said.txt"
        print(json.dumps({"argv": list(argv), "output": str(output)}), file=self._process.stdin, flush=True)
        status = self._process.stdout.readline()
        said = output.read_text(errors="replace")
        return subprocess.CompletedProcess(argv, int(status or self._process.wait()), said, "")


def _status(argv: Sequence[str]) -> int:
    """Runs a command in this process; what it leaves in the interpreter is put back."""
    before, excepthook, sys.argv = set(flags.FLAGS), sys.excepthook, list(argv)
    sys.orig_argv = [sys.executable, "-m", *argv]  # what a run notes as its command
    try:
        runpy.run_module(argv[0], run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = int(ended.code if isinstance(ended.code, int) else ended.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.excepthook = excepthook
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    flags.FLAGS.unparse_flags()
    return status


def main() -> None:
    app.define_help_flags()  # once a process: they stay
    answers = os.fdopen(os.dup(1), "w")
    os._exit = sys.exit  # an expected error would end the process
    for line in sys.stdin:
        asked = json.loads(line)
        with open(asked["output"], "w") as output:
            for number in (1, 2):  # of the libraries' own code too
                os.dup2(output.fileno(), number)
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                status = _status(asked["argv"])
        print(status, file=answers, flush=True)


if __name__ == "__main__":
    main()
