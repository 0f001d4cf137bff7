"""Mistakes that people make: each ends in one line that says what is wrong, where, and the flag that mends it."""

import json
import re
from pathlib import Path

import pytest
from absl import flags

from experiments.command import is_expected, line_of
from experiments.config_flag import define_config
from experiments.elsewhere import OURS
from prefjax.analysis import find_runs
from prefjax.options import walk
from prefjax.policies.open import open_policy
from prefjax.training.batches import evaluation_shape, load_trees, training_shape
from prefjax.training.config import StageConfig
from prefjax.training.mesh import make_mesh
from prefjax.training.parameters import tokenizer_of
from prefjax.training.runs import run_config

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART, FINETUNE = "--config=configs/quickstart.py:dpo", "--config=configs/finetune.py:dpo"
PAIRS = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(40)]
LABELS = [{"prompt": f"q{i}", "completion": "yes", "label": True} for i in range(40)]
MISSPELT = [{"prompt": f"q{i}", "choosen": "yes", "rejected": "no"} for i in range(40)]
EQUAL = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "yes"} for i in range(40)]
lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode()
FILES = {
    "pairs.jsonl": lines(PAIRS),
    "labels.jsonl": lines(LABELS),
    "misspelt.jsonl": lines(MISSPELT),
    "equal.jsonl": lines(EQUAL),
    "two.jsonl": lines(PAIRS[:1]),
    "wide.jsonl": lines(PAIRS).decode().encode("utf-16"),
    "table.jsonl": b"prompt,chosen,rejected\nq,yes,no\n",
    "pairs.txt": lines(PAIRS),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*words):
    """What train does before anything is computed: flags, options, devices, data, the shape of rows."""
    values, argv = flags.FlagValues(), ["train", *words]
    define_config(flag_values=values, sys_argv=argv)
    values(argv)
    stage = run_config(values.config.to_dict()).stage
    make_mesh(stage.mesh)
    tokenizer = tokenizer_of(stage.data, stage.model)
    trees = [load_trees(stage, tokenizer, Path("data"), split, say=False) for split in ("train", "eval")]
    training_shape(stage, trees[0]), evaluation_shape(stage, trees[1])


