"""The command for the day a chip is there: every part small, what stops it, and what stays of it."""

import dataclasses
import json
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import pytest
from absl import app, flags

from experiments.benchmarks import sweep
from experiments.benchmarks.accelerator import __main__ as command
from experiments.benchmarks.accelerator import card, child, findings, page, parts, proof, speed, table, tiles, versus
from experiments.benchmarks.accelerator.early import Early, has_crashed
from experiments.benchmarks.shapes import MODELS
from experiments.benchmarks.training import branches_of, place
from experiments.benchmarks.tune_attention import name_of
from prefjax.fit.chips import CHIPS
from prefjax.models import attention
from prefjax.models.attention import kernel_tiles, kernels
from prefjax.models.attention.kernel_tiles import Blocks

PACKAGE = "experiments.benchmarks.accelerator"


def kinds(folder, part):
    return [(entry["kind"], entry.get("case")) for entry in findings.read(folder) if entry["part"] == part]


def run_small(folder, *names):
    """Runs parts at their tiny size in this process; no case of theirs may fail."""
    for name in names:
        child.run_cases(folder, name, "tiny")
        assert not findings.of(findings.read(folder), name, "failure")
    return page.write(folder, folder / "page.md", folder)


def test_kernels_are_proven_and_attention_timed_small(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "TINY", dataclasses.replace(speed.TINY, interpret=None))  # kernels: as traced below
    text = run_small(tmp_path, "proof", "speed", "versus")
    (row,) = findings.rows(findings.read(tmp_path), "proof")
    assert row["verdict"] == "equal" and max(row["errors"]["kernels"]) < 1e-5
    assert "1 of 1 are equal" in text and "Not run: " in text
    rows = findings.rows(findings.read(tmp_path), "speed")
    assert [row["equal"] for row in rows if row["direction"] != "forward"] == [True, True]
    assert (tmp_path / "speed.png").stat().st_size > 5000


def test_attention_counts_the_pairs_that_it_visits():
    problem = speed.Problem(dataclasses.replace(speed.TINY, positions=1280), 640)
    shown, whole, side = problem.pairs(speed.MASKED)
    assert (shown, whole, side) == (float(attention.visible(problem.masks[0]).sum()), 2 * 640.0**2, 0)
    causal = 2 * 640 * 641 / 2
    assert problem.pairs(speed.CUDNN) == (causal, causal, 0)
    for name, tile in ((speed.KERNELS, 32 * 32), (speed.TILES, 64 * 64)):
        needed, visited, side = problem.pairs(name)
        assert (needed, side) == (shown, tile) and visited % tile == 0 and shown < visited < causal
    trace = lambda *heads: problem.attend(speed.KERNELS, problem.mask(speed.KERNELS), *heads)
    assert jax.eval_shape(trace, *problem.arrays[:3]).shape == problem.arrays[0].shape


def test_tiles_are_tried_from_the_table_outwards(tmp_path, monkeypatch):
    tried = []

    class Proven:
        def __init__(self, *_):
            pass

        def cell(self, blocks):
            return sweep.Cell({"blocks": blocks}, lambda: time.sleep(0.002))

        def check(self, cell):
            tried.append(cell.facts["blocks"])
            assert tried[-1].key < 64, "gradients are 0.5 away from plain XLA's"
            return cell

    monkeypatch.setattr(tiles, "Proven", Proven)
    monkeypatch.setattr(tiles, "TINY", dataclasses.replace(tiles.TINY, tiles=8, repeats=2))
    child.run_cases(tmp_path, "tiles", "tiny")
    assert tried[0] == kernel_tiles.BLOCKS["cuda"] and len(set(tried)) == 8 and {b.key for b in tried} == {32, 64, 128}
    entries = findings.read(tmp_path)
    wrong = findings.of(entries, "tiles", "failure")
    assert len(wrong) == sum(blocks.key >= 64 for blocks in tried)
    assert wrong[0]["error"].startswith("AssertionError: gradients are 0.5 away")
    assert "| 32 x 32, 32 rows, 4 warps |" in page.write(tmp_path, tmp_path / "page.md", tmp_path)


