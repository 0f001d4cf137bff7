"""The report says what the numbers are, in all variants: with gold reward, without, without samples."""

import dataclasses
import json
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from prefjax.analysis import Gold, RunResults, Samples, style, summarize, write_report
from prefjax.analysis.plots import run_figure

METRICS = [
    {"step": 10, "split": "train", "loss": 0.69, "reward_accuracy": 0.5, "margin": 0.1},
    {"step": 20, "split": "train", "loss": 0.31, "reward_accuracy": 0.9, "margin": 4.0},
    {"step": 20, "split": "eval", "loss": 0.35, "reward_accuracy": 0.875, "margin": 3.5},
]
CURVES = ("chosen_logp_change", "rejected_logp_change")

SAMPLES = Samples(
    prompts=["Snow. A muddy seal knocks.\n", "Sun. A wise moth knocks.\n", "Ice. A shy bear knocks.\n", "a|b *c*\nd"],
    reference=["Hmph. Iced nut pie.", "Go away. Hot nut tea.", "Come in! Hot honey tea.", ""],
    policy=["Welcome, seal! Hot fish pie.", "Come in! Iced honey tea.", "Come in! Hot honey pie.", "x" * 1000],
    policy_logp=np.array([-2.0, -3.0, -1.0, -2.0]),
    policy_reference_logp=np.array([-5.0, -5.0, -2.0, -4.0]),
    gold=Gold(np.array([-2.05, -2.45, 2.45, -4.0]), np.array([3.05, 2.45, 2.45, -4.0]), floor=-4.0, ceiling=3.05),
    unfinished=1,
)
RESULTS = RunResults(
    objective="dpo",
    start="SFT",
    data="the synthetic inn",
    command="python -m experiments.train --workdir=runs/a",
    config={"loss.beta": 0.1},
    machine={"cpus": 2, "jax": "0.10.2"},
    seconds={"SFT": 60.0, "dpo": 80.5},
    metrics=METRICS + [row | {name: -1.5 for name in CURVES} for row in METRICS[1:]],
    heldout_pairs=200,
    samples=SAMPLES,
)


def test_few_samples_are_dots_and_many_are_bars():
    """A bar for each of four samples says nothing; what a plot shows stands in its file and beside it in words."""
    few = run_figure(RESULTS, summarize(RESULTS)).axes
    assert not few[0].patches and not few[3].patches and not len(few[3].get_yticks())
    assert sorted(x for line in few[0].lines[:4:2] for x in line.get_xdata()) == sorted(
        [*SAMPLES.gold.reference, *SAMPLES.gold.policy]
    )
    columns = dataclasses.asdict(SAMPLES) | {"gold": None}
    many = Samples(
        **{
            name: np.tile(v, 10) if name.endswith("logp") else v * 10 if isinstance(v, list) else v
            for name, v in columns.items()
        }
    )
    results = dataclasses.replace(RESULTS, samples=many)
    distance = next(
        axis for axis in run_figure(results, summarize(results)).axes if "nats from SFT" in axis.get_title("left")
    )
    assert len(distance.patches) == 24


def test_a_plot_says_in_words_what_it_shows(tmp_path):
    figure, (axis,) = style.panels(3, 2)
    style.title(axis, "Loss falls [slowly]")
    axis.set(xlabel="step", ylabel="loss")
    axis.plot([0, 1], [1, 0], label="train")
    axis.legend()
    with matplotlib.rc_context({"savefig.facecolor": "black", "axes.facecolor": "black"}):
        said = style.save(figure, tmp_path / "a.png")
    assert said == "![Loss falls (slowly): loss over step. Drawn: train](a.png)"
    stored = matplotlib.image.imread(tmp_path / "a.png")
    assert b"Loss falls (slowly): loss over step. Drawn: train" in (tmp_path / "a.png").read_bytes()
    assert (stored[0, 0] == 1).all(), "on white, whatever a dark page's own settings say"


def _no_gold():
    return dataclasses.replace(RESULTS, samples=dataclasses.replace(SAMPLES, gold=None, unfinished=0))


def test_summary():
    summary = summarize(RESULTS)
    assert summary.gold_start.value == pytest.approx(-1.5125)
    assert summary.gold_trained.value == pytest.approx(0.9875)
    assert summary.win_rate.value == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)
    assert summary.kl.value == pytest.approx(2.0)
    assert (summary.accuracy.value, summary.accuracy.count) == (0.875, 200)
    assert (summary.garbled_start, summary.garbled_trained) == (0.25, 0.25)


