"""The command that scores the reference ahead, and what data methods make of its file."""

import gzip
import json

import pytest

from prefjax.data.account import Account
from prefjax.data.methods.sequences import apply_methods, columns_of, parse_methods
from prefjax.data.readers import read_records
from tests.experiments.test_commands import ENVIRONMENT, ROOT, TINY, run
from tests.one_process import OneProcess

CONFIG = ("--config=configs/quickstart.py:dpo", *TINY, "--config.sampling.prompts=0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on scores that its own start wrote, and the same scores by the command, of both its ends."""
    workdir = tmp_path_factory.mktemp("score") / "run"
    options = (*CONFIG, f"--workdir={workdir}")
    early = run("score", *options, check=False)
    run("train", *options, "--config.reference.kind=precomputed")
    before = sorted(path.name for path in (workdir / "reference").rglob("*.*"))
    output = workdir / "scores.jsonl.gz"
    done = run("score", *options, f"--policy={workdir}", f"--output={output}")
    return workdir, early, before, done, output


@pytest.mark.slow
def test_a_reference_that_is_not_trained_yet_is_no_reference(trained):
    _, early, *_ = trained
    assert early.returncode != 0 and "holds no finished SFT stage" in early.stderr


@pytest.mark.slow
def test_training_and_the_command_share_scores(trained):
    workdir, _, before, done, _ = trained
    (reference,) = {path.parent for path in (workdir / "reference").rglob("part-*") if path.name in before}
    assert sorted(path.name for path in reference.iterdir()) == before, "the reference was scored again"
    assert len(list((workdir / "reference").iterdir())) == 2, "the policy's scores lie beside it"
    assert "[train] 128 reference log-probs of 64 prompts" in done.stdout


@pytest.mark.slow
def test_the_score_file_is_what_data_methods_read(trained):
    workdir, *_, output = trained
    with gzip.open(output, "rt") as file:
        rows = [json.loads(line) for line in file]
    assert [row["split"] for row in rows] == ["train"] * 64 + ["eval"] * 16
    for row in rows:
        assert row["length"] == [len(row[name]) + 1 for name in ("chosen", "rejected")], "bytes and EOS"
        gap = [p - r for p, r in zip(row["policy_logp"], row["reference_logp"], strict=True)]
        assert row["implicit_reward"] == pytest.approx(gap, abs=2e-5)
    (data,) = workdir.glob("data/synthetic-pairs-train-*.jsonl")
    steps = parse_methods(
        f"join(file={str(output)!r}, columns=('loss',)) | "
        f"join(file={str(output)!r}, columns=('reference_logp', 'policy_logp'), per='response') | "
        "self_label(policy='policy_logp', reference='reference_logp') | easiest(by='loss')"
    )
    records, _ = read_records(data, more=columns_of(steps), progress=False)
    kept = list(apply_methods(records, steps, Account()))
    losses = [record.columns["loss"] for record in kept]
    assert len(kept) == 32 and losses == sorted(losses)
    assert losses == pytest.approx(sorted(row["loss"] for row in rows[:64])[:32])


def test_options_without_effect_are_errors(tmp_path):
    with OneProcess(tmp_path, ENVIRONMENT) as commands:
        for name, options, message in (
            ("simpo", (), "objective simpo reads no reference"),
            ("dpo", ("--policy=x",), "--policy is read with --output only"),
            ("dpo", ("--output=x.csv",), "--output=x.csv must end in .jsonl or .jsonl.gz"),
        ):
            config = f"--config={ROOT}/configs/quickstart.py:{name}"
            done = commands.run(["experiments.score", f"--workdir={tmp_path}", config, *options])
            assert done.returncode and message in done.stdout
