"""The analysis command: its options, its inputs, and its errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.commands import load

analyze = load("analyze")
parse_tool, read_table = analyze.parse_tool, analyze.read_table


ROOT = Path(__file__).resolve().parents[2]


def test_options_are_checked_by_type_and_completed():
    tool, options = parse_tool("ranking_accuracy(beta=1, length='n')")
    assert tool.name == "ranking_accuracy"
    assert options == {"policy": "policy_logp", "reference": None, "length": "n", "proportion": None, "beta": 1.0}
    assert parse_tool("subset_accuracy")[1]["sections"] == "none"
    assert parse_tool("aspect_conflict(aspects=['a', 'b'])")[1] == {"aspects": ("a", "b")}


@pytest.mark.parametrize(
    "text, hints",
    [
        ("best_of_m", ["no tool named 'best_of_m'", "best_of_n", "docs/analysis.md"]),
        ("best_of_n(n=4)", ["best_of_n takes no option 'n'", "sizes"]),
        ("best_of_n('reward')", ["name(option=value"]),
        ("best_of_n(", ["never closed"]),
        ("best_of_n | best_of_n", ["one tool at a time"]),
        ("best_of_n(sizes=[2, 4.0])", ["best_of_n(sizes=...): [2, 4.0] must be a list of integers"]),
        ("ranking_accuracy(beta='x')", ["ranking_accuracy(beta=...): 'x' must be a number"]),
        ("ranking_accuracy(beta=x)", ["beta=x is no number"]),
        ("aspect_conflict", ["aspect_conflict needs the option 'aspects'"]),
    ],
)
def test_what_cannot_be_read_is_refused(text, hints):
    with pytest.raises(ValueError) as error:
        parse_tool(text)
    assert all(hint in str(error.value) for hint in hints), error.value


def test_arrays_stand_beside_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"behaviour": "a"}\n{"behaviour": "b"}\n')
    np.savez(tmp_path / "vectors.npz", embedding=np.zeros((2, 2, 3)), behaviour=np.zeros(2))
    tool, options = parse_tool("preference_distinguishability")
    with pytest.raises(ValueError, match="there is a column 'behaviour' already"):
        read_table(tool, options, str(tmp_path / "rows.jsonl"), [str(tmp_path / "vectors.npz")])
    np.save(tmp_path / "embedding.npy", np.zeros((3, 2, 3)))
    with pytest.raises(ValueError, match="as many rows as each other"):
        read_table(tool, options, str(tmp_path / "rows.jsonl"), [str(tmp_path / "embedding.npy")])


def test_the_command_reads_records_of_both_shapes_and_writes_what_it_found(tmp_path):
    message = lambda text: [{"role": "assistant", "content": text}]
    rows = [{"prompt": "a", "chosen": "one two three", "rejected": "one", "cites": [2, 0]}] * 3
    rows += [{"prompt": "b", "chosen": message("one"), "rejected": message("one two\n- three"), "cites": [0, 1]}] * 2
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "experiments.analyze", f"--data={tmp_path / 'pairs.jsonl'}"]
    command += ["--tool=preference_factors(text=['words'])", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Strongest factor: words" in done.stdout and (tmp_path / "out" / "preference_factors.png").exists()
    values = json.loads((tmp_path / "out" / "preference_factors.json").read_text())
    assert values["pairs"] == 5 and values["factors"]["words"]["chosen_has_more"]["value"] == 0.6
    assert "--tool=preference_factors" in values["command"]


def test_rankings_are_no_pairs(tmp_path):
    (tmp_path / "ranked.jsonl").write_text('{"prompt": "a", "completions": ["x", "y", "z"], "scores": [1, 2, 3]}\n')
    tool, options = parse_tool("preference_factors")
    with pytest.raises(ValueError, match='is no pair: .*--methods="pairs"'):
        read_table(tool, options, str(tmp_path / "ranked.jsonl"), [])
