"""The benchmarks measure what they say, on sizes too small to mean anything."""

import dataclasses
import functools
import itertools
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib.figure
import numpy as np
import pytest

from docs import write_benchmarks
from experiments.benchmarks import (
    attention,
    correlation,
    grid,
    lengths,
    live_tiles,
    merging,
    pipeline,
    responses,
    sweep,
    throughput,
    tune_attention,
)
from experiments.benchmarks.shapes import MODELS
from experiments.benchmarks.training import BASELINE, Gains, Training, ideal_gains, place, total_work
from experiments.command import start_command
from prefjax.analysis import style
from prefjax.data import synthetic_trees
from prefjax.data.encoding import EncodingPolicy
from prefjax.data.synthetic import World
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.models import ModelConfig, init
from prefjax.rows.arrays import LAYOUTS, Branches
from prefjax.rows.lengths import summarize_lengths
from prefjax.training.mesh import MeshConfig, make_mesh
from tests.commands import as_program

TINY = MODELS["tiny"]
PACKED = ("packed_pairs", "shared_packed")
ROOT = Path(__file__).resolve().parents[2]


def trees_of(*sizes, vocab_size=TINY.vocab_size):
    """Trees with (prompt, response, ...) lengths."""
    rng = np.random.default_rng(0)
    return [lengths.make_tree(rng, row, prompt, rest, vocab_size) for row, (prompt, *rest) in enumerate(sizes)]


