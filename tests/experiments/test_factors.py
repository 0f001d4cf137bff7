"""The count of shared tokens: by hand, by brute force, on real files, and by the command."""

import gzip
import itertools
import json
import re
import runpy

import numpy as np
import pytest

from docs import draw_mask
from experiments.benchmarks import factors, sweep
from experiments.benchmarks.factors import Trie, views
from prefjax.data.config import DataConfig
from prefjax.data.encoding import EncodingPolicy, encode_all
from prefjax.data.readers import read_records
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.models import ModelConfig
from prefjax.rows.store import MemoryTrees
from prefjax.rows.trees import TokenTree
from prefjax.training.batches import describe_merging
from prefjax.training.config import LoopConfig, RowsConfig, StageConfig
from prefjax.training.optimizers import OptimizerConfig
from tests.commands import as_program
from tests.documents import ROOT


def tree(prompt: str, *responses: str) -> TokenTree:
    ids = lambda text: np.array([*text.encode()], np.int32)
    return TokenTree(ids(prompt), tuple(map(ids, responses)), np.zeros(len(responses), np.float32))


def test_counts_by_hand():
    """abc goes on from ab's response c: its prompt costs nothing, and d is shared by two responses."""
    trees = [tree("ab", "c", "de"), tree("abc", "d", "dx")]
    assert factors.factors(trees) == {
        **{"records": 2, "separate": 3 + 4 + 4 + 5, "shared": 2 + 3 + 3 + 3, "nodes": 7},
        **{"per_record": 16 / 11, "merged": 16 / 7, "continues": 1},
    }
    assert factors.factors([tree("ab", "c"), tree("abd", "c")])["continues"] == 0


def test_a_trie_holds_every_beginning_once():
    rng, trie = np.random.default_rng(0), Trie()
    sequences = [tuple(rng.integers(3, size=rng.integers(1, 9)).tolist()) for _ in range(60)]
    ends = [trie.add(ids[len(ids) // 2 :], trie.add(ids[: len(ids) // 2])) for ids in sequences]
    assert trie.size == len({ids[:n] for ids in sequences for n in range(1, len(ids) + 1)})
    for (a, first), (b, second) in itertools.combinations(zip(sequences, ends, strict=True), 2):
        assert (a == b) == (first == second)


def test_scored_or_not_a_token_is_the_same():
    one, other = tree("ab", "cd"), tree("ab", "cd")
    assert factors.factors([one, TokenTree(other.prompt, (~other.responses[0],), other.targets)])["nodes"] == 4


def test_the_picture_of_a_deep_tree_holds_what_its_page_says(tmp_path):
    counts = factors.factors(draw_mask.dialogue()[1])
    text = " ".join((ROOT / "docs/trees.md").read_text().split())
    assert f"with a word a token: {counts['nodes']} tokens, where every response" in text
    assert f"apart takes {counts['separate']}, and every record with its prompt once {counts['shared']}." in text
    draw_mask.draw_dialogue(tmp_path / "mask.png")
    assert (tmp_path / "mask.png").stat().st_size > 20_000


def test_real_rankings_have_these_views(real_data):
    records, _ = read_records(real_data / "oasst_en100_ranked.jsonl.gz", progress=False)
    assert {view: len(own) for view, own in views(records)} == {"records": 212, "all pairs": 754}


def stage_of(objective: str) -> StageConfig:
    parts = DataConfig(), RowsConfig(), ModelConfig(259, 1, 8, 2, 1, 4, 8), OptimizerConfig(), LoopConfig(steps=1)
    return StageConfig(objective, {}, *parts)


@pytest.mark.parametrize(
    "file,view,at_least",
    [
        ("oasst_en100_ranked", "records", 1.1),
        ("oasst_en100_ranked", "all pairs", 2.5),
        ("gsm8k_solutions_k4", "records", 1.0),
        ("gsm8k_solutions_k4", "all pairs", 1.8),
        ("gsm8k_solutions_k4", "every step", 2.5),
        ("hh_harmless_base_test", "every turn", 1.5),
        ("hh_harmless_base_test", "records", 1.0),
        ("ultrafeedback_1k_eval", "records", 1.0),
    ],
)
def test_what_prepare_says_of_real_files_is_the_count(real_data, tmp_path, file, view, at_least):
    """Of the first records each, and how many tokens fewer than with prompts shared by a record."""
    with gzip.open(real_data / f"{file}.jsonl.gz", "rt") as lines:
        (tmp_path / "cut.jsonl").write_text("".join(itertools.islice(lines, 60)))
    records, _ = read_records(tmp_path / "cut.jsonl", progress=False)
    policy = EncodingPolicy(special_text="parse")
    trees, _ = encode_all(dict(views(records))[view][:160], ByteTokenizer(), policy, progress=False)
    objective = "dpo" if all(len(tree.responses) == 2 for tree in trees) else "dro_p"
    said = describe_merging(stage_of(objective), MemoryTrees(trees))
    counted = factors.factors(trees)
    told = [float(times) for times in re.findall(r"\(([\d.]+) times fewer\)", said)]
    assert told == pytest.approx([counted["per_record"], counted["merged"]], rel=0.02)
    assert counted["shared"] / counted["nodes"] >= at_least


def test_the_command(tmp_path, monkeypatch):
    say = lambda role, content: {"role": role, "content": content}
    chat = [say("user", "Hi"), say("assistant", "Hello"), say("user", "Bye")]
    rows = [{"prompt": chat, "chosen": f"Bye {k}", "rejected": "No"} for k in range(3)]
    rows += [{"prompt": "q", "completions": ["a\nb", "a\nc", "d"], "scores": [1, 0, 0]}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output, data = tmp_path / "factors", tmp_path / "mixed.jsonl"
    with as_program(["factors", f"--data={data}", f"--output={output}"], monkeypatch):
        runpy.run_path(factors.__file__, run_name="__main__")
    lines = json.loads((output / "result.json").read_text())["rows"]
    assert [(line["view"], line["records"]) for line in lines] == [
        *(("records", 4), ("all pairs", 2), ("every turn", 6), ("every step", 1))
    ]
    assert all(1 <= line["per_record"] <= line["merged"] for line in lines)
    kept = json.loads((ROOT / "docs/benchmarks/factors/result.json").read_text())["rows"]
    assert lines[0].keys() == kept[0].keys() and (output / "plot.png").stat().st_size > 5000
    assert sweep.table(factors.COLUMNS, kept) in (ROOT / "docs/trees.md").read_text()
