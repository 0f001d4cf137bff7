"""What is done with a trained run: responses, scores, and evaluations by log-probs, subsets and judges."""

import gzip
import json
import shlex
import sys

import numpy as np
import pytest

from prefjax.data.readers import read_records
from prefjax.data.synthetic import World
from prefjax.policies.open import open_mesh, open_policy
from prefjax.policies.rollouts import sequence_logps
from prefjax.policies.scorers import Candidates, load_function, load_scorer
from tests.experiments.test_commands import ENVIRONMENT, run, train
from tests.one_process import OneProcess
from tests.training.examples import setup_for

HERE = "tests.experiments.test_after_training"


def vowels(prompt, completions):
    """A scorer."""
    return [sum(text.count(vowel) for vowel in "aeiou") for text in completions]


def likes_first(prompt, a, b):
    """A judge that prefers what it sees first, and else the longer response."""
    return 0.6 + 0.3 * np.sign(len(a) - len(b))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train("dpo", workdir, "--config.sampling.prompts=0")
    return workdir


@pytest.mark.slow
def test_the_best_of_several_by_a_run_and_pairs_made_of_them(workdir, tmp_path):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "samples.jsonl.gz"
    prompts.write_text("".join(json.dumps({"prompt": f"What about {i}?", "id": f"p{i}"}) + "\n" for i in range(6)))
    options = [f"--model={workdir / 'sft'}", f"--prompts={prompts}", f"--output={output}", "--max_new_tokens=8"]
    options += ["--best_of=3", f"--scorer=implicit:{workdir}", "--top_p=0.9"]
    done = run("generate", *options)
    rows = [json.loads(line) for line in gzip.open(output)]
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(6)] and "6 rows in" in done.stdout
    for row in rows:
        assert row["best"] == int(np.argmax(row["scores"])) and np.isfinite(row["scores"]).all()
    records, _ = read_records(output, progress=False)
    assert {record.kind for record in records} == {"ranked"}
    manifest = json.loads((tmp_path / "samples.jsonl.gz.manifest.json").read_text())
    assert manifest["identity"]["generation"]["sampling"]["top_p"] == 0.9 and manifest["counts"]["responses"] == 18
    assert "--best_of=3" in manifest["command"]
    before = output.read_bytes()
    assert "6 rows in" in run("generate", *options).stdout and output.read_bytes() == before
    run("curate", f"--data={output}", f"--output={tmp_path / 'pairs.jsonl'}", "--methods=rso(count=2, beta=0.5)")
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) > 3
    # beta (log pi - log ref), by hand: of the run, its SFT stage and its beta, on another mesh.
    mesh = open_mesh("data=8")
    ours, theirs = (open_policy(str(path), mesh) for path in (workdir, workdir / "sft"))
    encode = ours.tokenizer.encode
    prompts = [np.array([257, *encode(row["prompt"])], np.int32) for row in rows]
    responses = [np.array([*encode(row["completions"][0]), 258], np.int32) for row in rows]
    setup = setup_for("dpo", model=ours.model, mesh=mesh)
    policy, reference = sequence_logps(setup, [ours.params, theirs.params], prompts, responses)
    np.testing.assert_allclose([row["scores"][0] for row in rows], 2 * (policy - reference), rtol=1e-3, atol=1e-4)
    assert np.ptp(policy - reference) > 1e-3


def test_scorers_by_name():
    own = Candidates("p", ("aab", "xyz"), (-4.0, -9.0), (4, 3))
    mesh = open_mesh("")
    assert list(load_scorer("logp", mesh)([own])[0]) == [-4, -9]
    assert load_scorer("mean_logp", mesh)([own])[0] == [-1, -3]
    assert load_scorer(f"{HERE}:vowels", mesh)([own])[0] == [2, 0]
    # It likes the first place by 0.1 and the longer text by 0.3: in both orders only length is left, and equals tie.
    judge = load_scorer(f"judge:{HERE}:likes_first", mesh)
    assert judge([own._replace(completions=("a", "bb", "bb"))])[0] == pytest.approx([0.2, 0.65, 0.65])
    with pytest.raises(ValueError, match="'p' has one completion"):
        judge([own._replace(completions=("a",))])
    code = "import json, sys; [print([len(c) for c in json.loads(line)['completions']]) for line in sys.stdin]"
    command = f"command:{shlex.join([sys.executable, '-c', code])}"
    assert load_scorer(command, mesh)([own, own._replace(completions=("é" * 5,))]) == [[3, 3], [5]]
    for wrong, message in (
        ("sys.exit('no key')", "status 1: no key"),
        ("print('good')", "must write a list of scores"),
    ):
        words = shlex.join([sys.executable, "-c", f"import sys; {wrong}"])
        with pytest.raises(ValueError, match=message):
            load_scorer(f"command:{words}", mesh)([own])
    prompt = World().prompts()[0]
    gold = load_scorer("gold", mesh)([own._replace(prompt=prompt, completions=(World().best_response(prompt), "x"))])
    assert gold[0][0] > 2 and gold[0][1] == -4
    for bad in ("best", "implicit:", "no_such_module:f", f"{HERE}:no_such_function", f"{HERE}:np", "command:nowhere"):
        with pytest.raises(ValueError, match=bad.split(":")[0]):
            load_scorer(bad, mesh)
    assert load_function("json:dumps") is json.dumps
    for bad in ("data", "data=two", "dtaa=2"):
        with pytest.raises(ValueError, match="mesh"):
            open_mesh(bad)


