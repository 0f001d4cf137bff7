"""Runs read from folders in every state, seeds grouped, and the page about them."""

import json

import numpy as np
import pytest

from prefjax.analysis import find_runs, group_by_seed, read_run, write_overview
from prefjax.analysis.runs import differences
from tests.analysis.synthetic_runs import CONFIG, SAMPLED, START, metrics, session, write

IPO = CONFIG | {"objective": "ipo", "loss": {"tau": 0.1}}
RESULT = SAMPLED | {"objective": "dpo", "gold_trained": {"value": 2.0, "standard_error": 0.1, "count": 100}}


def page(directory, *folders):
    path = write_overview(directory, [read_run(folder) for folder in folders])
    image = (directory / "overview.png").read_bytes()
    assert image[:8] == b"\x89PNG\r\n\x1a\n" and len(image) > 20_000
    return path.read_text(), json.loads((directory / "overview.json").read_text())


def row(text, start):
    [line] = [line for line in text.splitlines() if line.startswith(f"| `{start}` |")][:1]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_finished_run_on_a_page(tmp_path):
    record = {"steps": 200, "start_check": START, "data": {}, "sessions": [session(100, "stopped"), session()]}
    text, facts = page(tmp_path / "out", write(tmp_path / "a", record=record, result=RESULT))
    assert text.startswith("# a: nothing odd\n")
    assert row(text, "a") == [
        *("`a`", "200", "0.4100", "80.0% (76.3% to 83.3%)", "3.00", "−0.50", "−3.50", "3.00 ± 0.50", "2.00 ± 0.10"),
        *(f"{2 + np.sin(200):.3g}", "1000"),
    ]
    assert "`a`: nothing odd. 24 of 24 checks could be made." in text
    assert "| `a` | dpo | finished | 2 | abc1234567 and changes | 8 x cpu |" in text
    assert "## What differs" not in text and "## Seeds" not in text
    [run] = facts["runs"]
    assert (
        run["final"]["KL"] == SAMPLED["kl"] and run["status"] == "finished" and run["odd"] == {} and run["step"] == 200
    )


def test_unfinished_and_bare_runs(tmp_path):
    """Killed in the middle; stopped by an error; nothing but metrics; one line and one that was cut off."""
    killed = {"steps": 200, "sessions": [session(None, None)]}
    failed = {"steps": 200, "sessions": [session(None, "NonFiniteLossError: step 130: loss not finite")]}
    folders = [
        write(tmp_path / "killed", metrics(120), record=killed),
        write(tmp_path / "failed", metrics(120), config=IPO, record=failed),
        write(tmp_path / "bare", metrics(), config=None),
        write(tmp_path / "young", metrics(10), config=None),
    ]
    with (folders[-1] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "spl')
    text, facts = page(tmp_path / "out", *folders)
    assert "| `killed` | dpo | step 120 of 200, running or killed | 1 |" in text
    assert "| `failed` | ipo | step 120 of 200, NonFiniteLossError: step 130: loss not finite | 1 |" in text
    assert "| `bare` | unknown | step 200 |" in text and "| `young` | unknown | step 10 |" in text
    assert "Options not known: `bare`, `young`" in text and "Losses of two objectives cannot be compared." in text
    assert "held-out where there is a held-out set, else training values" in text  # the young one has none yet
    assert row(text, "young")[2] == "0.6750"
    assert facts["groups"] == [["killed"], ["failed"], ["bare"], ["young"]]


def test_runs_that_differ_only_in_their_seed_are_one_row_and_one_band(tmp_path):
    """Cadence and folders of caches change no number; an option of the objective does."""
    seeds = [
        write(
            tmp_path / f"s{seed}",
            metrics(shift=0.01 * seed),
            config=CONFIG
            | {"seed": seed, "train": {"steps": 200, "log_every": 10 + seed, "writers": ["wandb"][:seed]}},
        )
        for seed in (0, 1, 2)
    ]
    text, facts = page(tmp_path / "out", *seeds, write(tmp_path / "ipo", config=IPO))
    assert facts["groups"] == [["s0", "s1", "s2"], ["ipo"]]
    loss, accuracy = row(text, "s0 and 2 more seeds")[2:4]
    assert loss == "0.4200 ± 0.0100" and accuracy == "80.0% ± 0.0%"
    assert "| `s0 and 2 more seeds` | `s0` (0), `s1` (1), `s2` (2) |" in text
    assert "mean ± standard deviation over the seeds" in text
    assert "| `objective` | `dpo` | `ipo` |" in text and "| `loss.tau` |  | `0.1` |" in text
    assert "| `seed` |" not in text and "log_every" not in text.split("## The runs")[0]

    [group, _] = group_by_seed([read_run(folder) for folder in [*seeds, tmp_path / "ipo"]])
    steps, mean, deviation = group.curve("loss", "eval")
    assert steps.tolist() == [50, 100, 150, 200]
    np.testing.assert_allclose(mean, 0.72 - 0.3 * steps / 200)
    np.testing.assert_allclose(deviation, 0.01)


def test_seeds_of_different_lengths_are_compared_where_all_have_values(tmp_path):
    folders = [write(tmp_path / "a"), write(tmp_path / "b", metrics(100), config=CONFIG | {"seed": 1})]
    [group] = group_by_seed([read_run(folder) for folder in folders])
    assert group.curve("loss", "train")[0].tolist() == list(range(10, 101, 10))


def test_options_come_from_run_json_where_there_is_no_config(tmp_path):
    record = {"config": {"objective": "sft", "loss": {}, "train": {"steps": 200}}, "sessions": []}
    runs = [read_run(write(tmp_path / "sft", config=None, record=record)), read_run(write(tmp_path / "a"))]
    assert runs[0].objective == "sft" and runs[0].status == "finished"
    assert ("objective", ["sft", "dpo"]) in differences(group_by_seed(runs))


def test_folders_of_runs_are_opened(tmp_path):
    zoo = tmp_path / "zoo"
    for name in ("ipo", "dpo", "sft"):
        write(zoo / name)
    (zoo / "data").mkdir()
    assert find_runs([zoo]) == [zoo / "dpo", zoo / "ipo"]
    assert find_runs([zoo / "sft", zoo / "dpo"]) == [zoo / "sft", zoo / "dpo"]
    with pytest.raises(ValueError, match="dpo is given twice"):
        find_runs([zoo, zoo / "ipo" / ".." / "dpo"])
    with pytest.raises(ValueError, match="data holds no metrics.jsonl, nor do the folders in it"):
        find_runs([zoo / "data"])


def test_many_runs_have_a_page_too(tmp_path):
    folders = [write(tmp_path / f"{i:02}", metrics(100), config=CONFIG | {"loss": {"beta": i}}) for i in range(30)]
    text, facts = page(tmp_path / "out", *folders)
    assert text.startswith("# 30 runs: nothing odd") and len(facts["groups"]) == 30


def test_nothing_logged_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no run has logged a known metric yet"):
        write_overview(tmp_path / "out", [read_run(write(tmp_path / "a", []))])
    with pytest.raises(ValueError, match="at least one run"):
        write_overview(tmp_path / "out", [])
    assert not (tmp_path / "out").exists()