def test_a_wrong_kernel_is_caught_by_the_proof_and_left_out_of_the_table(tmp_path, monkeypatch):
    forward = kernels.forward
    wrong = lambda *given, **options: jax.tree.map(lambda x: 1.001 * x, forward(*given, **options))
    monkeypatch.setattr(kernels, "forward", wrong)
    plain = dataclasses.replace(*proof.TINY.variants, softcap=None, window=None)
    monkeypatch.setattr(proof, "TINY", dataclasses.replace(proof.TINY, variants=(plain,)))
    child.run_cases(tmp_path, "proof", "tiny")
    entries = findings.read(tmp_path)
    (row,) = findings.rows(entries, "proof")
    assert row["verdict"].startswith("WRONG: output 0.001, plain XLA 0")
    assert max(row["errors"]["live tiles"]) < 1e-5
    assert findings.proven_attention(entries, dtype="float32", width=16) == "tiled"
    assert findings.proven_attention(entries, dtype="bfloat16", width=64) == "auto"


def test_verdicts():
    exact, off = [1e-3] * 4, [1e-3, 1e-3, 2.1e-3, float("nan")]
    assert proof.verdict({"kernels": exact, "plain": exact}, {}, True) == "equal"
    assert proof.verdict({"kernels": off, "plain": exact}, {}, True) == (
        "WRONG: key 0.0021, plain XLA 0.001; value nan, plain XLA 0.001"
    )
    assert (
        proof.verdict({"plain": exact}, {"kernels": "XlaRuntimeError: no\nmore"}, True) == "failed: XlaRuntimeError: no"
    )
    assert "no kernel" in proof.verdict({"plain": exact}, {}, False)


@pytest.mark.slow
def test_the_card_is_described_and_a_step_on_it_compared(tmp_path):
    text = run_small(tmp_path, "card")
    entries = findings.read(tmp_path)
    assert findings.fact(entries, "card", "verdict") == "equal" and findings.fact(entries, "card", "missing") == {}
    assert findings.fact(entries, "card", "kernels") == 0 and findings.fact(entries, "card", "matmul_tflops") > 0
    assert text.startswith("# cpu\n") and "| float32, highest precision | 0.0e+00 |" in text


@pytest.mark.slow
def test_tiles_and_the_table_are_measured_small(tmp_path):
    text = run_small(tmp_path, "tiles", "table")
    entries = findings.read(tmp_path)
    (tile,), (cell,) = findings.rows(entries, "tiles"), findings.rows(entries, "table")
    assert tile["milliseconds"] > 0 and "| 32 x 32, 32 rows, 4 warps |" in text
    assert "| paper:hh | shared_packed | live |" in text and cell["layout"] == "shared_packed"


class PlayedTraining:
    """Cells that take as long and hold as much as they are told; `held` is the most that was ever held."""

    model, reference_bytes, held = MODELS["tiny"], 500, 0

    def reference_table(self, *_):
        return "table"

    def cell(self, trees, layout, reference, *, micro_batch, table):
        assert (table == "table") == (reference == "precomputed") and len(trees) == 1
        needs = {"pairs": 4000, "shared": 2000}[layout] + 1000 * (reference == "live")

        def run():
            self.held = max(self.held, needs + self.reference_bytes * (reference != "live"))
            time.sleep({"pairs": 0.02, "shared": 0.01}[layout])
            return {"loss": 0.7}

        return sweep.Cell({"layout": layout, "reference": reference, "positions": 8, "memory_mb": needs / 1e6}, run)


