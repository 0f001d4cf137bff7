"""Everything that goes wrong, on a tiny model: what must come out is the same result, or a refusal by name.

    python -m experiments.chaos --output=DIR                 all of it, an hour and a half on two CPU cores
    python -m experiments.chaos --output=DIR --share=0.02    a fiftieth of every number, a few minutes
    python -m experiments.chaos --output=DIR --only=records,files

Makes DIR/table.md and DIR/result.json, and prints every fault. Several processes are disturbed by
tests/experiments/test_distributed.py.
Exit status: 1 if there was a fault or a silent difference.
"""

import functools
import json
import math
import random
import sys
import tempfile
from pathlib import Path

from absl import app, flags
from tqdm import tqdm

from experiments.chaos import inputs, runs
from experiments.chaos.tally import DIFFERENT, FAULT, FINE, REFUSED, Tally
from prefjax.analysis.report import table
from prefjax.interrupts import StopRequest

OF_RUNS = {  # how many of each a whole one is
    "kills": 20,
    "signals": 20,
    "disks": 10,
    "flips_of_a_finished_run": 150,
    "flips_of_a_running_run": 50,
}
OF_INPUTS = {"records": 10_000, "files": 1_000, "options": 500, "folders": 100}

_OUTPUT = flags.DEFINE_string("output", None, "Folder for table.md and result.json.")
_SHARE = flags.DEFINE_float("share", 1.0, "Of every number of tries.", lower_bound=0, upper_bound=1)
_ONLY = flags.DEFINE_list("only", [], f"Some of {', '.join([*OF_INPUTS, *OF_RUNS])}; empty: all.")
_SEED = flags.DEFINE_integer("seed", 0, "Of everything that is drawn.", lower_bound=0)


@StopRequest()
def main(_) -> None:
    names = _ONLY.value or [*OF_INPUTS, *OF_RUNS]
    if unknown := sorted(set(names) - {*OF_INPUTS, *OF_RUNS}):
        raise app.UsageError(f"--only: no {', '.join(unknown)}; choose of {', '.join([*OF_INPUTS, *OF_RUNS])}")
    with tempfile.TemporaryDirectory() as folder:
        tallies = [one for name in tqdm(names, unit="kind", disable=None) for one in [tally_of(name, Path(folder))]]
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    page = page_of(tallies)
    (output / "table.md").write_text(page)
    faults = [line for tally in tallies for line in tally.bad()]
    counted = {tally.what: {end: tally.count(end) for end in (FINE, REFUSED, FAULT, DIFFERENT)} for tally in tallies}
    result = {"seed": _SEED.value, "counts": counted, "faults": faults}
    (output / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join([page, *faults]))
    sys.exit(bool(faults))


def tally_of(name: str, folder: Path) -> Tally:
    size = max(1, math.ceil(_SHARE.value * (OF_INPUTS | OF_RUNS)[name]))
    if name == "options":
        return inputs.options(_SEED.value, size)
    if name in OF_INPUTS:
        return getattr(inputs, name)(folder, _SEED.value, size)
    return getattr(runs, name)(undisturbed(folder), size)


@functools.cache
def undisturbed(folder: Path) -> runs.Runs:
    """The run that all others are compared with."""
    return runs.Runs(folder, random.Random(_SEED.value))


def page_of(tallies: list[Tally]) -> str:
    """The table."""
    columns = (FINE, REFUSED, FAULT, DIFFERENT)
    rows = [(tally.what, len(tally.ends), *(tally.count(end) for end in columns)) for tally in tallies]
    return table(("what", "tried", "fine", "refused with reason", "faults", "silently different"), rows) + "\n"


if __name__ == "__main__":
    flags.mark_flags_as_required(["output"])
    app.run(main)
