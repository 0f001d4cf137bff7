"""What a stage says of its data before it trains: sequences beyond the context, splits that cannot serve."""

import json

import pytest

from prefjax.data.config import DataConfig
from prefjax.data.jsonl import write_rows
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.models import ModelConfig
from prefjax.policies.evaluate import EvaluationOptions, subset_names
from prefjax.rows.mismatch import ShiftedTrees
from prefjax.rows.steps import StepSampler
from prefjax.rows.units import units_of
from prefjax.training import runs
from prefjax.training.batches import can_be_merged, describe_merging, describe_shape, training_batching, under_layout
from prefjax.training.config import RowsConfig, StageConfig
from prefjax.training.loop import LoopConfig
from prefjax.training.optimizers import OptimizerConfig
from prefjax.training.parameters import context_of
from prefjax.training.runs import RunConfig, SamplingConfig, Stage
from prefjax.training.stage import load_splits


def _config(objective: str, data: DataConfig, **changes) -> StageConfig:
    model = ModelConfig(259, num_layers=1, width=8, num_heads=2, num_kv_heads=1, head_width=4, mlp_width=8)
    rows, train = changes.pop("rows", RowsConfig(tokens_per_step=256)), LoopConfig(epochs=1)
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


def test_a_shift_within_the_step_is_for_what_is_trained_on(tmp_path):
    """Held-out records keep the response that was drawn for them, so that their loss can be compared."""
    write_rows(tmp_path / "train.jsonl", [{"prompt": f"Q{i}", "completion": "yes", "label": 1} for i in range(4)])
    data = DataConfig(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "train.jsonl"))
    config = _config("kto", data, rows=RowsConfig(tokens_per_step=256, mismatched="step"))
    train, held_out = load_splits(config, ByteTokenizer(), tmp_path / "data", say=False)
    assert isinstance(train.trees, ShiftedTrees) and not isinstance(held_out.trees, ShiftedTrees)


def _pairs(count: int, start: int = 0):
    return [
        {"prompt": f"Q{i}", "chosen": "yes", "rejected": "no", "n": i * 7 % 10} for i in range(start, start + count)
    ]


def test_a_curriculum_reaches_the_steps(tmp_path):
    write_rows(tmp_path / "train.jsonl", _pairs(10))
    write_rows(tmp_path / "eval.jsonl", _pairs(2, 20))
    orders = {}
    for order, methods in (("fixed", ""), ("fixed", "order_by(by='n', falling=True)"), ("shuffled", "")):
        data = DataConfig(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "eval.jsonl"), methods=methods)
        config = _config("dpo", data, rows=RowsConfig(tokens_per_step=32, order=order))
        train, _ = load_splits(config, ByteTokenizer(), tmp_path / "data")
        steps = StepSampler(train.trees.lengths, train.shape, training_batching(config)).steps()
        drawn = [record for step in steps for row in step for record in row]
        orders[order, methods] = [int(bytes(train.trees[record].prompt[2:].tolist())) for record in drawn]
    in_file, falling, shuffled = orders.values()
    assert in_file == list(range(10)) and sorted(shuffled) == in_file and shuffled != in_file
    assert [i * 7 % 10 for i in falling] == list(range(10))[::-1]
    for rows in (dict(order="fixed", window=5), dict(batching="prompts", prompts_per_step=2, window=5)):
        with pytest.raises(ValueError, match="rows.window=5 is only read with batching='rows' and order='shuffled'"):
            RowsConfig(**rows)