# name -> (words of the command line, what its line must say: the place, the fix)
MISTAKES = {
    "a field misspelt": ([QUICKSTART, "--config.loss.betta=1"], "dpo takes no option 'betta'.*beta=0.1"),
    "an option of another objective": ([QUICKSTART, "--config.loss.tau=1"], "dpo takes no option 'tau'.*beta"),
    "a field without its section": ([QUICKSTART, "--config.beta=1"], "did you mean config.loss.beta[?]$"),
    "epochs": ([QUICKSTART, "--config.epochs=3"], "did you mean config.train.epochs[?]$"),
    "lr": (
        [QUICKSTART, "--config.lr=1e-5"],
        "config.lr is not an option: here that is --config.optimizer.learning_rate",
    ),
    "batch size": ([QUICKSTART, "--config.batch_size=8"], "here that is --config.rows.tokens_per_step"),
    "epochs beside steps": (
        [QUICKSTART, "--config.train.epochs=1"],
        "train.steps=120, train.epochs=1: set exactly one of them above 0, and the other to 0",
    ),
    "no number": ([QUICKSTART, "--config.train.steps=many"], "flag --config.train.steps=many: .*int"),
    "no value": ([QUICKSTART, "--config.train.steps"], "Missing value for flag --config.train.steps"),
    "an objective misspelt": (["--config=configs/quickstart.py:dop"], "no objective named 'dop'; near it: .*dpo"),
    "and of the other file": (["--config=configs/finetune.py:dop"], "no objective named 'dop'; near it: .*dpo"),
    "an objective by flag": ([QUICKSTART, "--config.objective=ppo"], "no objective named 'ppo'; near it: .*sppo"),
    "a config misspelt": (
        ["--config=configs/quikstart.py:dpo"],
        "no file 'configs/quikstart.py': did you mean configs/quickstart.py[?]",
    ),
    "a config by its name": (["--config=mine"], "no file 'mine': configs/ has some, as configs/finetune.py:dpo"),
    "negative beta": (
        [QUICKSTART, "--config.loss.beta=-0.1"],
        r"dpo\(beta=...\): -0.1 is out of range: set it to above 0",
    ),
    "no steps": ([QUICKSTART, "--config.train.steps=0"], "train.steps=0, train.epochs=0: set exactly one"),
    "an unknown optimiser": (
        [QUICKSTART, "--config.optimizer.name=adam"],
        "optimizer.name='adam': choose one of adamw",
    ),
    "a number type's short name": ([QUICKSTART, "--config.model.dtype=bf16"], "model.dtype='bf16': .*bfloat16"),
    "a share in per cent": ([QUICKSTART, "--config.data.holdout=10"], "data.holdout=10.0: set it to .*below 1"),
    "more devices than there are": (
        [QUICKSTART, "--config.mesh.data=64"],
        "'data': 64.* needs 64 devices and [0-9]+ are there: set the mesh axes",
    ),
    "QLoRA without a rank": ([QUICKSTART, "--config.lora.quantize=nf4"], "lora.quantize .* lora.rank=0: set a rank"),
    "a start beside SFT": ([QUICKSTART, "--config.init_from=x"], r"config.sft both say .*\(--config.sft={} leaves"),
    "no model": ([FINETUNE, "--config.data.train=pairs.jsonl"], "init_from is empty: give --config.init_from=FOLDER"),
    "a model that is not here": (
        [FINETUNE, "--config.init_from=SmolLM2", "--config.data.train=pairs.jsonl"],
        "init_from='SmolLM2' is neither .*: correct the path, or --config.init_from=hf:owner/name downloads a model",
    ),
    "a model of the hub": (
        [FINETUNE, "--config.init_from=HuggingFaceTB/SmolLM2", "--config.data.train=pairs.jsonl"],
        "correct the path, or --config.init_from=hf:HuggingFaceTB/SmolLM2 downloads a model of the hub",
    ),
    "a model of the hub without its owner": (
        [FINETUNE, "--config.init_from=hf:SmolLM2", "--config.data.train=pairs.jsonl"],
        "'hf:SmolLM2': write hf:owner/name, or hf:owner/name@revision",
    ),
    "two lengths of the warm-up": (
        [QUICKSTART, "--config.optimizer.warmup_steps=5"],
        "warmup_steps=5 and optimizer.warmup_ratio=0.08 both say how long the warm-up is: set one of them to 0",
    ),
    "no data": ([QUICKSTART, "--config.data.train="], "data.train is empty: give --config.data.train=FILE"),
    "a file that is not here": ([QUICKSTART, "--config.data.train=mine.jsonl"], "no file mine.jsonl: correct the path"),
    "nor the held-out one": (
        [QUICKSTART, "--config.data.train=pairs.jsonl", "--config.data.eval=held.jsonl"],
        "no file held.jsonl: correct the path",
    ),
    "a dataset misspelt": (
        [QUICKSTART, "--config.data.train=hh_rlhv/helpful-base:train"],
        "no dataset named 'hh_rlhv'; near it: hh_rlhf",
    ),
    "a method misspelt": (
        [QUICKSTART, "--config.data.methods=flip_label(rate=0.1)"],
        "no data method named 'flip_label'; near it: flip_labels",
    ),
    "labels under dpo": (
        [QUICKSTART, "--config.data.train=labels.jsonl"],
        r"unpaired: use an objective for single responses \(kto",
    ),
    "a column misspelt": ([QUICKSTART, "--config.data.train=misspelt.jsonl"], "choosen: did you mean chosen[?]"),
    "equal responses": ([QUICKSTART, "--config.data.train=equal.jsonl"], "all responses are the same"),
    "UTF-16": ([QUICKSTART, "--config.data.train=wide.jsonl"], "wide.jsonl is UTF-16, not UTF-8: convert it"),
    "a table as JSON lines": ([QUICKSTART, "--config.data.train=table.jsonl"], "table.jsonl is a table .*name it .csv"),
    "an unknown suffix": ([QUICKSTART, "--config.data.train=pairs.txt"], "pairs.txt: must be .*suffix.* .jsonl"),
    "too few records to hold out": ([QUICKSTART, "--config.data.train=two.jsonl"], "data.holdout=0.1 .*give data.eval"),
    "everything too long": (
        [QUICKSTART, "--config.data.train=pairs.jsonl", "--config.data.encoding.max_length=4"],
        "34 were dropped .prompt and longest response exceed max_length",
    ),
    "rows too short": (
        [QUICKSTART, "--config.data.train=pairs.jsonl", "--config.rows.row_length=4"],
        "fits a row of 4 tokens, the shortest takes [0-9]+: raise rows.row_length, or truncate by data.encoding",
    ),
    "no such tokenizer": (
        [QUICKSTART, "--config.data.train=pairs.jsonl", "--config.data.tokenizer=gpt2"],
        "no tokenizer folder gpt2: give 'byte', or download",
    ),
}


def told(function, *words):
    """The line a command would end with; None of its tracebacks would be shown."""
    with pytest.raises(Exception) as found:
        function(*words)
    error = found.value
    assert isinstance(error, flags.Error) or is_expected(error), repr(error)
    line = line_of(error)
    assert "Traceback" not in line and "\n" not in line and len(line) < 500, line
    return line


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_place_and_fix(name, folder):
    words, said = MISTAKES[name]
    assert re.search(said, line := told(start, *words)), line


def test_folders_that_hold_no_run_are_named(folder):
    assert "none holds no metrics.jsonl, nor do the folders in it: give the --workdir" in told(find_runs, ["none"])
    assert "none is neither a run's --workdir nor a Hugging Face folder" in told(open_policy, "none", None)


def test_hints_of_names_elsewhere_lead_to_options_there_are():
    known = {path for path, _ in walk(StageConfig)} | {"loss.beta", "--workdir"}
    assert set(OURS.values()) <= known
