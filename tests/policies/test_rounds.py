"""Rounds: what each is made of, that every phase goes on where it was killed, with equal results, and refusals."""

import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import rounds as config_file
from experiments.config_flag import complete
from prefjax.data import curation
from prefjax.data.config import SYNTHETIC
from prefjax.data.prepare import prepare
from prefjax.data.tokenizers import ByteTokenizer
from prefjax.models import ModelConfig, init
from prefjax.options import merged
from prefjax.policies import annotate, generate, rounds
from prefjax.policies.round_measures import asked
from prefjax.policies.rounds import (
    CHOSEN,
    SAMPLES,
    SCORED,
    Phases,
    RoundsConfig,
    Stopped,
    rounds_of,
    run_rounds,
    sha256,
)
from prefjax.policies.rounds_page import write_page
from prefjax.training import greedy_samples
from prefjax.training.config import objective_of
from prefjax.training.mesh import MeshConfig, make_mesh, parameter_shardings
from prefjax.training.parameters import Policy
from prefjax.training.runs import SamplingConfig, run_config

HERE = "tests.policies.test_rounds"
TINY = {
    "model": dict(num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_width=8, mlp_width=16),
    "rows": dict(tokens_per_step=1024),
    "sampling": dict(prompts=4, max_new_tokens=4),
    "rounds": dict(scorer=f"{HERE}:letters", samples=4, batch=8, max_new_tokens=4),
}
SECTIONS = {"sampling": SamplingConfig, "rounds": RoundsConfig}


def letters(prompt, completions):
    """A scorer to which every text is worth something else."""
    return [sum((k + 1) * ord(letter) for k, letter in enumerate(text)) for text in completions]


def values(**changes):
    whole = complete(config_file.get_config("dpo,smoke"), "configs/rounds.py", sections=SECTIONS).to_dict()
    return merged(merged(whole, TINY), changes)


def rounds_in(workdir, **changes):
    return rounds_of(values(**changes), workdir, "the command")


MODEL = ModelConfig(259, 1, 16, 2, 1, 8, 16, tie_embeddings=False)
TOKENIZER = ByteTokenizer()


def open_fake(source, mesh):
    """A policy that speaks in letters, as what "trained" it says: other data make another one."""
    facts = json.loads((Path(source) / "run.json").read_text())
    params = init(MODEL, jax.random.key(0))
    rng = np.random.default_rng(facts["seed"])
    params = jax.tree.map(lambda x: np.asarray(x) + 0.3 * rng.normal(size=x.shape).astype(x.dtype), params)
    spoken = np.isin(np.arange(259), [*range(97, 123), 258])
    params["head"] = np.where(spoken[:, None], params["head"] + 0.5, -1.0).astype(np.float32)
    params["final_norm"]["scale"] = np.abs(params["final_norm"]["scale"])
    params = jax.device_put(params, parameter_shardings(mesh, params))
    return Policy(MODEL, params, mesh, TOKENIZER, (TOKENIZER.eos_id,))


def train_fake(config, workdir, data, *, should_stop):
    """In place of a stage's training, whose own continuation tests/training/test_run.py holds to every bit: asks after
    the first of two steps whether to stop, and ends with parameters that depend on its data and on its start."""
    if not (workdir / "one_step").exists():
        (workdir / "one_step").write_text("")
        if should_stop(1):
            return SimpleNamespace(finished=False)
    of = config.data.train if config.data.train != SYNTHETIC else "/dev/null"
    start = Path(config.init_from, "run.json").read_bytes() if config.init_from else b""
    digest = hashlib.sha256(start + Path(of).read_bytes()).digest()
    facts = {"seed": int.from_bytes(digest[:4], "big"), "eval": config.data.eval, "steps": config.train.steps}
    (workdir / "run.json").write_text(json.dumps(facts))
    return SimpleNamespace(finished=True, policy={"seed": np.float32(facts["seed"])})


