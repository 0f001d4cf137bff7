"""Commands as processes of their own that start at once: forked from one that has imported what commands import.

Each is what `python -m` makes of its words, with its own flags, files and exit status. Importing the same
again would be most of what a small command does.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

_IMPORTED = ("grain", "adjustText", "prefjax.analysis.report", "prefjax.policies.run_report", "prefjax.training.runs")
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.forked", *_IMPORTED])


def run(words: Sequence[object], folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess:
    """A command from start to end.

    Args:
      words: of the command, from its module on.
      folder: where it runs.
      environment: all of its variables.
    """
    with tempfile.TemporaryDirectory() as kept:
        outputs = [os.path.join(kept, name) for name in ("stdout", "stderr")]
        told = [str(word) for word in words], str(folder), dict(environment), outputs
        process = _server.Process(target=_become, args=told)
        process.start()
        try:
            process.join()
        finally:  # none outlives its test
            process.kill()
        said = [Path(path).read_text(errors="replace") for path in outputs]
        return subprocess.CompletedProcess(words, process.exitcode, *said)


def _become(words: list[str], folder: str, environment: dict[str, str], outputs: list[str]) -> None:
    for number, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout.reconfigure(line_buffering=True)
    os.chdir(folder)
    for name, value in environment.items():  # JAX read its own when it was imported
        if name.lower() in jax.config.values and os.environ.get(name) != value:
            jax.config.update(name.lower(), value)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.orig_argv = words, [sys.executable, "-m", *words]
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