def test_the_table_measures_every_cell_and_its_peak(tmp_path, monkeypatch):
    played = PlayedTraining()
    monkeypatch.setattr(table, "Training", lambda *_: played)
    monkeypatch.setattr(table, "peak_bytes", lambda: played.held)
    sizes = dict(layouts=("pairs", "shared"), references=table.REFERENCES)
    monkeypatch.setattr(table, "TINY", dataclasses.replace(table.TINY, **sizes))
    text = run_small(tmp_path, "table")
    rows = {(row["layout"], row["reference"]): row for row in findings.rows(findings.read(tmp_path), "table")}
    assert list(rows) == [("pairs", "live"), ("shared", "live"), ("pairs", "precomputed"), ("shared", "precomputed")]
    peaks = {cell: row["measured_peak"] for cell, row in rows.items()}
    assert peaks == {
        ("shared", "live"): 3000,
        ("pairs", "live"): 5000,
        ("shared", "precomputed"): None,  # no more than was held before
        ("pairs", "precomputed"): None,
    }
    assert rows["shared", "live"]["s_time"] > 1 and rows["shared", "live"]["mfu"] is None
    assert "| paper:hh | shared | live |" in text and (tmp_path / "table.png").stat().st_size > 5000


def test_a_step_that_went_elsewhere_is_not_equal(monkeypatch):
    went = {"float32": 1.0, "bfloat16": 1.1}
    monkeypatch.setattr(card, "updates", lambda size, device, dtype, precision: {"parameters": went[dtype]})
    (row,) = card.step(card.TINY, "bfloat16", "default")
    assert row["away"]["parameters"] == pytest.approx(0.1) and row["verdict"] == "more than 0.06 away"


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "requirements.txt").write_text("# what\nnumpy>=99\nno-such-package>=1,<2\npytest>=1  # tests\n")
    (row,) = card.packages(tmp_path / "requirements.txt")
    assert row["missing"]["no-such-package"] == "no-such-package<2,>=1 is missing"
    assert row["missing"]["numpy"].startswith("numpy>=99 is required, 2.") and "pytest" not in row["missing"]


# A part without jax: the first word of a case says what it does.
STAND_IN = """
import os, sys, time, types
from experiments.benchmarks.accelerator import child
def cases(size, folder):
    def finds(): yield {"found": 1}
    def hangs():
        yield {"found": 2}
        time.sleep(600)
    def dies():
        yield {"found": 3}
        os._exit(9)
    return {name: {"finds": finds, "hangs": hangs, "dies": dies}[name.split()[0]] for name in CASES[sys.argv[2]]}
module = types.ModuleType("stand_in")
module.TINY, module.cases = None, cases
sys.modules["experiments.benchmarks.accelerator." + sys.argv[2]] = module
child.main()
"""


def stand_in(monkeypatch, **cases):
    code = STAND_IN.replace("CASES", repr(cases))
    monkeypatch.setattr(parts, "CHILD", (sys.executable, "-c", code))
    return [parts.Part(name, name, 100.0) for name in cases]


def test_parts_end_at_their_limits_and_what_they_found_stands(tmp_path, monkeypatch):
    chosen = stand_in(monkeypatch, a=["finds", "hangs", "finds again"], b=["dies", "finds"])
    began = time.monotonic()
    seen = []
    parts.run_part(chosen[0], tmp_path, 6.0, "tiny")
    assert time.monotonic() - began < 30
    parts.run_parts(chosen[1:], tmp_path, 60.0, "tiny", lambda: seen.append(len(findings.read(tmp_path))))
    entries = findings.read(tmp_path)
    assert [row["found"] for row in findings.rows(entries, "a")] == [1, 2, 1], (
        "a case that hangs ends, the next goes on"
    )
    (stopped,) = findings.of(entries, "a", "failure")
    assert stopped["case"] == "hangs" and stopped["error"].startswith("its process was stopped after")
    (died,) = findings.of(entries, "b", "failure")
    assert (died["case"], died["error"]) == ("dies", "its process ended with 9")
    assert [entry["how"] for entry in entries if entry["kind"] == "end"] == ["finished", "finished"]
    assert seen == [len(entries)]


