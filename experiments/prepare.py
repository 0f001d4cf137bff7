"""Reads a dataset and says what training would see: counts by reason, lengths, what sharing saves, fill, row length.

    python -m experiments.prepare --config=configs/quickstart.py:dpo \\
        --config.data.train=preferences.jsonl.gz --workdir=runs/mine

`data.train` and `data.eval` take a file, a named dataset of docs/datasets.md, or a mixture:

    --config.data.train="0.7 hh_rlhf/helpful-base:train + 0.3 preferences.jsonl.gz"
    --config.data.eval=hh_rlhf/helpful-base:test

--preview=3 also shows three trees of each split as the model reads them, in colours on a terminal: prompt, responses,
special tokens, what is scored, targets, token counts, what was cut off. The same is written as pages for a browser,
preview-train.html and preview-eval.html beside the trees, with the counts of every stage.

Records pass as a stream, so any number of them fits into memory; beyond 4,096 all cores encode, or as many processes
as --config.data.workers says, with the same bytes. Progress and the time left are shown on a terminal, and once a
minute in a log. Who is stopped goes on, by the same command, with the parts of 4,096 records that were whole.

What prompts and responses have in common across records, which rows.layout=merged writes once, is counted up to 100
million tokens; beyond those, where that is the layout.

The trees and their manifest.json stay in config.data.directory, else in the data folder of --workdir, where a run
given the same options finds them; without either in runs/prepared/data, and the last line says how a run finds them.
"""

import itertools
import sys
from pathlib import Path

from absl import flags

from experiments.command import start_command
from experiments.config_flag import define_config
from prefjax.data.days import as_prepared
from prefjax.data.prepare import records_of
from prefjax.data.preview import legend, preview_tree, tree_blocks
from prefjax.data.preview_page import preview_page
from prefjax.data.tokenizers import Tokenizer
from prefjax.interrupts import StopRequest
from prefjax.rows.arrays import LAYOUTS
from prefjax.rows.store import PreparedTrees, TreeSource
from prefjax.state_files import write_whole
from prefjax.training.batches import (
    can_be_merged,
    data_directory,
    describe_merging,
    describe_shape,
    load_trees,
    training_shape,
    under_layout,
    with_baselines,
)
from prefjax.training.config import StageConfig, objective_of
from prefjax.training.parameters import tokenizer_of
from prefjax.training.runs import run_config

_CONFIG = define_config()

_WORKDIR = flags.DEFINE_string("workdir", "runs/prepared", "Of the run that is to find the trees, in its data folder.")
_PREVIEW = flags.DEFINE_integer("preview", 0, "Trees of each split to show, and to write as a page.", lower_bound=0)


def show(stage: StageConfig, tokenizer: Tokenizer, prepared: PreparedTrees, trees: TreeSource, count: int) -> Path:
    """Prints the first trees, with baselines where the objective takes them, and returns the page that shows the same;
    the records are read again."""
    colour, directory = sys.stdout.isatty(), prepared.directory.parent
    tokenizer = as_prepared(tokenizer, prepared)
    print(f"\n{legend(colour=colour)}")
    records = records_of(stage.data, objective_of(stage).requires, tokenizer, directory, prepared)
    shown = []
    for row, (record, _) in enumerate(itertools.islice(records, count)):
        what = (record, trees[row], tokenizer, stage.data.encoding)
        print(f"\n{preview_tree(*what, colour=colour)}")
        shown.append(tree_blocks(*what))
    split = prepared.manifest["split"]
    page = directory / f"preview-{split}.html"
    write_whole(page, preview_page(f"{len(shown)} of {len(trees)} {split} records", shown, prepared.manifest))
    return page


@StopRequest()
def main(_) -> None:
    stage = run_config(_CONFIG.value.to_dict()).stage
    directory = data_directory(stage.data, _WORKDIR.value)
    tokenizer = tokenizer_of(stage.data, stage.model)
    for split in ("train", "eval"):
        prepared = load_trees(stage, tokenizer, directory, split, full=True)
        trees = with_baselines(stage, prepared)
        print(f"[{split}] rows of every layout, one device")
        for layout in LAYOUTS:
            if layout == "merged" != stage.rows.layout and not can_be_merged(stage, trees):
                print(f"  merged: not counted, as the tokens of all {len(trees):,} records would be in memory at once")
                continue
            config = under_layout(stage, layout)
            print("  " + describe_shape(config, trees, training_shape(config, trees)))
            if layout == "merged":
                print(f"  {describe_merging(config, trees)}")
        if _PREVIEW.value:
            print(f"\nto look at: {show(stage, tokenizer, prepared, trees, _PREVIEW.value)}")
        print(f"\nwritten to {prepared.directory / 'manifest.json'}\n", flush=True)
    if not (stage.data.directory or flags.FLAGS["workdir"].present):
        print(f"a run finds them by --config.data.directory={directory}", flush=True)


if __name__ == "__main__":
    start_command(main, required=["config"])
