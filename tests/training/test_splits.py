"""What a stage says of its data before it trains: sequences beyond the context, splits that cannot serve."""

import json

import pytest

from prefjax.data.jsonl import write_rows
from prefjax.data.prepare import DataConfig
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.models import ModelConfig
from prefjax.training.config import RowsConfig, StageConfig
from prefjax.training.loop import LoopConfig
from prefjax.training.optimizers import OptimizerConfig
from prefjax.training.parameters import context_of
from prefjax.training.stage import load_splits


def _config(objective: str, data: DataConfig, **changes) -> StageConfig:
    model = ModelConfig(259, num_layers=1, width=8, num_heads=2, num_kv_heads=1, head_width=4, mlp_width=8)
    rows, train = RowsConfig(tokens_per_step=256), LoopConfig(steps=1)
    return StageConfig(objective, {}, data, rows, model, OptimizerConfig(), train, **changes)


def test_records_beyond_the_context_are_counted_with_the_fix(tmp_path, capsys):
    folder, run = tmp_path / "model", tmp_path / "run"
    for path, text in (
        (folder / "config.json", {"model_type": "llama", "max_position_embeddings": 40}),
        (run / "run.json", {"context": 40}),
    ):
        path.parent.mkdir()
        path.write_text(json.dumps(text))
    rows = [{"prompt": "Q" * length, "chosen": "yes", "rejected": "no"} for length in (10, 35, 36, 50)]
    write_rows(tmp_path / "train.jsonl", rows)  # BOS, the prompt, the response and EOS: 15, 40, 41 and 55 tokens
    write_rows(tmp_path / "eval.jsonl", rows[:1])
    data = DataConfig(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "eval.jsonl"))
    config = _config("dpo", data, init_from=str(folder))
    train, held_out = load_splits(config, ByteTokenizer(), tmp_path / "data")
    said = f"[train] 2 of 4 records are longer than the 40 positions that {folder} was made for, up to 55 tokens: "
    output = capsys.readouterr().out
    assert f"{said}give --config.data.encoding.max_length=40" in output and output.count("positions that") == 1
    assert (train.facts()["beyond_context"], train.facts()["longest"]) == (2, 55)
    assert "beyond_context" not in held_out.facts() and context_of(str(run)) == 40 and context_of("") is None


def test_held_out_records_of_one_prompt_name_their_split(tmp_path):
    write_rows(tmp_path / "train.jsonl", [{"prompt": f"Q{i}", "completion": "yes", "label": 1} for i in range(4)])
    write_rows(tmp_path / "eval.jsonl", [{"prompt": "Q", "completion": "yes", "label": 1}])
    config = _config("kto", DataConfig(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "eval.jsonl")))
    said = "^kto on the eval split, 1 records: 1 of 1 records share one prompt: .*, or give data.eval more prompts$"
    with pytest.raises(ValueError, match=said):
        load_splits(config, ByteTokenizer(), tmp_path / "data")
