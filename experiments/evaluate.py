"""Evaluates a trained run on its held-out set, or on another file, against the model it started from.

python -m experiments.evaluate --workdir=runs/dpo [--data=other.jsonl.gz] [--output=other.json]
"""

import json
from pathlib import Path

import ml_collections
from absl import app, flags

from experiments.door import run_config
from prefjax.training.stage import evaluate_stage

_WORKDIR = flags.DEFINE_string("workdir", None, "The --workdir of a finished or stopped training run.")
_DATA = flags.DEFINE_string("data", "", "Another preference file; all of it is evaluated. Empty: the held-out set.")
_OUTPUT = flags.DEFINE_string("output", "", "Where the numbers go as JSON. Empty: WORKDIR/evaluation.json.")


def main(_) -> None:
    workdir = Path(_WORKDIR.value)
    config = ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text()))
    run = run_config(config)
    reference = str(workdir / "sft") if run.sft is not None else run.stage.init_from
    values = evaluate_stage(run.stage, workdir, reference, data=_DATA.value)
    width = max(map(len, values))
    print("\n".join(f"{name:<{width}}  {value:.6g}" for name, value in values.items()))
    output = Path(_OUTPUT.value or workdir / "evaluation.json")
    output.write_text(json.dumps({"data": _DATA.value or "held-out", **values}, indent=1) + "\n")
    print(f"written to {output}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    app.run(main)
