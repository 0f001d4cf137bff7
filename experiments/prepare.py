"""Reads a dataset and says what training would see: counts by reason, lengths, what sharing saves, fill, row length.

python -m experiments.prepare --config=configs/quickstart.py:dpo --config.data.train=preferences.jsonl.gz
    --output=prepared
"""

from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from experiments.door import run_config
from prefjax.data.rows import LAYOUTS
from prefjax.data.tokenizers import load_tokenizer
from prefjax.training.stage import branches_of, find_objective, forecast_rows, load_trees

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with get_config(argument), as in configs/.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the prepared trees and their manifests.")


def main(_) -> None:
    stage = run_config(_CONFIG.value).stage
    objective = find_objective(stage.objective)
    tokenizer = load_tokenizer(stage.data.tokenizer, stage.data.chat_template)
    for split in ("train", "eval"):
        trees = load_trees(stage, tokenizer, Path(_OUTPUT.value), split)
        print(f"{split}: rows of every layout, as rows.row_length=0 would choose them")
        for layout in LAYOUTS:
            print("  " + forecast_rows(stage, trees, branches_of(trees, objective), layout))
        print(flush=True)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "output"])
    app.run(main)