def fake(monkeypatch):
    """Without training; chunks of annotating are as small as those of sampling."""
    monkeypatch.setattr(rounds, "open_policy", open_fake)
    monkeypatch.setattr(rounds, "read_policy", lambda source, model, mesh, *, seed: open_fake(source, mesh).params)
    monkeypatch.setattr(rounds, "run_stage", train_fake)
    monkeypatch.setattr(rounds, "make_mesh", lambda config: make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    monkeypatch.setattr(rounds, "report_run", lambda run, config, result, folder, *_: (folder / "report.md").touch())
    monkeypatch.setattr(annotate, "_SIZE", 8)


@pytest.fixture
def faked(monkeypatch):
    fake(monkeypatch)
    return monkeypatch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two rounds in one go."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        fake(patch)
        run_rounds(rounds_in(workdir))
    return workdir


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_file_is_made_of_the_one_before(whole):
    """By the options; the page shows what was measured, and links what is there."""
    start = whole / "sft"
    for number, before in ((1, start), (2, whole / "round1")):
        folder = whole / f"round{number}"
        samples, scored, chosen = (rows_of(folder / name) for name in (SAMPLES, SCORED, CHOSEN))
        assert len(samples) == 16 and len({row["prompt"] for row in samples}) == 16
        for sampled, judged, pair in zip(samples, scored, chosen, strict=True):
            assert sampled["completions"] == judged["completions"] and sampled["lengths"] == judged["lengths"]
            assert judged["scores"] == letters("", judged["completions"])
            ends = [judged["completions"][pick(judged["scores"])] for pick in (np.argmax, np.argmin)]
            assert [pair["chosen"], pair["rejected"]] == ends and pair["score_chosen"] > pair["score_rejected"]
        identity = json.loads((folder / "candidates.jsonl.manifest.json").read_text())["identity"]
        assert identity["model"] == str(before)
        run = run_config(json.loads((folder / "config.json").read_text())).stage
        assert (run.init_from, run.data.train, run.data.eval) == (str(before), str(folder / CHOSEN), SYNTHETIC)
    first, second = ({row["prompt"] for row in rows_of(whole / f"round{number}" / SAMPLES)} for number in (1, 2))
    assert not first & second, "other prompts while there are any"
    page, numbers = (whole / "rounds.md").read_text(), json.loads((whole / "rounds.json").read_text())
    for number, phases in enumerate(numbers["rounds"], 1):
        assert list(phases) == ["generate", "annotate", "select", "train", "measure"]
        for name, phase in phases.items():
            assert sha256(whole / f"round{number}" / phase["file"]) == phase["sha256"] and f"{name} " in page
        assert phases["measure"]["kl"]["value"] > 0.1 and phases["measure"]["gold"]["value"] == -4
    assert SAMPLES != greedy_samples.FILE, "a round's folder is a run's too"
    assert numbers["start"]["measure"]["compiling"] > 0 == numbers["rounds"][0]["select"]["compiling"]
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (whole / link).is_file()
    assert "kl" not in numbers["start"]["measure"] and "# 2 rounds of dpo" in page and "    the command" in page


def test_the_page_of_prompts_without_a_gold_reward(whole, tmp_path):
    """Those of anybody's own files."""
    numbers = json.loads((whole / "rounds.json").read_text())
    done = [numbers["start"], *numbers["rounds"]]
    for phases in done:
        del phases["measure"]["gold"]
    page = write_page(tmp_path, "the command", "dpo", "reward:runs/judge", done).read_text()
    assert "**Mean score of answers" in page and "score (reward:runs/judge)" in page and "gold" not in page.lower()


class Killed(BaseException):
    """In the middle of something."""


class Once:
    """Kills at its first call, or at a later one."""

    def __init__(self, function, name, killed, at=1):
        self.function, self.name, self.killed, self.left = function, name, killed, at

    def __call__(self, *args, **given):
        self.left -= 1
        if self.left == 0:
            self.killed.append(self.name)
            raise Killed
        return self.function(*args, **given)


def test_killed_after_and_in_every_phase_it_becomes_the_same(whole, tmp_path, faked):
    killed, did, stopped = [], [], set()

    def record(phases, name, facts, plain=Phases.record):
        plain(phases, name, facts)
        did.append(f"{phases.folder.name} {name}")
        killed.append(f"after {name}")
        raise Killed

    def should_stop(step):
        new = len(did) not in stopped
        stopped.add(len(did))
        return new

    faked.setattr(Phases, "record", record)
    faked.setattr(generate, "respond", Once(generate.respond, "generate", killed, at=2))
    faked.setattr(annotate, "checked", Once(annotate.checked, "annotate", killed, at=2))
    faked.setattr(curation, "write_whole", Once(curation.write_whole, "select", killed))
    faked.setattr(rounds, "report_run", Once(rounds.report_run, "report", killed))
    faked.setattr(rounds, "measure", Once(rounds.measure, "measure", killed))
    workdir, page = tmp_path / whole.name, None
    while page is None:
        try:
            page = run_rounds(rounds_in(workdir), should_stop=should_stop)
        except Killed:
            pass
        except Stopped:
            killed.append("train")
    phases = ["generate", "annotate", "select", "train", "measure"]
    after = [f"after {name}" for name in ("sft", "measure", *phases, *phases)]
    assert sorted(killed) == sorted([*phases, "report", "train", "train", *after])
    assert len(did) == len(set(did)) == 12, "a finished phase is not done again"
    there = {path.relative_to(whole) for path in whole.rglob("*")}
    assert {path.relative_to(workdir) for path in workdir.rglob("*")} == there
    for name in there:
        if name.name in ("candidates.jsonl", "scored.jsonl", "chosen.jsonl", "measured.json"):
            assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name
    here, there = (json.loads((folder / "rounds.json").read_text()) for folder in (workdir, whole))
    for phase in (phase for one in (here, there) for own in (one["start"], *one["rounds"]) for phase in own.values()):
        assert 0 <= phase.pop("compiling") < phase.pop("seconds")
        phase.pop("sha256")  # of chosen.jsonl and others above; run.json names its folder
    assert here == there


def test_what_was_done_is_held_to_its_options_and_files(whole, faked):
    for changes, message in (
        ({"rounds": {"samples": 5}}, "config.rounds.samples: 4 there, 5 now"),
        ({"train": {"steps": 3}}, "config.run.steps: 2 there, 3 now"),
    ):
        with pytest.raises(ValueError, match=message):
            rounds_in(whole, **changes)
    before = (whole / "round1" / SCORED).read_text()
    assert run_rounds(rounds_in(whole, rounds={"count": 1})) == whole / "rounds.md"
    (whole / "round1" / SCORED).write_text(before + "\n")
    with pytest.raises(ValueError, match="scored.jsonl is not what the phase annotate made"):
        run_rounds(rounds_in(whole))
    (whole / "round1" / SCORED).write_text(before)
    run_rounds(rounds_in(whole))


def test_what_cannot_be_is_said_before_anything_is_done(tmp_path):
    for changes, message in (
        ({"objective": "bt", "loss": {}, "reference": {"kind": "none"}}, "bt trains a reward model"),
        ({"sft": {}}, "rounds sample from a policy first"),
        ({"rounds": {"scorer": None}}, "config.rounds.scorer is missing"),
        ({"rounds": {"scorer": "reward:nowhere"}}, "nowhere is neither a run's"),
        ({"rounds": {"scorer": "command:no-such-program"}}, "there is no program 'no-such-program'"),
        ({"rounds": {"select": "rso(cuont=4)"}}, "cuont"),
        ({"rounds": {"samples": 1}}, "rounds.samples=1: set it to at least 2"),
    ):
        whole = values(**({"reward_head": {"width": 1}} if "objective" in changes else {}))
        whole |= {name: value for name, value in changes.items() if value == {}}
        with pytest.raises(ValueError, match=message):
            rounds_of(merged(whole, changes), tmp_path, "the command")
    assert not list(tmp_path.iterdir())


def test_nothing_chosen_is_an_error_with_the_reason(tmp_path, faked):
    none = {"select": "score_window(at_least=1e9)", "measured": 0}
    with pytest.raises(ValueError, match="leaves nothing of .*; 16 were dropped .a number is outside the window"):
        run_rounds(rounds_in(tmp_path, rounds=none))


def test_of_files_the_held_out_prompts_are_those_that_training_holds_out(tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"What about {n}?", "completion": "x"} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = rounds_in(tmp_path, data={"train": str(file), "holdout": 0.25})
    data = own.run.stage.data
    assert own.held_out == rounds.round_values(own, 1)["data"]["eval"] == ""
    policy = Policy(MODEL, None, make_mesh(MeshConfig(data=1), jax.devices()[:1]), TOKENIZER, (), data)
    every, _, account = asked(str(file), policy, own.start)
    some, _, _ = asked(str(file), policy, own.start, held_out=0.25)
    assert len(every) == 40 and 0 < len(some) < 20 and account["encode"].kept == 40
    imitates = objective_of(own.run.find("sft")).requires
    trees = prepare(data, imitates, TOKENIZER, tmp_path / "data", split="eval", progress=False)
    assert {tuple(trees[i].prompt) for i in range(len(trees))} == {tuple(prompt.tokens) for prompt in some}


def test_the_reference_of_a_round_is_the_policy_before_or_that_of_the_start(tmp_path):
    for reference, then in (("previous", ""), ("start", str(tmp_path / "sft"))):
        own = rounds_in(tmp_path, rounds={"reference": reference})
        first, second = (rounds.round_values(own, number) for number in (1, 2))
        assert second["init_from"] == str(tmp_path / "round1") and (second["reference"]["init_from"] or "") == then
        assert first["init_from"] == str(tmp_path / "sft") and not first["reference"]["init_from"]