def test_report_with_gold_reward(tmp_path):
    path = write_report(tmp_path / "new" / "folder", RESULTS)
    text = path.read_text()
    for line in (
        "# dpo: gold reward −1.51 → 0.99, wins 75% against SFT (only 4 samples)",
        "python -m experiments.train --workdir=runs/a",
        "| gold reward of SFT | −1.51 (4: too few for ±) | mean ± standard error |",
        "| gold reward of the trained model | 0.99 (4: too few for ±) | the same; the best possible is 3.05 |",
        "| malformed samples | 25.0% → 25.0% | SFT → trained; share at the gold floor |",
        "1 of the trained model's samples hit the token limit",
        "Evenly spaced over the 4 prompts, not selected by outcome.",
        "| Snow. A muddy seal knocks. | Hmph. Iced nut pie. **−2.05** | Welcome, seal! Hot fish pie. **3.05** |",
        "| `loss` | 0.310 | 0.350 |",
        "| total | 140.5 s |",
        "| cpus | 2 |",
        "| `loss.beta` | `0.1` |",
        "![Gold reward rises from −1.51 to 0.99: 4 samples over gold reward of a sample (dashed: mean)",
    ):
        assert line in text, line
    assert "| win rate against SFT | 75.0% (4: too few for an interval) |" in text
    assert "| KL | 2.00 (4: too few for ±) nats | KL(trained ‖ SFT)" in text
    assert "| reward accuracy | 87.5% (" in text
    assert (path.parent / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_texts_cannot_break_the_table(tmp_path):
    """Pipes, line breaks and Markdown are shown, not obeyed; long and empty texts are recognisable."""
    text = write_report(tmp_path, RESULTS).read_text()
    [row] = [line for line in text.splitlines() if line.startswith(r"| a\|b \*c\*<br>d |")]
    assert "| (empty) **−4.00** |" in row
    assert " … " in row and len(row) < 400


def test_report_without_gold_reward(tmp_path):
    text = write_report(tmp_path, _no_gold()).read_text()
    assert text.startswith("# dpo: held-out reward accuracy 87.5%\n")
    assert "This data has no gold reward, so there is none here and no win rate" in text
    assert "| KL | 2.00 (4: too few for ±) nats" in text
    assert "| prompt | SFT | trained |" in text
    assert "| gold reward" not in text and "| win rate" not in text and "**" not in text
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["gold_start"] is None and result["win_rate"] is None
    assert "gold_start" not in result["examples"][0]


def test_report_without_samples_and_pairs(tmp_path):
    metrics = [{"step": 5, "split": "train", "loss": 0.4}]
    bare = dataclasses.replace(RESULTS, samples=None, heldout_pairs=0, metrics=metrics)
    text = write_report(tmp_path, bare).read_text()
    assert "No responses were sampled, so there is no gold reward, win rate or KL estimate." in text
    assert "There are no held-out pairs, so there is no reward accuracy." in text
    assert "## Samples" not in text and "| KL |" not in text
    assert (tmp_path / "plot.png").exists()
    with pytest.raises(ValueError, match="nothing to draw"):
        write_report(tmp_path, dataclasses.replace(bare, metrics=[]))


def test_result_json_is_strict_json_with_the_same_numbers(tmp_path):
    odd = dataclasses.replace(RESULTS, config={"rate": float("nan"), "n": np.int64(3), "names": ("a", "b")})
    write_report(tmp_path, odd)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    result = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)
    assert result["config"] == {"rate": None, "n": 3, "names": ["a", "b"]}
    assert result["win_rate"]["value"] == 0.75 and result["kl"]["value"] == pytest.approx(2.0)
    assert result["final"]["eval"]["loss"] == 0.35
    assert result["examples"][0] == {
        "prompt": "Snow. A muddy seal knocks.\n",
        "start": "Hmph. Iced nut pie.",
        "trained": "Welcome, seal! Hot fish pie.",
        "gold_start": -2.05,
        "gold_trained": 3.05,
    }


def test_mismatched_samples_are_refused():
    with pytest.raises(ValueError, match=r"samples\.reference has 3 entries for 4 prompts"):
        dataclasses.replace(SAMPLES, reference=SAMPLES.reference[:3])


def test_the_room_does_not_import_jax():
    code = "import sys, prefjax.analysis; assert not {'jax', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