def test_records_that_begin_alike_are_counted_and_packed_together(tmp_path):
    """Two turns of a dialogue and a repeated prompt, each in bytes; nothing else begins with more than `Q`."""
    turns = [{"prompt": "Q: what is it?", "chosen": " a cat.", "rejected": " a dog."}]
    turns += [{"prompt": "Q: what is it? a cat.", "chosen": "Yes", "rejected": "No"}, turns[0] | {"rejected": " air"}]
    write_rows(tmp_path / "train.jsonl", turns + _pairs(3))
    config = _config(
        "dpo",
        DataConfig(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "train.jsonl")),
        rows=RowsConfig(layout="merged", merge_from=12, tokens_per_step=256),
    )
    train, _ = load_splits(config, ByteTokenizer(), tmp_path / "data")
    assert units_of(train.trees, train.shape).members == ((0, 1, 2), (3,), (4,), (5,))
    chains = [
        tree.prompt.tolist() + branch.tolist()
        for tree in map(train.trees.__getitem__, range(6))
        for branch in tree.responses
    ]
    separate = sum(map(len, chains))
    merged = len({tuple(chain[:end]) for chain in chains for end in range(1, len(chain) + 1)})
    text = describe_merging(config, train.trees)
    assert text.startswith(f"tokens an epoch: {separate} separate, ")
    assert f", {merged} ({separate / merged:.2f} times fewer) merged; " in text and "in 4 units" in text
    assert text.endswith("by rows.merge_from=12, the largest of 38 tokens, or of 3 records")
    shape = describe_shape(config, train.trees, train.shape)
    assert shape.startswith("merged: ")
    for rows in (dict(), dict(layout="merged", order="fixed")):
        said = "rows.merge_from=5 is only read with layout='merged' and order='shuffled'"
        with pytest.raises(ValueError, match=said):
            RowsConfig(merge_from=5, **rows)
    with pytest.raises(ValueError, match="Set rows.merge_from=0"):
        RowsConfig(layout="merged", mismatched="step")
    assert under_layout(config, "pairs").rows.merge_from == 32 != under_layout(config, "merged").rows.merge_from
    assert can_be_merged(config, train.trees)


def test_the_same_data_twice_is_said(tmp_path, capsys):
    write_rows(tmp_path / "train.jsonl", _pairs(5) + _pairs(2))
    write_rows(tmp_path / "eval.jsonl", _pairs(3, 4))
    config = _config("dpo", DataConfig(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "eval.jsonl")))
    train, held_out = load_splits(config, ByteTokenizer(), tmp_path / "data")
    output = capsys.readouterr().out
    assert "\n[train] 2 of 7 records are equal to an earlier one: counted twice\n" in output
    assert "[eval] 1 of 3 records have a prompt that the training data has too, 1 with the same responses" in output
    assert held_out.facts()["prompts_in_training"] == held_out.facts()["records_in_training"] == 1
    assert "prompts_in_training" not in train.facts()
    write_rows(tmp_path / "copy.jsonl", _pairs(5) + _pairs(2))
    twice = DataConfig(train=f"{tmp_path / 'train.jsonl'} + {tmp_path / 'copy.jsonl'}")
    with pytest.raises(ValueError, match="copy.jsonl is a copy of .*train.jsonl, so its records would count twice"):
        load_splits(_config("dpo", twice), ByteTokenizer(), tmp_path / "data")


def test_data_of_a_later_stage_are_refused_before_the_first_one_trains(tmp_path, monkeypatch):
    rows = [{"prompt": f"Q{i}", "completion": "yes", "label": i % 2} for i in range(20)]
    write_rows(tmp_path / "train.jsonl", rows)
    data = DataConfig(train=str(tmp_path / "train.jsonl"), holdout=0.3)
    stages = tuple(Stage(name, _config(objective, data)) for name, objective in (("sft", "sft"), ("", "dpo")))
    monkeypatch.setattr(runs, "run_stage", lambda *_, **__: pytest.fail("a stage trained"))
    said = (
        r"no record of the train split is left\n.*; \d+ were dropped \(the objective, or a data method, needs another "
        r"kind of record\), first .*train.jsonl:\d+:completion: .*this record is unpaired: use an objective for single"
    )
    with pytest.raises(ValueError, match=said):
        runs.train_run(RunConfig(stages, SamplingConfig()), tmp_path / "run")


def test_a_column_that_no_record_has_is_refused_with_those_there_are(tmp_path):
    for name, count in (("train", 3), ("eval", 2)):
        write_rows(tmp_path / f"{name}.jsonl", [row | {"source": "ab"[row["n"] % 2]} for row in _pairs(count)])
    config = _config("dpo", DataConfig(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "eval.jsonl")))
    assert subset_names(config, tmp_path, EvaluationOptions(subset_field="source")) == ["a", "b"]
    with pytest.raises(ValueError) as refused:
        subset_names(config, tmp_path, EvaluationOptions(subset_field="sorce"))
    assert str(refused.value) == (
        f"--subset_field=sorce: 2 of 2 records have no such column, as {tmp_path / 'eval.jsonl'}:1; "
        "there are prompt, chosen, rejected, n, source: did you mean source?"
    )
    other = tmp_path / "other.csv"
    other.write_text("prompt,chosen,rejected,source\nQ,a,b,x\nR,a,b,\n")
    options = EvaluationOptions(data=str(other), subset_field="source")
    with pytest.raises(ValueError, match="1 of 2 records have no such column, as .*other.csv:3; there are prompt, .*"):
        subset_names(config, tmp_path, options)