@pytest.fixture(scope="module")
def training():
    return Training(TINY, make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.fixture(scope="module")
def measured(training):
    """All layouts with a live reference, micro-batches included, and the packed ones with a precomputed reference."""
    trees = trees_of((30, 6, 9), (12, 20, 5), (7, 3, 4), (40, 10, 10))
    of = functools.partial(throughput.Throughput, trees, training, micro_batch=128)
    return trees, of(LAYOUTS, ["live"]).measure(2) + of(PACKED, ["precomputed"]).measure(2)


def is_drawn(figure: matplotlib.figure.Figure, path):
    figure.savefig(path)
    return path.stat().st_size > 5000


def test_the_plots_of_the_docs_are_those_of_their_results():
    """In the one look of today: python -m docs.write_benchmarks"""
    folders = (ROOT / "docs/benchmarks").iterdir()
    assert set(write_benchmarks.PLOTS) == {folder.name for folder in folders if (folder / "plot.png").exists()}
    for name in write_benchmarks.PLOTS:
        stored = (ROOT / "docs/benchmarks" / name / "plot.png").read_bytes()
        assert style.describe(write_benchmarks.draw(name)).encode() in stored, name


@pytest.mark.slow
def test_attention_measures_equal_work(tmp_path):
    compared = attention.Attention((640, 768))
    rows = compared.measure(repeats=1)
    assert [row["length"] for row in rows] == [640, 640, 768, 768]
    assert all(row["milliseconds"] > 0 and row["temporary_mb"] > 0 for row in rows)
    text = compared.table(rows)
    assert len(re.findall(r"^\| \d+ ", text, re.M)) == 2
    assert is_drawn(compared.plot(rows), tmp_path / "plot.png")


def test_attention_refuses_to_time_a_wrong_implementation(monkeypatch):
    right = attention.tiled
    wrong = lambda q, k, v, *mask: right(q, k, 1.01 * v, *mask)
    monkeypatch.setitem(attention.IMPLEMENTATIONS, attention.TILES, wrong)
    with pytest.raises(AssertionError, match="not the same work"):
        attention.Attention([640]).measure(repeats=1)


def test_ideal_gains_equal_a_hand_computed_case():
    """One pair: prompt 4, responses 2 and 1; a model whose FLOPs per token can be written down."""
    model = ModelConfig(vocab_size=10, num_layers=3, width=8, num_heads=2, num_kv_heads=1, head_width=4, mlp_width=16)
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # query, key and value, output, MLP
    separate_tokens, shared_tokens = 2 * 4 + 2 + 1, 4 + 2 + 1
    separate_area = 6 * 7 / 2 + 5 * 6 / 2  # causal squares of the two sequences
    shared_area = 4 * 5 / 2 + (4 * 2 + 2 * 3 / 2) + (4 * 1 + 1)
    forward = lambda tokens, area: 3 * (2 * layer * tokens + 4 * 8 * area) + 2 * 10 * 8 * 3  # the head scores 3 tokens
    gains = ideal_gains(model, trees_of((4, 2, 1), vocab_size=10))
    assert gains.tokens == pytest.approx(separate_tokens / shared_tokens)
    assert gains.flops == pytest.approx(forward(separate_tokens, separate_area) / forward(shared_tokens, shared_area))


def test_speed_ups_are_ratios_to_the_layout_without_sharing():
    speed = {"pairs": 2.0, "packed_pairs": 4.0, "shared": 3.0, "shared_packed": 5.0, "merged": 8.0}
    ideal = dict.fromkeys(speed, Gains(tokens=1.6, flops=1.25)) | {"merged": Gains(tokens=3.0, flops=2.0)}
    rows = [{"layout": name, "reference": "live", "pairs_per_second": value} for name, value in speed.items()]
    compared = {row["layout"]: row for row in throughput.compare(rows, ideal)}
    assert compared["shared"]["s_time"] == 1.5 and compared["shared"]["efficiency"] == pytest.approx(1.2)
    assert compared["shared_packed"]["s_time"] == 1.25 and compared["shared_packed"]["efficiency"] == 1.0
    assert "s_time" not in compared["pairs"] and "s_time" not in compared["packed_pairs"]
    assert compared["merged"]["s_time"] == 2.0 and compared["merged"]["efficiency"] == 1.0
    assert "s_time" not in throughput.compare(rows[3:], ideal)[0]


def test_dialogues_are_merged_along_their_turns():
    """A dialogue of four turns is as long as its last chosen sequence, and the three rejected responses before."""
    model = ModelConfig(vocab_size=50, num_layers=1, width=8, num_heads=2, num_kv_heads=1, head_width=4, mlp_width=16)
    trees = lengths.draw_dialogues(8, EncodingPolicy(max_length=2048), vocab_size=50)
    whole = lambda last: len(last.prompt) + len(last.responses[0])
    tokens = sum(whole(trees[i]) for i in (3, 7)) + sum(len(tree.responses[1]) for tree in trees)
    scored = sum(len(response) for tree in trees for response in tree.responses)
    work = total_work(trees, "merged")
    # The first token is the same in all, and a first response token may be by chance.
    assert tokens - 20 < work.tokens < tokens and scored - 20 < work.scored <= scored
    gains = {layout: ideal_gains(model, trees, layout) for layout in ("shared_packed", "merged")}
    assert gains["merged"].tokens == pytest.approx(total_work(trees, "pairs").tokens / work.tokens)
    assert 1.5 < gains["shared_packed"].tokens < 0.7 * gains["merged"].tokens
    placement = place(trees, "merged", Branches(2), micro_batch=1024)
    assert placement.positions < 1.3 * work.tokens and sorted(sum(placement.members, [])) == list(range(8))


@pytest.mark.slow
def test_every_cell_holds_the_same_pairs(measured):
    trees, rows = measured
    cells = [(layout, "live") for layout in LAYOUTS] + [(layout, "precomputed") for layout in PACKED]
    assert [(row["layout"], row["reference"]) for row in rows] == cells
    separate, shared = (sum(2 * len(t.prompt) * k // 2 for t in trees) for k in (2, 1))
    answers = sum(len(branch) for tree in trees for branch in tree.responses)
    for row in rows:
        tokens = answers + (shared if row["layout"] in BASELINE else separate)
        found = row["positions"] * (1 - row["padding"])
        alike = 4 if row["layout"] == "merged" else 0  # first tokens, by chance
        assert tokens - alike - 1e-6 < found < tokens + 1e-6
        assert len(row["seconds"]) == 2 and row["memory_mb"] > 0
        assert row["useful_tokens_per_second"] == pytest.approx((answers + shared) / 4 * row["pairs_per_second"])
    by_layout = {row["layout"]: row for row in rows if row["reference"] == "live"}
    assert by_layout["shared_packed"]["padding"] < 0.15 < by_layout["pairs"]["padding"]
    assert by_layout["pairs"]["micro_batches"] > by_layout["shared_packed"]["micro_batches"]


@pytest.mark.slow
def test_tables_and_plots(measured, tmp_path):
    _, rows = measured
    shown = functools.partial(throughput.Throughput, [], None, LAYOUTS, ["live"], 128)
    text = shown(data="paper:hh").table(rows)
    assert len(text.splitlines()) == 2 + len(rows)
    live = next(line for line in text.splitlines() if line.startswith("| shared_packed | live"))
    assert live.endswith("| 1.48x | 1.41x |")  # Tables 1 and 2 of the paper's README
    assert "paper" not in shown(data="mine.jsonl").table(rows)
    figure = shown(data="mine.jsonl").plot(rows)
    sweep.write(tmp_path, {"rows": rows}, text, figure)
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["rows"] == json.loads(json.dumps(rows)) and saved["machine"]["jax"] == jax.__version__
    assert (tmp_path / "table.md").read_text() == text and is_drawn(figure, tmp_path / "plot.png")


@pytest.mark.slow
def test_a_cell_that_drops_a_token_is_not_timed(training, monkeypatch):
    from experiments.benchmarks import training as module

    build = module.build_rows

    def wrong(groups, shape):
        rows = build(groups, shape)
        if shape.layout == "shared_packed":
            rows.target_weights[0, 0] = 0.0
        return rows

    monkeypatch.setattr(module, "build_rows", wrong)
    with pytest.raises(AssertionError, match="not the same work"):
        throughput.Throughput(trees_of((9, 6, 5), (8, 4, 3)), training, PACKED, ["live"], 4096).measure(1)


def test_unequal_numbers_are_refused():
    good = {"loss": 0.7, "chosen_logp": -300.0}
    sweep.check_equal({"a": good, "b": good | {"chosen_logp": -300.001}}, sweep.TOLERANCE["float32"])
    for bad in (good | {"chosen_logp": -301.0}, good | {"loss": float("nan")}):
        with pytest.raises(AssertionError, match="b computes"):
            sweep.check_equal({"a": good, "b": bad}, sweep.TOLERANCE["float32"])
    with pytest.raises(AssertionError, match="b computes other"):
        sweep.check_equal({"a": good, "b": {"loss": 0.7}}, sweep.TOLERANCE["float32"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_placement_is_tight(layout):
    trees = lengths.draw_trees(lengths.Lognormal(60, 2), 40, EncodingPolicy(), vocab_size=50)
    placement = place(trees, layout, Branches(2), shards=2, micro_batch=256)
    shape = placement.shape
    assert sorted(tree for row in placement.members for tree in row) == list(range(40))
    assert shape.rows % (2 * placement.accumulation) == 0
    rows_at_once = shape.rows // (2 * placement.accumulation) * (2 if layout == "pairs" else 1)
    assert rows_at_once * shape.row_length <= 256 + 64 or rows_at_once == 1
    if layout in PACKED:
        size = lambda tree: len(tree.prompt) * (2 if layout == "packed_pairs" else 1) + sum(map(len, tree.responses))
        assert placement.positions <= 1.1 * sum(map(size, trees))


def test_rows_grow_until_everything_fits():
    """Three trees of 40 tokens fill two rows of 60 on paper; they need 80."""
    placement = place(trees_of(*[(20, 10, 10)] * 3), "shared_packed", Branches(2), shards=2)
    assert sorted(map(len, placement.members)) == [1, 2] and placement.shape.row_length == 80


def test_distributions_have_the_medians_of_the_paper():
    facts = lengths.published()["datasets"]["lengths"]
    named = lengths.distributions()
    assert len(named) == 7
    for name in ("capybara", "hh", "metamath", "tldr", "helpsteer", "ultrafeedback"):
        prompt, responses = named["paper:" + name].draw(np.random.default_rng(1), 40_000, 2)
        assert np.median(prompt + responses.sum(1)) == pytest.approx(facts[name]["median_length"], rel=0.02)
        assert np.median(prompt / responses[:, 0]) == pytest.approx(facts[name]["median_ratio"], rel=0.05)


def test_published_numbers_come_from_the_file():
    paper = lengths.published()
    for group, name in (("datasets", "packed"), ("datasets", "unpacked"), ("flash_preference", "grid")):
        assert paper[group][name]["verified"] and len(paper[group][name]["version"]) == 40
    assert throughput.paper_gains("paper:capybara", "shared") == pytest.approx((1.54, 1.42), abs=0.005)
    assert throughput.paper_gains("paper:tldr", "shared_packed") == pytest.approx((1.38, 1.35), abs=0.005)
    assert throughput.paper_gains("paper:hh", "pairs") is None and throughput.paper_gains("mine", "shared") is None
    assert grid.flash_preference(1024, 128) == 1.52 and grid.flash_preference(16384, 4096) == 1.55
    assert grid.flash_preference(1000, 128) is None


def test_drawn_lengths_keep_the_limits():
    policy = EncodingPolicy(max_length=300, max_prompt_length=200)
    trees, text = lengths.load_trees("long_prompt", "byte", policy, vocab_size=50)
    assert len(trees) == lengths.DRAWN and "lognormal" in text
    assert max(len(t.prompt) for t in trees) <= 200
    assert max(len(t.prompt) + max(map(len, t.responses)) for t in trees) <= 300
    trim = EncodingPolicy(max_length=300, truncation="trim_prompt_left")
    with pytest.raises(ValueError, match="truncation='trim_prompt_left'"):
        lengths.load_trees("paper:hh", "byte", trim, vocab_size=50)
    with pytest.raises(ValueError, match="paper:hh, "):
        lengths.load_trees("paper:h", "byte", policy, vocab_size=50)


def test_a_representative_sample_shares_as_much_as_the_whole():
    trees = lengths.draw_trees(lengths.distributions()["paper:hh"], 1000, EncodingPolicy(), vocab_size=50)
    sample = lengths.representative(trees, 12)
    assert [tree.example_id for tree in sample] == list(range(12))
    assert summarize_lengths(sample).token_saving == pytest.approx(summarize_lengths(trees).token_saving, rel=0.03)
    with pytest.raises(ValueError, match="pairs=1001"):
        lengths.representative(trees, 1001)


@pytest.mark.slow
def test_grid(tmp_path):
    compared = grid.Grid(TINY, init(TINY, jax.random.key(0)), [(128, 64)])
    (cell,) = compared.measure(repeats=1)
    ideal = ideal_gains(TINY, trees_of((128, 64, 64)))
    assert cell["flash_preference"] == 1.13 and cell["s_flops"] == ideal.flops
    separate, shared = (cell["seconds"][name][0] for name in ("separate", "shared"))
    assert cell["s_time"] == pytest.approx(separate / shared)
    cells = [cell, cell | {"response": 32, "flash_preference": None}]
    assert "| 128 | 32 |" in compared.table(cells) and is_drawn(compared.plot(cells), tmp_path / "plot.png")


@pytest.mark.slow
def test_responses(training, tmp_path):
    compared = responses.Responses(trees_of(*[(24, *[4] * 6)] * 2), training, [4])
    (row,) = compared.measure(repeats=1)
    separate, shared = (cell["seconds"][0] for cell in row["cells"])
    assert row["s_time"] == pytest.approx(separate / shared)
    assert row["s_tokens"] == pytest.approx(4 * (6 + 1) / (6 + 4))  # K (r + 1) / (r + K): the first 4 of 6 responses
    assert 1 < row["s_flops"] < row["s_tokens"]
    assert row["efficiency"] == pytest.approx(row["s_time"] / row["s_flops"])
    rows = [row, row | {"responses": 8}]
    assert "| 8 |" in compared.table(rows) and is_drawn(compared.plot(rows), tmp_path / "plot.png")


def test_steps_of_a_file_hold_whole_rankings_dialogues_and_solutions(tmp_path):
    """Pairs of rankings with ties, of a dialogue's turns and of steps; nothing of a ranking without a better one."""
    say = lambda role, content: {"role": role, "content": content}
    chat = lambda k: [say("user", f"{k}, hi"), say("assistant", "Hello"), say("user", "Bye")]
    rows = [{"prompt": chat(k), "chosen": f"Bye {k}", "rejected": "No"} for k in range(3)]
    rows += [{"prompt": f"q{k}", "completions": ["a\nb", "c\nd", "e", "f"], "scores": [1, 0, 0, 0]} for k in (0, 1)]
    rows += [{"prompt": "none", "completions": ["a", "b", "c"], "scores": [1, 1, 1]}]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    what = ByteTokenizer(), EncodingPolicy(), 3, merging.VIEWS
    found = {case.view: case for case in merging.cases_of(str(tmp_path / "mixed.jsonl"), *what)}
    assert {view: len(case.pairs) for view, case in found.items()} == {
        **{"all pairs": 3, "every turn": 4, "every step": 3, "records": 3}
    }
    (ranking,) = found["all pairs"].rankings
    assert ranking.weight == pytest.approx(3 / 3) and len(merging.exploded(ranking)) == 3
    own = [dataclasses.replace(pair, example_id=i) for i, pair in enumerate(merging.exploded(ranking))]
    assert place(own, "merged", Branches(2)).shape.scored_length == total_work(own, "merged").scored  # each once
    same = {tree.prompt.tobytes() for tree in found["all pairs"].pairs}
    assert same == {ranking.prompt.tobytes()} and not found["every turn"].rankings
    assert [tree.example_id for tree in found["every turn"].pairs] == [0, 1, 2, 3]
    assert [len(own) for own in merging.together(found["every turn"].pairs)] == [2, 2]
    with pytest.raises(ValueError, match="pairs=99, but only 6 are there"):
        merging.cases_of(str(tmp_path / "mixed.jsonl"), *what[:2], 99, ["all pairs"])


SMALLEST = {
    "attention": ["--lengths=640", "--repeats=1"],
    "grid": ["--model=tiny", "--prompts=16", "--responses=8", "--repeats=1"],
    "responses": ["--model=tiny", "--responses=2", "--prompts=1", "--prompt_length=12", "--repeats=1"],
    "live_tiles": ["--lengths=640", "--seeds=1", "--repeats=1"],
    "merging": ["--data=gsm8k_like", "--model=tiny", "--pairs=6", "--repeats=1"],
    "remat": ["--model=tiny", "--prompts=1", "--repeats=1"],
    "preparing": ["--records=60", "--words=6", "--workers=1"],
    "tune_attention": ["--interpret=cuda", "--dtype=float32", "--rows=1", "--length=640", "--query_heads=2"]
    + ["--key_heads=1", "--width=32", "--repeats=1"],
}


def run_command(name, arguments, monkeypatch):
    """`python -m experiments.benchmarks.NAME`, in this process."""
    with as_program([name, *arguments], monkeypatch):
        if name == "tune_attention":  # every tile would take minutes
            monkeypatch.setattr(tune_attention, "candidates", lambda platform, current: [current])
            sweep.main(tune_attention.define_flags, tune_attention.declare)
        else:
            runpy.run_path(str(ROOT / f"experiments/benchmarks/{name}.py"), run_name="__main__")


def test_every_benchmark_that_the_docs_name_is_run_by_a_test():
    named = re.findall(r"-m experiments\.benchmarks\.(\w+)", (ROOT / "docs/benchmarks.md").read_text())
    assert set(named) == {*SMALLEST, "accelerator", "factors", "pipeline", "throughput", "trl"}


def shape_of(value):
    """Names and kinds at every depth of a result; of a list, those of its first entry."""
    if isinstance(value, dict):
        return {name: shape_of(part) for name, part in value.items()}
    return [shape_of(value[0])] if isinstance(value, list) else isinstance(value, str)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_command(name, tmp_path, monkeypatch):
    """Columns and result are made like those of the run that the docs keep, where they keep one."""
    run_command(name, [f"--output={tmp_path}", *SMALLEST[name]], monkeypatch)
    assert (tmp_path / "plot.png").stat().st_size > 5000
    kept = ROOT / "docs/benchmarks" / name
    if kept.exists():
        old, new = (json.loads((folder / "result.json").read_text()) for folder in (kept, tmp_path))
        assert shape_of(new) == shape_of(old)
        old, new = ((folder / "table.md").read_text().split("\n\n")[-1] for folder in (kept, tmp_path))
        assert new.splitlines()[:2] == old.splitlines()[:2]


def test_costs_of_calls_and_tiles_are_told_apart():
    """5 ms a call, 700 µs a tile of pairs and 630 a deep one: the interval of the ratio is narrow and holds it."""
    noise = itertools.cycle([0.1, -0.1, 0.05, -0.05])
    made = [
        {"kind": kind, "length": 9, "causal": 99, "depth": 2, "live": live, "cpu": 5 + tile * live + next(noise)}
        for kind, tile in (("pairs", 0.7), ("deep", 0.63))
        for live in (20, 30, 40, 50)
    ]
    line = live_tiles.fitted(made)
    assert line["call"] == pytest.approx(5, abs=0.3) and line["tile"]["deep"] == pytest.approx(630, abs=10)
    assert line["ratio"][0] == pytest.approx(0.9, abs=line["ratio"][1]) and 0 < line["ratio"][1] < 0.02
    assert line["live"] == {"pairs": "20-50", "deep": "20-50"}


def test_correlation_command(tmp_path, monkeypatch):
    """Both orders give the step the same pairs, as many at a time; units have more of a dialogue in it and take fewer
    tokens. Nothing is trained."""
    rows, seen = list(synthetic_trees.dialogues(World(), 24, turns=2)), []

    def step(state, rows):
        seen.append(rows.example_id[rows.example_id >= 0])
        return state, None

    monkeypatch.setattr(correlation, "sources", lambda *_: [("inn", ByteTokenizer(), rows, rows[:6])])
    monkeypatch.setattr(correlation.px, "make_train_step", lambda setup: step)
    monkeypatch.setattr(correlation, "Evaluator", lambda *_: lambda *_: {"reward_accuracy": len(seen), "loss": 0.5})
    sizes = ["--seeds=2", "--pairs=5", "--epochs=2", "--longest=128", "--readings=2"]
    with as_program(["correlation", "--data=unread", f"--output={tmp_path}", *sizes], monkeypatch):
        correlation.define_flags()
        start_command(correlation.main)
    result = json.loads((tmp_path / "result.json").read_text())
    by = {(row["order"], row["seed"]): row for row in result["rows"]}
    assert len(by) == 4 and (tmp_path / "plot.png").stat().st_size > 5000
    steps = iter(seen)
    given = {key: list(itertools.islice(steps, row["steps"])) for key, row in by.items()}
    assert not list(steps)
    for seed in (0, 1):
        (units, ours), (random, others) = ((by[order, seed], given[order, seed]) for order in ("units", "random"))
        assert [len(one) for one in ours] == [len(one) for one in others]
        assert sorted(np.concatenate(ours)) == sorted(np.concatenate(others)) == sorted([*range(units["pairs"])] * 2)
        assert units["tokens"] < random["tokens"] and 1 <= random["together"] < units["together"]
        assert [one["step"] for one in units["curve"]] == [len(ours) // 2, len(ours)]
    kept = json.loads((ROOT / "docs/benchmarks/correlation/result.json").read_text())
    assert shape_of(result) == shape_of(kept)
    table = sweep.table(correlation.COLUMNS, correlation.lines(kept["rows"]))
    assert table in (ROOT / "docs/trees.md").read_text()


@pytest.mark.slow
def test_pipeline_command(tmp_path):
    rng = np.random.default_rng(0)
    text = lambda: "".join(rng.choice(list("abc "), rng.integers(5, 40))).strip() + "."
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for _ in range(200):
            file.write(json.dumps({"prompt": text() + text(), "chosen": text(), "rejected": text()}) + "\n")
    options = ["--data=" + str(tmp_path / "*.jsonl"), f"--output={tmp_path / 'out'}", "--seconds=0.2"]
    command = [sys.executable, "-m", "experiments.benchmarks.pipeline", *options, "--tokens_per_step=2048"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    rows = json.loads((tmp_path / "out/result.json").read_text())["rows"]
    assert [row["layout"] for row in rows] == list(LAYOUTS) and {row["data"] for row in rows} == {"pairs"}
    fill = {row["layout"]: row["fill"] for row in rows}
    assert fill["pairs"] < 0.9 < fill["packed_pairs"] <= 1 and fill["shared"] < 0.9 < fill["shared_packed"] <= 1
    assert all(row["tokens_per_second"] > 0 and row["tokens_per_cpu_second"] > 0 for row in rows)
    assert is_drawn(pipeline.plot(rows), tmp_path / "plot.png")


@pytest.mark.slow
def test_throughput_command_on_a_file(tmp_path):
    line = {"prompt": "Who is there?", "chosen": "It is the innkeeper.", "rejected": "No."}
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line | {"prompt": "?" * n}) + "\n" for n in range(9, 30)))
    options = [f"--data={tmp_path / 'pairs.jsonl'}", f"--output={tmp_path / 'out'}", "--model=tiny", "--pairs=3"]
    options += ["--repeats=1", "--layouts=packed_pairs", "--layouts=shared_packed", "--references=live"]
    command = [sys.executable, "-m", "experiments.benchmarks.throughput", *options]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert "P + sum of branches, over trees" in done.stdout  # the statistics, with their definitions
    saved = json.loads((tmp_path / "out/result.json").read_text())
    assert [row["layout"] for row in saved["rows"]] == ["packed_pairs", "shared_packed"]
    assert saved["rows"][1]["efficiency"] == pytest.approx(saved["rows"][1]["s_time"] / saved["rows"][1]["s_flops"])
    assert "21 records of pairs.jsonl" in (tmp_path / "out/table.md").read_text()
