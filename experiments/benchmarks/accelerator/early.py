"""Cases that come in a row are compiled together, in threads: it would take most of the time.

Nothing is compiled while something is timed: compilers try their choices on the chip.
"""

import concurrent.futures
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from experiments.benchmarks.accelerator import findings

Key, Made = TypeVar("Key"), TypeVar("Made")
THREADS = 8


class Early(Generic[Key, Made]):
    """Makes things by the group, when the first of it is asked for; an error is raised where its thing is asked for.

    Args:
      makers: in the order in which they will be asked for.
      group: how many are made together; 1 where a process of this part has ended before its time (`has_crashed`), so
        that what ends the next one is what was asked for.
    """

    def __init__(self, makers: Mapping[Key, Callable[[], Made]], group: int):
        names = list(makers)
        self._makers = makers
        self._group = {name: names[i // group * group :][:group] for i, name in enumerate(names)}
        self._made: dict[Key, concurrent.futures.Future[Made]] = {}

    def __getitem__(self, key: Key) -> Made:
        if key not in self._made:
            with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:  # waits for all
                self._made |= {name: pool.submit(self._makers[name]) for name in self._group[key]}
        return self._made[key].result()


def has_crashed(folder: Path, part: str) -> bool:
    """Whether a process of this part ended before its time: which of a group did that is not known."""
    failures = findings.of(findings.read(folder), part, "failure")
    return any(entry["error"].startswith(findings.PROCESS) for entry in failures)
