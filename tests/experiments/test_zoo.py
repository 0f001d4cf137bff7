"""One command for the whole zoo: objectives of every kind from one SFT stage, resumable, failures as rows."""

import json
import re

import pytest

from tests.experiments.test_commands import TINY, run

KINDS = {  # what each one reads that others do not
    "pl_dpo": "rankings4",
    "wpo": "pairs",
    "simpo": "pairs",
    "bco": "unpaired",
    "soft_ce": "graded",
    "two_d_dpo": "annotated",
    "dro": "rewarded",
}
OPTIONS = [*(option for option in TINY if "train.steps" not in option or "sft" in option), "--steps=4"]


def zoo(workdir, *objectives, options=(), check=True):
    return run("zoo", f"--workdir={workdir}", f"--objectives={','.join(objectives)}", *OPTIONS, *options, check=check)


def outcomes(workdir):
    return json.loads((workdir / "comparison.json").read_text())["outcomes"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("zoo")
    return workdir, zoo(workdir, *KINDS, "rationale_dpo")


@pytest.mark.slow
def test_every_kind_of_data_feeds_its_objective(finished):
    workdir, done = finished
    assert done.stdout.count("== SFT") == 1 and done.stdout.count("first step, compilation included") == 1 + len(KINDS)
    for name, kind in KINDS.items():
        assert list((workdir / "data").glob(f"synthetic-{kind}-train-*.jsonl")), kind
        assert (workdir / name / "report.md").read_text().startswith(f"# {name}")
    *rows, refused = outcomes(workdir)
    assert [row["objective"] for row in rows] == list(KINDS)
    for row in rows:
        assert not row["failure"] and row["gold_trained"]["count"] == 4 and row["kl"]["value"] == row["kl"]["value"]
        assert row["first_loss"] is not None and row["improves"] is (row["last_loss"] < row["first_loss"])
    to_go = re.findall(r"runs to go: (\d), about \d\d:\d\d at the pace of the (\d) before", done.stdout)
    assert to_go == [(str(7 - done_), str(done_)) for done_ in range(1, 8)], "what is refused is none to go"
    assert refused["failure"].startswith("refused: objective rationale_dpo scores a rationale")
    assert "| `pl_dpo` |" in done.stdout and (workdir / "frontier.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_page_about_the_whole_zoo(finished, tmp_path):
    workdir, _ = finished
    run("report", f"--runs={workdir}", f"--output={tmp_path}")
    text = (tmp_path / "overview.md").read_text()
    assert text.startswith(f"# {len(KINDS)} runs: ")
    for name in KINDS:
        assert f"| `{name}` | {name} | finished | 1 |" in text


@pytest.mark.slow
def test_what_is_finished_is_not_run_again_and_a_failure_is_a_row(finished):
    """Another learning rate makes a finished run a refusal, and a loss that overflows a row; the rest goes on."""
    workdir, _ = finished
    diverging = ["--config.optimizer.learning_rate=1e30", "--config.optimizer.clip_norm=0.0"]
    done = zoo(workdir, "simpo", "ipo", options=diverging, check=False)
    assert done.returncode == 1
    assert "first step" not in done.stdout.split("== ipo")[0]
    simpo, ipo = outcomes(workdir)
    assert "holds a run with another config" in simpo["failure"] and "learning_rate" in simpo["failure"]
    assert ipo["failure"].startswith("failed: NonFiniteLossError: step ")
    again = zoo(workdir, *KINDS)
    assert "first step" not in again.stdout
    assert [row["objective"] for row in outcomes(workdir)] == list(KINDS)
