"""The kinds of chaos, how often each is tried, and what all of them came to, as one result and as a table."""

import functools
import math
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.chaos import inputs, runs, several
from experiments.chaos.tally import DIFFERENT, FAULT, FINE, REFUSED, Tally
from prefjax.analysis.report import table
from prefjax.data.progress import progress_bar
from prefjax.training.provenance import machine

OF_RUNS = {  # how many of each a whole one is
    "kills": 20,
    "signals": 20,
    "disks": 10,
    "vanishing": 8,
    "blocked": 8,
    "flips_of_a_finished_run": 150,
    "flips_of_a_running_run": 50,
}
OF_SEVERAL = {"stops": 2, "kills": 2, "slow": 2}  # one of two processes, one of four
OF_INPUTS = {"records": 10_000, "files": 1_000, "options": 500, "folders": 100}
SIZES = OF_INPUTS | OF_RUNS | {f"several_{name}": size for name, size in OF_SEVERAL.items()}
ENDS = (FINE, REFUSED, FAULT, DIFFERENT)


def chaos(names: Sequence[str], share: float, seed: int) -> Iterator[dict[str, Any]]:
    """After each kind of these names, `share` of their sizes each: how often the kinds so far ended how, every fault,
    and on what machine.
    """
    kinds, faults = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name in progress_bar(names, shown=True, desc="chaos", unit="kind"):
            started = time.monotonic()
            tally = _tally_of(name, Path(folder), seed, size_of(name, share))
            counts = {end: tally.count(end) for end in ENDS}
            kinds[name] = {"what": tally.what, "share": share, **counts, "seconds": round(time.monotonic() - started)}
            faults += tally.bad()
            yield {"seed": seed, "machine": machine(), "kinds": kinds, "faults": faults}


def size_of(name: str, share: float) -> int:
    """How often a kind is tried."""
    return max(1, math.ceil(share * SIZES[name]))


def _tally_of(name: str, folder: Path, seed: int, size: int) -> Tally:
    if name == "options":
        return inputs.options(seed, size)
    if name in OF_INPUTS:
        return getattr(inputs, name)(folder, seed, size)
    if name in OF_RUNS:
        return getattr(runs, name)(undisturbed(folder, seed), size)
    all_of = functools.partial(undisturbed_of_several, folder, seed)
    return getattr(several, name.removeprefix("several_"))(all_of, size)


@functools.cache
def undisturbed(folder: Path, seed: int) -> runs.Runs:
    """The run that all others are compared with."""
    return runs.Runs(folder, random.Random(seed))


@functools.cache
def undisturbed_of_several(folder: Path, seed: int, count: int) -> several.Several:
    """The same by a number of processes."""
    return several.Several(undisturbed(folder, seed), count)


def page_of(result: Mapping[str, Any]) -> str:
    """The table of a result."""
    kinds = result["kinds"].values()
    rows = [(kind["what"], sum(kind[end] for end in ENDS), *(kind[end] for end in ENDS)) for kind in kinds]
    return table(("what", "tried", "fine", "refused with reason", "faults", "silently different"), rows) + "\n"
