"""Everything that goes wrong, on a tiny model: what must come out is the same result, or a refusal by name.

    python -m experiments.chaos --output=DIR                 all of it, two hours on two CPU cores
    python -m experiments.chaos --output=DIR --share=0.02    a fiftieth of every number, a quarter of an hour
    python -m experiments.chaos --output=DIR --only=records,files

Makes DIR/table.md and DIR/result.json, anew after every kind, and prints every fault; `python -m docs.write_chaos DIR`
puts them into the docs.
Exit status: 1 if there was a fault or a silent difference.
"""

import json
import sys
from pathlib import Path

from absl import app, flags

from experiments.chaos.kinds import SIZES, chaos, page_of
from experiments.command import start_command
from prefjax.interrupts import StopRequest

_OUTPUT = flags.DEFINE_string("output", None, "Folder for table.md and result.json.")
_SHARE = flags.DEFINE_float("share", 1.0, "Of every number of tries.", lower_bound=0, upper_bound=1)
_ONLY = flags.DEFINE_list("only", [], f"Some of {', '.join(SIZES)}; empty: all.")
_SEED = flags.DEFINE_integer("seed", 0, "Of everything that is drawn.", lower_bound=0)


@StopRequest()
def main(_) -> None:
    if unknown := sorted(set(_ONLY.value) - set(SIZES)):
        raise app.UsageError(f"--only: no {', '.join(unknown)}; choose of {', '.join(SIZES)}")
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    for result in chaos(_ONLY.value or list(SIZES), _SHARE.value, _SEED.value):
        (output / "table.md").write_text(page_of(result))
        (output / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join([page_of(result), *result["faults"]]))
    sys.exit(bool(result["faults"]))


if __name__ == "__main__":
    start_command(main, required=["output"])
