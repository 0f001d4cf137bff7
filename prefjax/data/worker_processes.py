"""Processes that each hold a function and answer calls of it: they import what the function needs and nothing else, and
end with the process that started them, however that ends."""

import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

_LENGTH = struct.Struct("<Q")


class WorkerProcesses:
    """`with WorkerProcesses(function, count) as call:`, where call(*args) returns or raises what function(*args) does
    in a process that is free, and waits for one; to be called by `count` threads at a time.

    Function, arguments and results are pickled. A worker reads its calls from a pipe, so it ends where the pipe does:
    with this process, even one that is killed.
    """

    def __init__(self, function: Callable[..., Any], count: int):
        self._function, self._count = function, count

    def __enter__(self) -> Callable[..., Any]:
        # One thread each: the processes are as many as there are cores.
        alone = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment = os.environ | alone | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", __name__]
        self._all = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            for _ in range(self._count)
        ]
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        function = pickle.dumps(self._function, pickle.HIGHEST_PROTOCOL)
        for process in self._all:
            _send(process.stdin, function)
            self._free.put(process)
        return self._call

    def _call(self, *args: Any) -> Any:
        process = self._free.get()
        try:
            _send(process.stdin, pickle.dumps(args, pickle.HIGHEST_PROTOCOL))
            answer = _receive(process.stdout)
        except (OSError, ValueError):  # the pipe broke, or is closed
            answer = None
        finally:
            self._free.put(process)
        if answer is None:
            raise RuntimeError(f"a worker ended with status {process.wait()}: prepare again, or with data.workers=1")
        succeeded, result = pickle.loads(answer)
        if not succeeded:
            raise result
        return result

    def __exit__(self, *error: Any) -> None:
        for process in self._all:
            if error[0] is not None:
                process.kill()
            process.stdin.close()
        for process in self._all:
            process.wait()
            process.stdout.close()


def _send(pipe: BinaryIO, message: bytes) -> None:
    pipe.write(_LENGTH.pack(len(message)))
    pipe.write(message)
    pipe.flush()


def _receive(pipe: BinaryIO) -> bytes | None:
    """None at the end of the pipe."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    return pipe.read(_LENGTH.unpack(head)[0])


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the process that waits
    # What anything prints goes to stderr, out of the answers' way.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    calls = sys.stdin.buffer
    held = _receive(calls)
    function = None if held is None else pickle.loads(held)
    while (call := _receive(calls)) is not None:
        try:
            answer = (True, function(*pickle.loads(call)))
        except Exception as error:  # of every kind: it is raised where the call was made
            answer = (False, error)
        _send(answers, pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))


if __name__ == "__main__":
    _serve()
