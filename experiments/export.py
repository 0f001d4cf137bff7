"""Exports a trained policy as a Hugging Face folder that transformers and vLLM load.

python -m experiments.export --workdir=runs/dpo --output=exports/dpo --dtype=bfloat16

Of a run that trained a scalar reward model the folder is one for AutoModelForSequenceClassification, with one label.
"""

import json
from pathlib import Path

import ml_collections
from absl import app, flags, logging

from experiments.door import origin, run_config
from prefjax.losses import OBJECTIVES
from prefjax.training.export import export_policy, export_reward_model

_WORKDIR = flags.DEFINE_string("workdir", None, "The --workdir of a finished or stopped training run.")
_OUTPUT = flags.DEFINE_string("output", None, "A new folder for the model.")
_STAGE = flags.DEFINE_enum("stage", "preference", ["preference", "sft"], "Whose policy.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16"], "Of the files. None: the type that parameters were trained in."
)
_SHARD_GB = flags.DEFINE_float("shard_gb", 5.0, "Largest weights file in GB; a larger model is several files.")


def main(_) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    workdir = Path(_WORKDIR.value)
    run = run_config(ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text())))
    if _STAGE.value == "sft" and run.sft is None:
        raise app.UsageError(f"--stage=sft: {workdir} had no SFT stage")
    stage, folder = (run.sft, workdir / "sft") if _STAGE.value == "sft" else (run.stage, workdir)
    export = export_reward_model if OBJECTIVES[stage.objective].trains_reward_model else export_policy
    export(
        stage,
        folder,
        _OUTPUT.value,
        like=origin(str(workdir)),
        dtype=_DTYPE.value,
        shard_bytes=int(_SHARD_GB.value * 1e9),
    )
    print(f"exported to {_OUTPUT.value}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "output"])
    app.run(main)
