"""The comparison with TRL: what both sides are told, how answers are compared, and that ours keeps its promises."""

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.benchmarks import lengths, trl, trl_own
from experiments.benchmarks.shapes import MODELS
from prefjax.data.tokenizer_files import write_tokenizer
from prefjax.models import huggingface, init

ROOT = Path(__file__).resolve().parents[2]
OWN = {"micro_batch": 64, "remat": "none", "head_chunk": 16, "attention": "auto"}


def trees():
    rng = np.random.default_rng(0)
    sizes = ((9, (4, 6)), (20, (3, 8)), (5, (2, 2)))
    return [lengths.make_tree(rng, row, prompt, np.array(rest), 512) for row, (prompt, rest) in enumerate(sizes)]


def wanted(**changes):
    facts = dict(model="", steps=3, threads=2, reference="live", score=True) | changes
    return trl.request(trees(), OWN, **facts)


def row(side, reference, speed, cpu, memory):
    return dict(side=side, reference=reference, pairs_per_second=speed, cpu_seconds_per_pair=cpu, peak_gb=memory)


def test_both_sides_get_the_same_ids_and_ours_rebuilds_the_trees():
    asked = json.loads(json.dumps(wanted()))
    for tree, back in zip(trees(), trl_own.token_trees(asked["pairs"]), strict=True):
        np.testing.assert_array_equal(tree.prompt, back.prompt)
        for response, again in zip(tree.responses, back.responses, strict=True):
            np.testing.assert_array_equal(response, again)
        assert back.targets.tolist() == [1, 0]
        assert back.example_id == tree.example_id


def test_the_other_side_reads_what_is_sent_and_imports_nothing_of_ours():
    """The script cannot run without torch; its keys and imports can be read."""
    nodes = list(ast.walk(ast.parse(trl.TRL_SCRIPT.read_text())))
    keys = {
        (node.value.id, node.slice.value)
        for node in nodes
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and isinstance(node.slice, ast.Constant)
    }
    assert {key for name, key in keys if name == "request"} == set(wanted())
    assert {key for name, key in keys if name == "setting"} == set(trl.TRL_SETTINGS[0])
    assert set(OWN) == set(trl.OWN_SETTINGS[0])
    imported = [n.names[0].name for n in nodes if isinstance(n, ast.Import)]
    imported += [n.module for n in nodes if isinstance(n, ast.ImportFrom)]
    assert not {"prefjax", "experiments"} & {name.split(".")[0] for name in imported}
    returned = {key.value for node in nodes if isinstance(node, ast.Dict) for key in node.keys}
    assert {"seconds", "cpu_seconds", "seconds_before", "losses", "logps"} <= returned


def test_a_row_leaves_the_first_step_out():
    result = dict(seconds=[90.0, 2.0, 3.0, 4.0], cpu_seconds=[90.0, 6.0, 6.0, 9.0], seconds_before=5.0, losses=[0.7])
    found = trl.summary("TRL", wanted(), result | {"peak_gb": 1.5})
    assert found["pairs_per_second"] == pytest.approx(3 / 3.0)
    assert found["cpu_seconds_per_pair"] == pytest.approx(2.0)
    assert found["peak_gb"] == 1.5


def test_advantage_is_ours_over_theirs_with_the_same_reference():
    rows = [
        row("prefjax", "live", 4.0, 1.0, 3.0),
        row("TRL", "live", 1.0, 5.0, 12.0),
        row("prefjax", "precomputed", 6.0, 1.0, 2.0),
        row("TRL", "precomputed", 3.0, 1.5, 2.0),
    ]
    assert trl.advantage(rows, "live") == {"speed": 4.0, "cpu": 5.0, "memory": 0.25}
    assert trl.advantage(rows, "precomputed") == {"speed": 2.0, "cpu": 1.5, "memory": 1.0}


def test_log_probs_are_compared_relatively_and_a_difference_is_refused():
    found = trl.compare_logps([[-100.0, -50.0]], [[-100.005, -50.0]])
    assert found["responses"] == 2
    assert found["largest_difference"] == pytest.approx(0.005)
    assert found["largest_relative_difference"] == pytest.approx(5e-5, rel=1e-3)
    with pytest.raises(AssertionError, match="differ"):
        trl.compare_logps([[-100.0, -50.0]], [[-100.0, -50.006]])
    with pytest.raises(AssertionError, match="differ"):  # chosen and rejected changed places
        trl.compare_logps([[-100.0, -50.0]], [[-50.0, -100.0]])


