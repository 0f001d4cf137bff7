"""Exports a trained policy as a Hugging Face folder that transformers and vLLM load.

python -m experiments.export --workdir=runs/dpo --output=exports/dpo --dtype=bfloat16

Of a run that trained a scalar reward model the folder is one for AutoModelForSequenceClassification, with one label.
"""

from pathlib import Path

from absl import app, flags

from experiments.command import start_command
from prefjax.interrupts import StopRequest
from prefjax.policies.export import export_policy, export_reward_model
from prefjax.policies.open import open_policy
from prefjax.policies.rewards import open_reward_model
from prefjax.training.config import objective_of
from prefjax.training.runs import open_run, origin

_WORKDIR = flags.DEFINE_string("workdir", None, "The --workdir of a finished or stopped training run.")
_OUTPUT = flags.DEFINE_string("output", None, "A new folder for the model.")
_STAGE = flags.DEFINE_enum("stage", "preference", ["preference", "sft"], "Whose policy.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16"], "Of the files. None: the type that parameters were trained in."
)
_SHARD_GB = flags.DEFINE_float("shard_gb", 5.0, "Largest weights file in GB; a larger model is several files.")


@StopRequest()
def main(_) -> None:
    workdir, options = Path(_WORKDIR.value), dict(dtype=_DTYPE.value, shard_bytes=int(_SHARD_GB.value * 1e9))
    run = open_run(workdir)
    name = "" if _STAGE.value == "preference" else _STAGE.value
    stage = run.find(name)
    if stage is None:
        raise app.UsageError(f"--stage={name}: {workdir} had no {name.upper()} stage")
    if objective_of(stage).requires.reward_head:
        source = open_reward_model(workdir)
        export_reward_model(source, _OUTPUT.value, origin=origin(str(workdir)), **options)
    else:
        source = open_policy(workdir / name)
        export_policy(source, _OUTPUT.value, **options)
    print(f"exported to {_OUTPUT.value}")
    if given := source.data.chat_template_kwargs:
        print(f"its chat template was given {given}: whoever serves it has to give the same")


if __name__ == "__main__":
    start_command(main, required=["workdir", "output"])
