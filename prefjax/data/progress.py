"""How far a pass over data is, and when it ends."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_EVERY = 60.0  # seconds between two lines of a log


class _Lines(tqdm):
    """A bar that writes lines."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        self.fp.write(f"{self}\n")
        self.fp.flush()
        return True


def progress_bar(over: Iterable[Any] | None = None, *, shown: bool, **options: Any) -> tqdm:
    """A bar on a terminal; elsewhere, as in the log of a job, a line a minute of what takes longer, with the time left.

    Args:
        over: what is gone through; None: `update` says what was.
        shown: False shows nothing.
        options: `desc`, `unit` and `total` of tqdm.
    """
    if sys.stderr.isatty() or not shown:
        return tqdm(over, disable=not shown, **options)
    return _Lines(over, delay=_EVERY, mininterval=_EVERY, maxinterval=_EVERY, ncols=0, **options)