def test_the_fastest_setting_is_found_among_failures():
    trials = [
        dict(side="TRL", setting={"batch": 1}, pairs_per_second=1.0),
        dict(side="TRL", setting={"batch": 2}, pairs_per_second=2.0),
        dict(side="TRL", setting={"batch": 8}, error="out of memory"),
        dict(side="prefjax", setting={"micro_batch": 8}, pairs_per_second=9.0),
    ]
    assert trl.fastest(trials, "TRL") == trials[1]
    with pytest.raises(ValueError, match="out of memory"):
        trl.fastest(trials[2:], "TRL")


def test_the_table_of_trials_compares_our_fastest_with_each_of_theirs():
    own = row("prefjax", "live", 6.0, 1.0, 2.0)
    rest = dict(setting={"batch": 2}, pairs=8, seconds_before=1.0)
    failed = dict(side="TRL", reference="live", setting={"batch": 8}, pairs=8, error="x\nno memory")
    rows = [row("TRL", "live", 2.0, 4.0, 4.0) | rest, row("prefjax", "live", 3.0, 2.0, 1.0) | rest, failed]
    header, _, *lines = trl.table(rows, own).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *lines)]
    assert {len(line) for line in cells} == {10}
    assert [line[-2:] for line in cells[1:]] == [["3.00x", "50%"], ["", ""], ["", ""]]
    assert "failed: no memory" in lines[2]


def test_a_failed_process_is_an_error_with_its_output():
    with pytest.raises(RuntimeError, match="ended with 3:\nno such thing"):
        trl.run([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"], {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama in the Hugging Face format."""
    path = tmp_path_factory.mktemp("model")
    model = dataclasses.replace(MODELS["tiny"], norm_epsilon=1e-5)
    huggingface.save_huggingface(path, model, init(model, jax.random.key(0)))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("reference", trl.REFERENCES)
def test_our_side_trains_on_the_request(folder, reference):
    result = trl_own.train(wanted(model=folder, reference=reference))
    assert len(result["seconds"]) == len(result["cpu_seconds"]) == len(result["losses"]) == 3
    assert result["losses"][0] == pytest.approx(np.log(2), abs=1e-5)
    assert result["losses"][2] < result["losses"][0]
    assert np.shape(result["logps"]) == (3, 2)
    found = trl.summary("prefjax", wanted(), result | {"peak_gb": 1.0})
    assert found["pairs_per_second"] > 0
    text = trl.table([found, dict(side="TRL", reference="live", setting={"batch": 1}, pairs=3, error="x\nno memory")])
    assert "failed: no memory" in text


@pytest.mark.slow
def test_the_command_compares_two_sides(folder, tmp_path):
    """TRL's side is played by ours, in a process of its own as TRL would be."""
    write_tokenizer(folder, "byte")
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": "?" * n, "chosen": "Yes.", "rejected": "No!"}) + "\n" for n in range(3, 9))
    )
    python = tmp_path / "trl_python"
    python.write_text(
        f"#!{sys.executable}\nimport json, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from experiments.benchmarks import trl_own\n"
        f"request = json.load(open(sys.argv[2])) | {{'setting': {OWN}}}\n"
        "json.dump(trl_own.train(request), open(sys.argv[3], 'w'))\n"
    )
    python.chmod(0o755)
    options = [f"--data={tmp_path / 'pairs.jsonl'}", f"--model={folder}", f"--trl_python={python}", "--pairs=4"]
    options += ["--trial_pairs=0", "--steps=1", "--references=live", f"--output={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "experiments.benchmarks.trl", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
    saved = json.loads((tmp_path / "out/result.json").read_text())
    kept = json.loads((ROOT / "docs/benchmarks/trl/result.json").read_text())
    assert saved.keys() == kept.keys() and saved["rows"][0].keys() == kept["rows"][0].keys()
    assert [row["side"] for row in saved["rows"]] == ["prefjax", "TRL"]
    assert saved["rows"][0]["losses"] == pytest.approx(saved["rows"][1]["losses"], rel=1e-3)
    header = next(line for line in (tmp_path / "out/table.md").read_text().splitlines() if line.startswith("|"))
    assert header in (ROOT / "docs/benchmarks/trl/table.md").read_text().splitlines()