def test_a_part_that_takes_all_of_its_time_is_stopped(tmp_path, monkeypatch):
    part = dataclasses.replace(*stand_in(monkeypatch, a=["hangs"]), case=2.0)
    parts.run_part(part, tmp_path, 2.0, "tiny")
    (end,) = findings.of(findings.read(tmp_path), "a", "end")
    assert end["how"] == "stopped at its limit of 2 s" and end["seconds"] < 25


def test_a_process_that_cannot_start_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "CHILD", (sys.executable, "-c", "raise SystemExit(4)"))
    parts.run_part(parts.Part("a", "a", 1.0), tmp_path, 60.0, "tiny")
    (end,) = findings.of(findings.read(tmp_path), "a", "end")
    assert end["how"] == "its process ended with 4 before any case began: see log.txt"


def test_a_kill_of_the_command_leaves_what_was_found_and_no_process(tmp_path, monkeypatch):
    code = STAND_IN.replace("CASES", repr({"a": ["finds"], "b": ["hangs"]}))
    script = (
        f"from pathlib import Path\nfrom {PACKAGE} import parts\nimport sys\n"
        f"parts.CHILD = (sys.executable, '-c', {code!r})\n"
        f"parts.run_parts([parts.Part(n, n, 1.0, 0.9) for n in 'ab'], Path({str(tmp_path)!r}), 600.0, 'tiny')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=parts.ROOT)
    deadline = time.monotonic() + 60
    while ("row", "hangs") not in kinds(tmp_path, "b") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert kinds(tmp_path, "a")[-1][0] == "end" and kinds(tmp_path, "b")[-1] == ("row", "hangs")
    while still_there(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not still_there(str(tmp_path)), "the part's process went on without the command"


def still_there(word):
    def command_line(process):
        try:
            return process.read_bytes()
        except OSError:  # it ended
            return b""

    return any(word.encode() in command_line(process) for process in Path("/proc").glob("[0-9]*/cmdline"))


def test_a_case_that_raises_is_a_line_and_what_has_begun_is_not_begun_again(tmp_path, monkeypatch):
    def fails():
        raise ValueError("no such thing\nat all")
        yield

    module = types.ModuleType("stand_in")
    module.TINY, module.cases = None, lambda size, folder: {"one": fails, "two": lambda: iter([{"found": 1}])}
    monkeypatch.setitem(sys.modules, f"{PACKAGE}.stand_in", module)
    child.run_cases(tmp_path, "stand_in", "tiny")
    child.run_cases(tmp_path, "stand_in", "tiny")
    assert [kind for kind, _ in kinds(tmp_path, "stand_in")] == ["begin", "failure", "begin", "row"]
    assert findings.of(findings.read(tmp_path), "stand_in", "failure")[0]["error"] == "ValueError: no such thing"


def test_a_line_that_a_kill_cut_off_costs_that_line(tmp_path):
    findings.add(tmp_path, "a", "begin", case="one")
    with (tmp_path / findings.FILE).open("a") as file:
        file.write('{"part": "a", "ki')
    findings.add(tmp_path, "a", "begin", case="two")
    assert [entry["kind"] for entry in findings.read(tmp_path)] == ["begin", "cut", "begin"]
    assert "1 lines of findings.jsonl were cut off" in page.write(tmp_path, tmp_path / "page.md", tmp_path)


def test_the_fastest_tile_serves_what_comes_after(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_tiles, "BLOCKS", dict(kernel_tiles.BLOCKS))
    fast, slow = Blocks(64, 64, 64, warps=8), Blocks(128, 32, 128, warps=8)
    for blocks, milliseconds in ((slow, 2.0), (fast, 1.0)):
        row = {"listed": "NVIDIA H200", "blocks": blocks, "milliseconds": milliseconds}
        findings.add(tmp_path, "tiles", "row", case=name_of(blocks), row=row)
    tiles.use_fastest(findings.read(tmp_path), "NVIDIA H100")
    assert kernel_tiles.BLOCKS["NVIDIA H100"] == Blocks(64, 64, 64, warps=4)
    tiles.use_fastest(findings.read(tmp_path), "NVIDIA H200")
    assert kernel_tiles.BLOCKS["NVIDIA H200"] == fast


def test_things_are_made_by_the_group_and_errors_are_raised_where_they_are_asked_for():
    made = []
    makers = {n: lambda n=n: made.append(n) or 6 // n for n in (1, 2, 0, 3)}
    early = Early(makers, 2)
    assert (early[1], sorted(made)) == (6, [1, 2]) and early[2] == 3
    with pytest.raises(ZeroDivisionError):
        early[0]
    assert early[3] == 2 and sorted(made) == [0, 1, 2, 3]


def test_after_a_crash_cases_are_made_one_by_one(tmp_path):
    findings.add(tmp_path, "proof", "failure", case="one", error="ValueError: its process")
    assert not has_crashed(tmp_path, "proof")
    findings.add(tmp_path, "proof", "failure", case="two", error="its process ended with -11")
    assert has_crashed(tmp_path, "proof") and not has_crashed(tmp_path, "tiles")


def test_every_listed_chip_has_its_peaks():
    assert set(table.KINDS) == set(kernel_tiles.BLOCKS) - set(kernel_tiles.PLATFORMS)
    assert set(table.KINDS.values()) == set(CHIPS)
    device = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")
    assert table.chip_of(device) == CHIPS["h100"]
    assert table.chip_of(types.SimpleNamespace(platform="gpu", device_kind="NVIDIA L4")) is None


def test_plans_are_of_the_rows_that_are_measured(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: ["one"])
    size, data = table.Size(), "paper:hh"
    trees = table.sample(data, size)
    for layout in size.layouts:
        positions = place(trees, layout, branches_of(trees), micro_batch=size.micro_batch).positions
        row = {"layout": layout, "reference": "live", "positions": positions}
        assert 20e9 < table.planned_peak(CHIPS["h200"], data, row) < CHIPS["h200"].memory
    assert table.planned_peak(CHIPS["h200"], data, row | {"positions": 8}) is None
    assert table.planned_peak(CHIPS["v4"], data, row) is None and table.planned_peak(None, data, row) is None


def test_a_folder_becomes_a_page_with_the_cards_name(tmp_path):
    found, docs = tmp_path / "found", tmp_path / "docs"
    found.mkdir()
    with pytest.raises(ValueError, match="does not say which card"):
        page.write_docs(found, docs)
    findings.add(found, "card", "row", case="card", row={"kind": "NVIDIA H200", "machine": {"jax": "0.11.2"}})
    findings.add(found, "proof", "failure", case="float32", error="ValueError: no", trace="/a/path/of/that/machine")
    row = {"listed": "NVIDIA H200", "blocks": Blocks(64, 64, 64, warps=8), "milliseconds": 1.5}
    findings.add(found, "tiles", "row", case="64 x 64", row=row)
    written = page.write_docs(found, docs)
    assert written == docs / "accelerator_nvidia_h200.md"
    text = written.read_text()
    assert text.startswith("# NVIDIA H200\n\n- jax 0.11.2.") and "- float32: ValueError: no" in text
    assert "](benchmarks/nvidia_h200/tiles.png)" in text and (docs / "benchmarks/nvidia_h200/tiles.png").exists()
    kept = (docs / "benchmarks/nvidia_h200/result.json").read_text()
    assert len(json.loads(kept)) == 3 and "/a/path" not in kept


def test_flags_that_do_not_go_together_are_refused(monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(output=None, page=None))
    with pytest.raises(app.UsageError, match="either --output=DIR"):
        command.main([])
    with pytest.raises(app.UsageError, match="--parts: cards is none of card, proof"):
        command.chosen(["proof", "cards"])
    assert [part.name for part in command.chosen(["table", "card"])] == ["card", "table"]


def test_trl_is_not_installed_for_it(monkeypatch):
    monkeypatch.setattr(versus.importlib.util, "find_spec", lambda name: None if name == "trl" else object())
    assert versus.why_not() == "trl not here"
