"""Limits on how long a function may run and what memory it may take, which cost next to nothing while it does."""

import contextlib
import ctypes
import dataclasses
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_EVERY = 0.1  # seconds between two looks at the clock
_SIZED = 0.05  # seconds that one look at the process's size holds for: it grows by other things too, such as training
_looked = float("-inf")  # when that was
_size: int | None = None  # of the process, in bytes; None: the system does not say
_lock = threading.Lock()
_watch: threading.Thread | None = None


@dataclasses.dataclass
class _Run:
    """A function that runs: in seconds of its thread's processor time, when it has to end; and whether it was told."""

    end: float
    late: bool = False


_runs: dict[int, _Run] = {}  # by thread


def in_time(function: Callable[[], T], seconds: float) -> T:
    """What a function returns.

    Raises:
        TimeoutError: it took more than `seconds` of processor time; within code of Python it is stopped, soon after.
    """
    global _watch
    if _watch is None or not _watch.is_alive():  # a process that was forked has no threads but one
        _watch = threading.Thread(target=_look, name="time limit", daemon=True)
        _watch.start()
    thread, run = threading.get_ident(), _Run(time.thread_time() + seconds)
    _runs[thread] = run
    try:
        try:
            result = function()
        finally:
            _forget(thread)
    finally:  # where the exception came while it was being forgotten
        _forget(thread)
    if run.late:
        raise TimeoutError
    return result


def _forget(thread: int) -> None:
    with _lock:
        run = _runs.pop(thread, None)
        if run is not None and run.late:  # an exception that has not come up yet would come up in other code
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)


def _look() -> None:
    while True:
        time.sleep(_EVERY)
        with _lock:
            for thread, run in _runs.items():
                if not run.late and time.clock_gettime(time.pthread_getcpuclockid(thread)) > run.end:
                    run.late = True
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TimeoutError))


@contextlib.contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """Inside, what would take the whole process about `more` bytes beyond its size is a MemoryError, where Linux says
    what that is: one operation of a template can ask for any amount."""
    global _looked, _size
    if time.monotonic() > _looked + _SIZED:
        _looked = time.monotonic()
        try:
            _size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        except OSError:
            _size = None
    if _size is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _size + more
    resource.setrlimit(resource.RLIMIT_AS, (limit if soft == resource.RLIM_INFINITY else min(soft, limit), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