def test_contradictions_are_errors(tmp_path):
    with OneProcess(tmp_path, ENVIRONMENT) as commands:
        for name, options, message in (
            ("generate", ("--model=nowhere", "--prompts=b"), "go together"),
            ("generate", ("--model=nowhere", "--prompt=a", "--best_of=3"), "needs --scorer"),
            ("generate", ("--model=nowhere", "--prompt=a", "--stop_ids=2,</s>"), "--stop_ids=</s>: ids of tokens are"),
            ("evaluate", ("--workdir=nowhere", "--output=page.md"), "page.md must end in .json"),
        ):
            done = commands.run([f"experiments.{name}", *options])
            assert done.returncode and message in done.stdout


@pytest.mark.slow
def test_evaluation_by_subset_and_judge(workdir, tmp_path):
    data, output = tmp_path / "pairs.jsonl", tmp_path / "evaluation.json"
    row = lambda i: {"prompt": f"Q {i}", "chosen": f"yes {i}" * (1 + i % 3), "rejected": "no", "source": "ab"[i % 2]}
    data.write_text("".join(json.dumps(row(i) | {"id": i}) + "\n" for i in range(12)))
    judge = f"--judge={HERE}:likes_first"
    options = [f"--workdir={workdir}", f"--data={data}", f"--output={output}", "--subset_field=source"]
    done = run("evaluate", *options, "--samples=5", "--max_new_tokens=6", judge)
    values = json.loads(output.read_text())
    assert values["prompts"] == 12
    accuracy = values["accuracy"]["reward_accuracy"]
    assert accuracy["value"] == pytest.approx(values["reward_accuracy"]) and accuracy["count"] == 12
    assert values["margins"]["mean"]["value"] == pytest.approx(values["margin"], abs=1e-3)
    assert values["divergence"]["per_response"]["value"] == pytest.approx(values["kl_estimate"], abs=1e-3)
    assert values["length"]["worse"]["value"] == 3 and values["margins"]["beta"] == 2
    assert set(values["subsets"]["tables"]) == {"a", "b"}
    halves = [values["subsets"]["tables"][name]["reward_accuracy"]["value"] for name in "ab"]
    assert values["subsets"]["means"]["reward_accuracy"]["value"] == pytest.approx(np.mean(halves))
    compared = [json.loads(line) for line in (tmp_path / "evaluation.comparisons.jsonl").read_text().splitlines()]
    assert [row["id"] for row in compared] == list(range(5))
    # A liking for the first place cancels: only length is left.
    wins = np.mean([0.5 + 0.5 * np.sign(len(row["policy"]) - len(row["other"])) for row in compared])
    assert values["win_rate"]["win_rate"]["value"] == wins and values["win_rate"]["win_rate"]["count"] == 5
    assert values["sampled_kl"]["count"] == 5
    assert np.mean([row["log_ratio"] for row in compared]) == pytest.approx(values["sampled_kl"]["value"], rel=1e-5)
    page = output.with_suffix(".md").read_text()
    for said in ("## By source", "mean over subsets", "## Win rate against the reference", "experiments.evaluate"):
        assert said in page and said in done.stdout

    judgements = tmp_path / "judgements.jsonl"
    judgements.write_text("".join(json.dumps({"id": i, "winner": "policy"}) + "\n" for i in range(3)))
    run("evaluate", *options[:3], f"--judgements={judgements}")
    assert json.loads(output.read_text())["win_rate"]["wins"] == 3


@pytest.mark.slow
def test_smollm2_says_paris(real_models):
    """Greedy, both as text that goes on and, through its chat template, as an answer; as transformers does."""
    folder = next((path for path in sorted(real_models.iterdir()) if path.name.lower().startswith("smollm2")), None)
    if folder is None:
        pytest.skip(f"no smollm2* in {real_models}")
    say = lambda *options: run("generate", f"--model={folder}", "--temperature=0", *options).stdout
    assert say("--prompt=The capital of France is", "--nochat", "--max_new_tokens=2") == " Paris. [...]\n"
    asked = say("--prompt=What is the capital of France?", "--chat", "--max_new_tokens=24")
    assert asked == "The capital of France is Paris.\n"
