"""The commands as a user runs them: their options, their errors, Ctrl-C, and real files by one flag."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from configs import quickstart
from experiments.config_flag import complete
from prefjax.losses import OBJECTIVES
from prefjax.options import deciding
from prefjax.state_files import read_lines
from prefjax.training.checkpoint import Checkpointer
from prefjax.training.config import defaults_before
from prefjax.training.runs import check_run, clear_run, open_run, record_config, run_config
from prefjax.training.stage import _say_continued
from tests import forked
from tests.compilation import QUICK
from tests.started import Started

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *("--config.model.num_layers=1", "--config.model.width=16", "--config.model.head_width=8"),
    *("--config.model.mlp_width=16", "--config.rows.tokens_per_step=2048"),
    *("--config.data.world.train_examples=64", "--config.data.world.eval_examples=16"),
    *("--config.sft.train.steps=3", "--config.train.steps=4", "--config.sampling.prompts=4"),
    *("--config.sampling.max_new_tokens=8", "--config.train.log_every=1", "--config.sft.train.log_every=1"),
    "--config.train.eval_samples=0",
]
# One device per process (eight simulated ones would only slow these small runs down), compiled quickly.
ENVIRONMENT = os.environ | {
    "XLA_FLAGS": QUICK,
    "JAX_PLATFORMS": "cpu",
    "PYTHONUNBUFFERED": "1",
}


def command(name, *options):
    return [sys.executable, "-m", f"experiments.{name}", *map(str, options)]


def python_m(words, folder, environment):
    """As users start it: what `forked.run` does is the same without the imports."""
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def run(name, *options, check=True, start=forked.run, **variables):
    done = start([f"experiments.{name}", *options], ROOT, ENVIRONMENT | variables)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def train(objective, workdir, *options, **how):
    return run("train", f"--config=configs/quickstart.py:{objective}", f"--workdir={workdir}", *TINY, *options, **how)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    options = ["--config.loss.beta=0.2", "--config.train.eval_samples=2"]
    return workdir, train("dpo", workdir, *options, start=python_m, **ALONE)


ALONE = {"JAX_COMPILATION_CACHE_DIR": ""}  # what it compiles goes to its own folder, as everybody's does


@pytest.mark.slow
def test_train_reports(finished):
    workdir, done = finished
    assert "report:" in done.stdout and (workdir / "plot.png").stat().st_size > 10_000
    result = json.loads((workdir / "result.json").read_text())
    assert result["config"]["loss.beta"] == 0.2
    assert "gold reward" in (workdir / "report.md").read_text()
    page = (workdir / "report.md").read_text()
    assert "--config.loss.beta=0.2" in page and "| prompt | step 0 | step 4 |" in page
    assert [row["step"] for row in read_lines(workdir / "samples.jsonl")] == [0, 0, 4, 4]
    assert all(f"## {split} data" in page and "fewer by sharing" in page for split in ("Training", "Held-out"))


@pytest.mark.slow
def test_the_same_command_again_only_reports(finished):
    workdir, _ = finished
    compiled = lambda: {path.name for path in (workdir / "compiled").glob("jit_eval_step*-cache")}
    before = compiled()
    done = train("dpo", workdir, "--config.loss.beta=0.2", **ALONE)
    assert "continuing from step 4" in done.stdout and "step 4/4" not in done.stdout
    assert before and compiled() == before, "a program was compiled again"


@pytest.mark.slow
def test_the_folder_describes_itself(finished):
    """What README.md names is there; run.json knows the command, and the stage before has its own."""
    workdir, _ = finished
    readme = (workdir / "README.md").read_text()
    for path in workdir.iterdir():
        known = f"`{path.name}" in readme or re.fullmatch(r"README\.md|code-\w+\.patch", path.name)
        assert known, f"README.md does not name {path.name}"
    for stage, objective in ((workdir, "dpo"), (workdir / "sft", "sft")):
        record = json.loads((stage / "run.json").read_text())
        assert record["objective"] == objective and "--config.loss.beta=0.2" in record["sessions"][0]["command"]
        assert record["sessions"][0]["outcome"] == "finished"
    assert "start loss" not in (workdir / "report.md").read_text().split("could be made")[1].split("## ")[0]


@pytest.mark.slow
def test_report_of_a_run_and_its_sft_stage(finished, tmp_path):
    workdir, _ = finished
    run("report", f"--runs={workdir},{workdir / 'sft'}", f"--output={tmp_path / 'page'}")
    text = (tmp_path / "page" / "overview.md").read_text()
    assert f"| `{workdir.name}` | dpo | finished |" in text and f"| `{workdir.name}/sft` | sft | finished |" in text


@pytest.mark.slow
def test_another_config_in_the_same_workdir_is_refused(finished):
    workdir, _ = finished
    done = train("dpo", workdir, "--config.loss.beta=0.3", check=False)
    assert done.returncode != 0 and "config.loss.beta: 0.2 there, 0.3 now" in done.stderr


@pytest.mark.slow
def test_evaluate(finished, tmp_path):
    workdir, _ = finished
    run("evaluate", f"--workdir={workdir}", f"--output={tmp_path / 'e.json'}")
    values = json.loads((tmp_path / "e.json").read_text())
    trained = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][-1]
    assert trained["split"] == "eval" and values["loss"] == pytest.approx(trained["loss"], rel=1e-4)
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "a", "chosen": "yes", "rejected": "no"}\n')
    run("evaluate", f"--workdir={workdir}", f"--data={other}", f"--output={tmp_path / 'new' / 'o.json'}")
    assert json.loads((tmp_path / "new" / "o.json").read_text())["prompts"] == 1


@pytest.mark.slow
def test_combine_a_run_with_its_sft_stage(finished, tmp_path):
    """All of the vector from SFT to the trained policy is the trained policy, as export writes it."""
    workdir, _ = finished
    vector = f"--vector=1 {workdir}"
    done = run("combine", f"--base={workdir / 'sft'}", vector, f"--output={tmp_path / 'combined'}")
    assert f"+1  {workdir}" in done.stdout
    run("export", f"--workdir={workdir}", f"--output={tmp_path / 'exported'}")
    combined, exported = (tmp_path / name for name in ("combined", "exported"))
    assert (combined / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    names = lambda folder: sorted(path.name for path in folder.iterdir())
    assert names(combined) == names(exported)


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_continue(tmp_path):
    workdir = tmp_path / "run"
    options = ["--config=configs/quickstart.py:dpo", f"--workdir={workdir}", *TINY, "--config.train.steps=100000"]
    with Started(command("train", *options), tmp_path / "said", cwd=ROOT, env=ENVIRONMENT) as started:
        started.until("step 5/100000")
        second = run("train", *options[:2], "--overwrite", check=False)
        assert f"is held by process {started.process.pid} on " in second.stderr and second.returncode == 1
        started.process.send_signal(signal.SIGTERM)
        assert started.ended() == 130, started.said[-2000:]
    assert "stopped, and saved. To continue:" in started.said and "--config.train.steps=100000" in started.said
    # The newest: while the second run was refused, this one may have saved on its way.
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert 5 <= step < 100_000
    refused = run("train", *options, "--overwrite", "--config.data.train=nowhere.jsonl", check=False)
    assert "nowhere.jsonl" in refused.stderr and (workdir / "checkpoints" / str(step)).is_dir(), "deleted before"
    with Started(command("train", *options), tmp_path / "said_again", cwd=ROOT, env=ENVIRONMENT) as started:
        started.until(f"continuing from step {step}")


def test_an_unknown_option_is_an_error_before_anything_is_made(tmp_path):
    """tests/experiments/test_mistakes.py has more of them, in one process."""
    done = train("dpo", tmp_path, "--config.loss.tau=0.1", check=False, start=python_m)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("error: ") and "tau" in done.stderr
    assert not list(tmp_path.iterdir())


def change(**changes):
    config = quickstart.get_config("dpo").unlock()
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = config
        for name in parents:
            place = place[name]
        place[last] = value
    return config


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(loss={"tau": 0.1}), "dpo takes no option 'tau'"),
        (dict(objective="ppo"), "no objective named 'ppo'"),
        (dict(model__vocabulary=3), "config.model.vocabulary is not an option: did you mean config.model.vocab_size?"),
        (
            dict(data__encoding__max_len=3),
            "max_len is not an option: did you mean config.data.encoding.max_length?",
        ),
        (dict(mesh={"data": "all"}), "config.mesh.data='all' must be of type int"),
        (dict(init_from="elsewhere"), "config.init_from and config.sft both say"),
        (dict(train={"steps": 3, "epochs": 1}), "set exactly one"),
        (dict(rows__prompts_per_step=8), "prompts_per_step=8 with batching='rows'"),
        (dict(rows__batching="prompts", rows__prompts_per_step=8, rows__window=9), "rows.window=9 is only read"),
        (dict(rows__mismatched="step"), "rows.mismatched has no effect: dpo reads no mismatched responses, as kto"),
        (
            dict(objective="kto", loss={}, rows__mismatched="step", reference__kind="precomputed"),
            "set reference.kind='live', or rows.mismatched='record'",
        ),
        (dict(reference__cache="x"), "reference.cache is only read"),
        (dict(data__normalize_targets=True), "data.normalize_targets has no effect: dpo reads no rewards"),
        (dict(data__format__ties="maybe"), "data.format.ties='maybe': choose one of drop, keep"),
        (dict(data__format__auxiliary_field="gold"), "auxiliary_field has no effect: dpo"),
        (dict(data__format__margin_field="gap"), "data.format.margin_field has no effect: dpo reads no margin"),
        (dict(data__format__spans_field="spans"), "data.format.spans_field has no effect: dpo reads no weights of"),
        (dict(objective="margin_dpo"), "objective margin_dpo needs margin, a required margin per pair"),
        (dict(objective="mmpo", loss={}), "objective mmpo reads the scores of a pair, and labels are 1 and 0 for all"),
        (dict(objective="soft_ce"), "set data.format.target_probability_field to its column"),
        (
            dict(objective="infonca", loss={}, data__normalize_targets=True),
            "infonca reads no rewards, but scores, which are left as they are",
        ),
        (dict(objective="rationale_dpo", loss={}), "scores a rationale after a context that shows the pair"),
    ],
)
def test_the_door_names_the_field(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        run_config(change(**changes).to_dict())


def test_a_shift_within_the_step_is_not_for_the_stage_before():
    run = run_config(change(objective="kto", loss={}, rows__mismatched="step").to_dict())
    assert (run.stage.rows.mismatched, run.find("sft").rows.mismatched) == ("step", "record")


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_preference_objective_has_a_quickstart_or_is_refused(name):
    """Whole runs of every kind: test_zoo.py."""
    if name in ("sft", "dft", "rationale_dpo"):
        with pytest.raises(ValueError, match="the stage before|scores a rationale"):
            run_config(quickstart.get_config(name).to_dict())
        return
    whole = complete(quickstart.get_config(name), "configs/quickstart.py").to_dict()
    objective, stage = OBJECTIVES[name], run_config(whole).stage
    assert set(stage.loss) == set(objective.options), "every option can be set by a flag"
    assert (stage.reference.kind == "live") == objective.requires.reference
    assert (stage.data.format.margin_field == "margin") == ("margin" in objective.requires.inputs)
    assert stage.data.normalize_targets == (objective.requires.reads == "rewards")


def test_the_quickstart_says_all_it_does_not_leave_to_defaults():
    assert set(quickstart.LOSS) | {*quickstart.REGRESSIONS, *quickstart.PER_TOKEN} <= set(OBJECTIVES)
    for name, options in quickstart.LOSS.items():
        OBJECTIVES[name].with_options(options)
    with pytest.raises(ValueError, match="no objective named 'ppo'; near it: "):
        quickstart.get_config("ppo")


def test_what_decides_may_not_change_once_a_stage_has_a_checkpoint(tmp_path):
    """A folder without one is free, and so are the stages after the one that has."""
    record_config(change(seed=3, loss__beta=7.0).to_dict(), tmp_path)
    run = run_config(change().to_dict())
    with contextlib.closing(
        Checkpointer(tmp_path / "sft" / "checkpoints", identity={"config": deciding(run.find("sft"))}, facts={})
    ) as checkpointer:
        checkpointer.save(1, {"params": jnp.zeros(1)}, {})
    record_config(
        change(train__log_every=3, sft__train__steps=999, mesh=dict(fsdp=4), loss__beta=7.0).to_dict(), tmp_path
    )
    assert json.loads((tmp_path / "config.json").read_text())["loss"] == {"beta": 7.0}
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=r"config.sft.seed: 0 there, 3 now\).* a new --workdir, or --overwrite"):
        record_config(change(seed=3).to_dict(), tmp_path)
    assert "seed" not in json.loads((tmp_path / "config.json").read_text())
    clear_run(run_config(change(seed=3).to_dict()), tmp_path)
    assert not (tmp_path / "sft" / "checkpoints").exists() and (tmp_path / "data").is_dir()
    record_config(change(seed=3).to_dict(), tmp_path)


def test_a_run_begun_before_an_option_was_there_has_its_default(tmp_path, capsys):
    now = dict(sft={}, loss__beta=0.1, optimizer__warmup_ratio=0.0)
    config = run_config(change(**now).to_dict()).stage
    older = deciding(config)
    del older["optimizer"]["warmup_ratio"], older["loss"]["beta"], older["lora"]
    checkpointer = Checkpointer(tmp_path / "checkpoints", identity={"config": older}, facts={"steps": 9})
    with checkpointer:
        checkpointer.save(1, {"params": jnp.zeros(1)}, {})
    record_config(change(**now).to_dict(), tmp_path)
    how = dict(identity={"config": deciding(config)}, facts={}, defaults={"config": defaults_before(config)})
    with Checkpointer(tmp_path / "checkpoints", **how) as checkpointer:
        proof = checkpointer.restore({"params": jnp.zeros(1)}).proof
    _say_continued(tmp_path, proof, config, 9)
    said = capsys.readouterr().out
    assert "was begun before these options were there, and has their defaults: lora={'rank': 0, " in said
    assert "loss.beta=0.1, " in said and said.endswith("optimizer.warmup_ratio=0.0\n")
    with pytest.raises(ValueError, match=r"\(config.optimizer.warmup_ratio: 0.0 there, 0.5 now\)"):
        record_config(change(**now | {"optimizer__warmup_ratio": 0.5}).to_dict(), tmp_path)


def test_options_that_a_later_version_recorded_are_refused_by_name(tmp_path):
    values = change(sft={}).to_dict()
    values["optimizer"]["momentums"] = 3
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"config.json: config.optimizer.momentums is not an option"):
        open_run(tmp_path)
    config = run_config(change(sft={}).to_dict()).stage
    later = deciding(config)
    later["optimizer"]["momentums"] = 3
    with Checkpointer(tmp_path / "checkpoints", identity={"config": later}, facts={"steps": 9}) as checkpointer:
        checkpointer.save(1, {"params": jnp.zeros(1)}, {})
    with pytest.raises(ValueError, match=r"\(config.optimizer.momentums: 3 there, None now\)"):
        record_config(change(sft={}).to_dict(), tmp_path)


def test_what_can_be_refused_is_before_anything_is_deleted(tmp_path):
    """The data of every stage and the model to start from; tests of commands have one that would delete."""
    world = dict(data__world__train_examples=8, data__world__eval_examples=8, data__directory=str(tmp_path))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"objective": "sft"}')
    for changes, message in (
        (dict(data__train="nowhere.jsonl"), "nowhere.jsonl"),
        (world | dict(sft={}, init_from=str(tmp_path / "broken")), "no checkpoints in .*broken"),
        (
            world | dict(reference={"kind": "live", "init_from": "nowhere"}),
            "reference.init_from='nowhere' is neither",
        ),
    ):
        with pytest.raises((ValueError, OSError, ImportError), match=message):
            check_run(run_config(change(**changes).to_dict()), tmp_path / "run")


def test_overwriting_spares_what_the_run_starts_from_and_folders_that_hold_no_run(tmp_path):
    other = run_config(change(sft={}, init_from=str(tmp_path / "sft")).to_dict())
    with pytest.raises(ValueError, match="--overwrite would delete .*sft, which the run starts from"):
        clear_run(other, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    clear_run(run_config(change().to_dict()), tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    clear_run(run_config(change().to_dict()), tmp_path)
    assert (tmp_path / "checkpoints").exists() and (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_prepare_says_what_happened(tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(40)]
    rows += [{"prompt": "same", "chosen": "x", "rejected": "x"}, {"prompt": "empty", "chosen": "", "rejected": "x"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [
        "--config=configs/quickstart.py:dpo",
        f"--config.data.train={file}",
        f"--workdir={tmp_path}",
        "--preview=1",
    ]
    done = run("prepare", *options)
    for said in (
        "identical_responses",
        "empty_response",
        "mine.jsonl:41",
        "fewer by sharing",
        "shared_packed:",
        "fill",
        "example 0, ",
        "[[yes 0<eos>]]",
    ):
        assert said in done.stdout, said
    (manifest,) = tmp_path.glob("data/train-*/manifest.json")
    assert json.loads(manifest.read_text())["account"]["read"]["dropped"]
    again = run("prepare", *options)
    assert again.stdout == done.stdout, "found again, not made again"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,objective,dropped",
    [
        ("hh_harmless_base_test", "dpo", "empty_response"),
        ("kto_en_demo", "kto", "sequence_too_long"),
        ("oasst_en100_ranked", "dpo", "sequence_too_long"),
    ],
)
def test_real_files_by_one_flag(name, objective, dropped, real_data, tmp_path):
    """Pairs, unpaired labels, rankings as pairs: the quickstart's command with one more option."""
    small = ["--config.sampling.prompts=0"]
    if name.startswith("hh"):
        small.append("--config.data.holdout=0.01")  # evaluating would be most of the time
    done = train(objective, tmp_path, f"--config.data.train={real_data / name}.jsonl.gz", *small)
    assert dropped in done.stdout and "report:" in done.stdout
    assert f"{name}.jsonl.gz" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_a_reward_model_is_trained_evaluated_and_used(tmp_path):
    """Its report has rewards in place of samples; a file is scored by it, decomposed, and it is exported."""
    workdir = tmp_path / "run"
    done = train("bt", workdir)
    assert "report:" in done.stdout and "kl" not in done.stdout
    report, result = (workdir / "report.md").read_text(), json.loads((workdir / "result.json").read_text())
    assert "judges responses and samples none" in report and "correlation with the gold reward" in report
    assert -1 <= result["gold_correlation"] <= 1 and result["kl"] is None and "chosen_reward" in result["final"]["eval"]
    run("evaluate", f"--workdir={workdir}")
    values = json.loads((workdir / "evaluation.json").read_text())
    assert values["reward_accuracy"] == pytest.approx(result["final"]["eval"]["reward_accuracy"], abs=1e-6)

    rows = [{"prompt": "a knock", "chosen": "yes", "rejected": f"no {i}"} for i in range(8)]
    rows += [{"prompt": "a knock", "completions": ["a", "b", "c"], "scores": [1, 2, 3]}]
    rows += [{"prompt": "p", "completion": "q"}]
    file, scored, heads = tmp_path / "mine.jsonl", tmp_path / "scored.jsonl", tmp_path / "heads"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("annotate", f"--workdir={workdir}", f"--data={file}", f"--output={scored}")
    written = [json.loads(line) for line in scored.read_text().splitlines()]
    assert set(written[0]) == {"prompt", "chosen", "rejected", "score_chosen", "score_rejected"}
    chosen = [row["score_chosen"] for row in written[:8]]
    assert max(chosen) - min(chosen) < 1e-4 and len({row["score_rejected"] for row in written[:8]}) == 8
    assert len(set(written[8]["scores"])) == 3 and written[8]["scores"] != [1, 2, 3] and "reward" in written[9]
    prompts, samples = tmp_path / "prompts.jsonl", tmp_path / "samples.jsonl"
    prompts.write_text('{"prompt": "a knock"}\n{"prompt": "rain"}\n')
    best = ["--best_of=2", "--max_new_tokens=8", f"--scorer=reward:{workdir}"]
    run("generate", f"--model={workdir}/sft", f"--prompts={prompts}", f"--output={samples}", *best)
    run("annotate", f"--workdir={workdir}", f"--data={samples}", f"--output={tmp_path}/again.jsonl")
    again = [json.loads(line)["scores"] for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    for row, expected in zip(map(json.loads, samples.read_text().splitlines()), again, strict=True):
        assert row["scores"] == pytest.approx(expected, abs=1e-5) and row["best"] == expected.index(max(expected))
    run("decompose", f"--workdir={workdir}", f"--data={file}", f"--eval={file}", "--count=2", f"--output={heads}")
    assert len(json.loads((heads / "heads.json").read_text())["accuracies"]) == 2
    run("export", f"--workdir={workdir}", f"--output={tmp_path}/out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
