"""Ctrl-C and SIGTERM: between steps a wish to stop that is saved first, anywhere else an end within seconds."""

import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ContextDecorator, contextmanager
from typing import NoReturn

STATUS = 130  # the shell's exit status for Ctrl-C
_PATIENCE = 5  # seconds that compiled code may take to come back to Python
_CLOSING = 30  # seconds that Python may take then to close what is open
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_saving = threading.Event()  # set while somebody looks at `StopRequest.requested`, and saves when it is set


@contextmanager
def saving() -> Iterator[None]:
    """What runs inside asks for `StopRequest.requested` every few seconds; until then a signal is only noted."""
    before = _saving.is_set()
    _saving.set()
    try:
        yield
    finally:
        if not before:
            _saving.clear()


@contextmanager
def at_once() -> Iterator[None]:
    """The reverse, inside of `saving`, for what takes long and has nothing to save: a signal ends it."""
    before = _saving.is_set()
    _saving.clear()
    try:
        yield
    finally:
        if before:
            _saving.set()


class StopRequest(ContextDecorator):
    """While active, a first signal inside `saving` sets `requested`; a second one, or one elsewhere, ends the program.

    It ends by KeyboardInterrupt, which leaving the context turns into exit status 130 and a line that says how to go
    on; or, where compiled code does not come back to Python in time, without Python. So it does where Python ignored
    the KeyboardInterrupt, as it does in `__del__`; inside `saving` it is a wish to stop then. What is on disk is sound
    after all of them: every file is written whole or not at all.

    Of several processes the others learn of the second kind as of a death (`processes.PATIENCE`).
    """

    def __init__(self):
        self.requested = False
        self._command = shlex.join(["python", *sys.orig_argv[1:]])
        self._raised, self._left = threading.Event(), threading.Event()

    def __enter__(self):
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        # The interpreter writes the signal's number here at once, whatever the main thread is busy with.
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind, *_):
        self._left.set()
        signal.set_wakeup_fd(self._wakeup)
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._write.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._leave()

    def end(self) -> NoReturn:
        """After `requested` was heeded."""
        print(self._farewell("stopped, and saved"), flush=True)
        sys.exit(STATUS)

    def _leave(self) -> None:
        print(self._farewell("interrupted, with what was saved before"), flush=True)
        sys.stderr.flush()
        os._exit(STATUS)  # an orderly exit would wait for background threads, and for other processes

    def _farewell(self, what: str) -> str:
        return f"{what}. To continue:\n  {self._command}"

    def _handle(self, number, frame) -> None:
        first, self.requested = not self.requested, True
        if _saving.is_set() and first:
            return
        self._raised.set()
        raise KeyboardInterrupt

    def _watch(self) -> None:
        noted = False
        while number := self._read.recv(1):
            name = signal.Signals(number[0]).name
            if _saving.is_set() and not noted:
                noted = True
                print(f"{name}: stopping after this step (again: at once)", flush=True)
                continue
            print(f"{name}: stopping", flush=True)
            if not self._raised.wait(_PATIENCE):
                self._leave()
            while not self._left.wait(_CLOSING):
                if not _saving.is_set():
                    self._leave()
