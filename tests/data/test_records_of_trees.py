"""From prepared trees back to their records: held-out halves, dropped rows, rankings, and repeated texts."""

import json

import pytest

from prefjax.data.config import DataConfig
from prefjax.data.prepare import prepare, records_of
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.requirements import Requirements

PAIRS = Requirements(2)


def rows():
    for i in range(40):
        yield {"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": "no", "subset": "ab"[i % 2], "id": i}
    yield {"prompt": "same", "chosen": "x", "rejected": "x", "subset": "dropped"}
    yield {"prompt": "q3", "chosen": "yes 3", "rejected": "no", "subset": "again"}
    yield {"prompt": "r", "completions": ["1", "22", "333"], "scores": [1, 2, 3], "subset": "ranked"}


@pytest.mark.parametrize("changes", [dict(holdout=0.4), dict(eval="itself", rankings="all")])
def test_every_tree_finds_its_own_record(changes, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    changes = {name: str(file) if value == "itself" else value for name, value in changes.items()}
    config, tokenizer = DataConfig(train=str(file), **changes), ByteTokenizer()
    trees = prepare(config, PAIRS, tokenizer, tmp_path / "data", split="eval", progress=False)
    again = lambda: records_of(config, PAIRS, tokenizer, tmp_path / "data", trees, columns=["subset", "id"])
    records = [record for record, _ in again()]
    assert len(records) == len(trees) > 10 and "dropped" not in {record.columns["subset"] for record in records}
    for index, record in enumerate(records):
        assert tokenizer.decode(trees[index].prompt) == f"<bos>{record.prompt}"
        assert tokenizer.decode(trees[index].responses[0]) == f"{record.responses[0]}<eos>"
        line = int(record.source.split(":")[-1].split("[")[0])
        assert record.columns["subset"] == list(rows())[line - 1]["subset"]
    if not config.eval:
        assert len(records) < 40
    else:
        assert [record.columns["subset"] for record in records].count("ranked") == 3
        assert "again" in {record.columns["subset"] for record in records}

    file.write_text("".join(json.dumps(row) + "\n" for row in list(rows())[:20]))
    with pytest.raises(ValueError, match="prepare them again"):
        list(again())
    file.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(ValueError, match="prepare them again"):
        list(again())
