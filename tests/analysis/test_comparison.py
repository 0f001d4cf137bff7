"""Runs side by side: what is read back from a run, what the table says, and that no name hides another."""

import dataclasses
import json

import numpy as np
import pytest

from prefjax.analysis import Mean, Outcome, Share, read_outcome, write_comparison, write_report
from prefjax.analysis.comparison import comparison_table, frontier_figure
from tests.analysis.test_report import METRICS, RESULTS

DPO = Outcome(
    "dpo",
    "pairwise",
    first_loss=0.69,
    last_loss=0.31,
    gold_start=Mean(0.5, 0.1, 40),
    gold_trained=Mean(1.5, 0.2, 40),
    win_rate=Share(0.75, 0.3, 0.95, 40),
    kl=Mean(1.0, 0.1, 40),
    accuracy=Share(0.9, 0.8, 0.95, 200),
)
WORSE = dataclasses.replace(DPO, objective="cal_dpo", family="sided", last_loss=0.7)
FAILED = Outcome("rdpo", "graded", failure="failed: NonFiniteLossError: step 3: a|b")


def test_an_outcome_is_read_from_what_the_run_wrote(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_outcome(tmp_path, "pairwise")
    write_report(tmp_path, RESULTS)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in METRICS))
    outcome = read_outcome(tmp_path, "pairwise")
    assert (outcome.objective, outcome.first_loss, outcome.last_loss) == ("dpo", 0.69, 0.31)
    assert outcome.improves and outcome.kl.value == pytest.approx(2.0) and outcome.accuracy.count == 200
    assert (outcome.gold_start.value, outcome.gold_trained.value) == pytest.approx((-1.5125, 0.9875))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(METRICS[0]) + "\n")
    assert read_outcome(tmp_path, "pairwise").improves is None, "one logged loss says nothing of a change"


def test_the_table_says_what_failed_and_what_did_not_improve():
    header, rule, dpo, worse, failed = comparison_table([DPO, WORSE, FAILED]).splitlines()
    shares = "75.0% (30.0% to 95.0%) | 1.00 ± 0.10 | 90.0% (80.0% to 95.0%)"
    assert dpo == f"| `dpo` | 0.50 → 1.50 ± 0.20 | {shares} | 0.690 → 0.310 | yes |"
    assert worse.endswith("| 0.690 → 0.700 | **no** |")
    assert failed == "| `rdpo` | failed: NonFiniteLossError: step 3: a\\|b |  |  |  |  |  |"
    assert {line.replace("\\|", "").count("|") for line in (header, rule, dpo, worse, failed)} == {8}
    unmeasured = comparison_table([Outcome("dpo", "pairwise")]).splitlines()[-1]
    assert unmeasured.count("not measured") == 5


def test_the_comparison_has_a_plot_where_there_is_something_to_draw(tmp_path):
    path = write_comparison(tmp_path / "new", [DPO, WORSE, FAILED], "python -m x")
    text = path.read_text()
    assert "# 3 objectives: 1 lower their own training loss, 1 has no result" in text and "frontier.png" in text
    assert (tmp_path / "new" / "frontier.png").stat().st_size > 10_000
    dpo, worse, failed = json.loads((tmp_path / "new" / "comparison.json").read_text())["outcomes"]
    assert (dpo["improves"], worse["improves"], failed["improves"]) == (True, False, None)
    assert dpo["kl"] == {"value": 1.0, "standard_error": 0.1, "count": 40}
    assert "frontier.png" not in write_comparison(tmp_path / "none", [FAILED], "x").read_text()
    with pytest.raises(ValueError, match="leave out the others"):
        frontier_figure([FAILED])


def test_no_name_stands_on_another():
    rng = np.random.default_rng(0)
    outcomes = [
        dataclasses.replace(
            DPO, objective=f"objective_{i}", family=f"family {i % 8}", kl=Mean(x, 0.05, 9), gold_trained=Mean(y, 0.1, 9)
        )
        for i, (x, y) in enumerate(rng.uniform(0, [2, 2], (40, 2)))
    ]
    figure = frontier_figure(outcomes)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for axis in figure.axes for text in axis.texts]
    assert len(boxes) == 40 and len(figure.axes) == 9
    shrunk = [box.shrunk(0.95, 0.7) for box in boxes]  # what the font leaves free around the letters may touch
    assert not [1 for i, a in enumerate(shrunk) for b in shrunk[:i] if a.overlaps(b)]


def test_a_failed_run_does_not_press_the_others_together():
    failed = dataclasses.replace(DPO, objective="bco", kl=Mean(70.0, 1.0, 40), gold_trained=Mean(-400.0, 1.0, 40))
    figure = frontier_figure([DPO, WORSE, failed])
    assert figure.axes[0].get_ylim()[0] > -1 and figure.axes[0].get_xlim()[1] < 70
    assert figure.get_suptitle() == "Far below, and not drawn: bco −400.00 at 70.00 nats"
    assert "bco" not in [text.get_text() for axis in figure.axes for text in axis.texts]


def test_a_distance_of_nothing_has_a_place_on_the_logarithmic_axis():
    still = dataclasses.replace(DPO, objective="still", kl=Mean(-0.02, 0.05, 40))
    axis = frontier_figure([DPO, still]).axes[0]
    assert axis.get_xlim()[0] <= 0.01
