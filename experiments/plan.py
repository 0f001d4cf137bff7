"""Says before anything is rented whether a run fits, what it sends and how fast it can be: compiles the real train step
for chips that are not here.

    python -m experiments.plan --config=configs/plan.py:llama3_8b --topology=v5e-16
    python -m experiments.plan --config=configs/plan.py:llama3_8b --topology=v5e-16,h100x8 --output=plans
    python -m experiments.plan --config=configs/plan.py:llama3_8b --topology=v5e-16 --search
    python -m experiments.plan --config=configs/quickstart.py:kto --topology=h100 --lengths=preferences.jsonl.gz

Runs on a CPU, in an environment of its own: pip install -r requirements.txt -r requirements-aot.txt

TOPOLOGY  v5e-16, v6e-8 (chips); v4-8, v5p-64, tpu7x-8 (TensorCores, two to a chip, as Google names slices); h100x8,
          h200x4, a100x8 (GPUs of one node); a chip's name alone is one chip.
TIME      for an 8B model 1 to 4 minutes a TPU plan, 10 to 30 s a GPU plan; --search compiles a few dozen.
EXIT      0 if all fit (with --search: if any does), 1 if not, 2 for a wrong command line or a missing compiler.
"""

import sys
from pathlib import Path

import jax
from absl import app, flags

from experiments.benchmarks import lengths as lengths_lib
from experiments.command import command_line, start_command
from experiments.config_flag import define_config
from prefjax.data.encoding import EncodingPolicy
from prefjax.fit import plans as plans_lib
from prefjax.fit.ahead import CompilerMissing
from prefjax.fit.chips import find_slice
from prefjax.fit.compiled_plan import fitting_trees, make_plans, search_space
from prefjax.interrupts import StopRequest
from prefjax.rows.store import TreeSource
from prefjax.training.config import StageConfig, objective_of
from prefjax.training.parameters import complete_model, tokenizer_of
from prefjax.training.runs import run_config

_CONFIG = define_config()
_TOPOLOGY = flags.DEFINE_list("topology", None, "Slices to plan for, see above.")
_LENGTHS = flags.DEFINE_string("lengths", "paper:ultrafeedback", "Whose lengths: a distribution or a preference file.")
_SEARCH = flags.DEFINE_bool("search", False, "Try meshes, remat policies and micro-batches, and rank those that fit.")
_OUTPUT = flags.DEFINE_string("output", "", "Folder for plans.md, plans.json and plans.png; plans there are kept.")


@StopRequest()
def main(_) -> None:
    jax.config.update("jax_platforms", "cpu")  # what is planned for is never touched
    command = command_line("plan")
    enough = any if _SEARCH.value else all
    everywhere = True
    try:
        stage = run_config(_CONFIG.value.to_dict()).stage
        slices = [find_slice(name) for name in _TOPOLOGY.value]
        trees, told = load_trees(stage, _LENGTHS.value)
        for where in slices:
            candidates = list(search_space(stage, where)) if _SEARCH.value else [stage]
            plans = make_plans(candidates, where, trees, told, command)
            everywhere &= enough(plan.fits for plan in plans)
            if _SEARCH.value:
                plans = plans_lib.ranked(plans) + [plan for plan in plans if not plan.fits]
                print(f"\n{plans_lib.table(plans)}", flush=True)
            if _OUTPUT.value:
                plans_lib.write(Path(_OUTPUT.value), plans)
    except (CompilerMissing, ValueError) as error:
        raise app.UsageError(str(error)) from error
    if _OUTPUT.value:
        print(f"{_OUTPUT.value}/: plans.md plans.json plans.png")
    sys.exit(0 if everywhere else 1)


def load_trees(config: StageConfig, lengths: str) -> tuple[TreeSource, str]:
    """Trees of these lengths that fit the config's rows, and a line that says whose they are and how many did not."""
    requires, tokenizer = objective_of(config).requires, tokenizer_of(config.data, config.model)
    vocab_size = complete_model(config.model, tokenizer).vocab_size
    drawn, told = lengths_lib.load_trees(
        lengths, config.data.tokenizer, EncodingPolicy(), vocab_size=vocab_size, group_size=requires.group_size
    )
    trees = fitting_trees(config, drawn, lengths)
    if len(trees) < len(drawn):
        told += f"; {1 - len(trees) / len(drawn):.1%} too long for a row left out"
    return trees, told


if __name__ == "__main__":
    start_command(main, required=["config", "topology"])
