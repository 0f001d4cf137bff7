"""README.md and docs/ say what is true: every command in them runs in the words written there, and every flag arrives.

Commands run one after the other in a folder that holds what the words assume: the checkout's code, small files.
`RUN` says for each which flags keep it small; they follow the document's own words. `CHECKED` are those that cannot run
here: the command itself checks their flags and their config, and ends. A command that neither names fails.
"""

import ast
import gzip
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.papers import RECIPES
from experiments.tables import load_table, table_ids, verdicts
from prefjax.analysis import CHECKS
from prefjax.data.datasets import DATASETS
from prefjax.data.tokenizer_files import write_tokenizer
from prefjax.losses import OBJECTIVES
from prefjax.models import ModelConfig, init
from prefjax.models.huggingface import save_huggingface
from prefjax.training.runs import run_config
from tests.documents import PAGES, ROOT, blocks, commands, flag_names, flags_alone
from tests.experiments.test_benchmarks import SMALLEST
from tests.experiments.test_commands import ENVIRONMENT, TINY
from tests.experiments.test_flags import NEEDED, parse
from tests.one_process import OneProcess


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


TRAINED = ("--config.train.steps=2", "--config.sampling.prompts=4")
SHORT = "--max_new_tokens=8"
TUNED = (*TRAINED, "--config.train.epochs=0", "--config.sampling.max_new_tokens=8")


@dataclass(frozen=True)
class Small:
    """How a command of the documents runs here.

    Args:
      flags: what keeps it small, after its own words.
      makes: files that are there afterwards.
      says: part of what it prints.
      after: commands before it, whose results it reads.
    """

    flags: Sequence[str] = ()
    makes: Sequence[str] = ()
    says: str = ""
    after: Sequence[str] = ()


BRIEF = (
    *("--config.train.steps=2", "--config.train.epochs=0", "--config.rows.tokens_per_step=2048"),
    *("--config.train.eval_samples=0", "--config.sampling.prompts=0"),
)
ANALYZE = "python -m experiments.analyze"
FINETUNE = (
    "python -m experiments.train --config=configs/finetune.py:dpo --workdir=runs/tuned"
    " --config.init_from=SmolLM2-135M-Instruct --config.data.train=preferences.jsonl.gz --config.lora.rank=16"
)
MINE = (
    "python -m experiments.train --config=configs/quickstart.py:dpo --workdir=runs/mine"
    " --config.data.train=preferences.jsonl.gz"
)
PREVIEW = (
    "python -m experiments.prepare --config=configs/quickstart.py:dpo --workdir=runs/mine"
    " --config.data.train=preferences.jsonl.gz --preview=3"
)
QUICKSTART = "python -m experiments.train --config=configs/quickstart.py:dpo --workdir=runs/quickstart"
RSO = 'python -m experiments.curate --data=samples.jsonl --output=pairs.jsonl --methods="rso(count=8, beta=0.5)"'
OF_THE_FOLDER = "--config.init_from=SmolLM2-135M-Instruct --config.data.train=preferences.jsonl.gz"
TUNE = "python -m experiments.train --config=configs/finetune.py:"
JUDGE = f"{TUNE}bt --workdir=runs/judge {OF_THE_FOLDER}"
QUICK = "python -m experiments.train --config=configs/quickstart.py:"
REWARD = f"{QUICK}bt --workdir=runs/reward"
CANDIDATES = (
    'python -m experiments.generate --model=runs/reward/sft --prompts="runs/reward/data/synthetic-pairs-train-*.jsonl"'
    " --output=candidates.jsonl --samples_per_prompt=9 --max_new_tokens=64 --scorer=reward:runs/reward"
)
CURATED = 'python -m experiments.curate --data=candidates.jsonl --output=rso.jsonl --methods="rso(count=8, beta=0.5)"'
# Other objectives and ways to train: from an SFT stage that is there, without samples.
LEAST = [*(flag for flag in TINY if "sft" not in flag), "--config.sampling.prompts=0"]
FROM_SFT = [*LEAST, "--config.sft={}", "--config.init_from=runs/quickstart/sft"]
TABLE = ("--config.steps=2000", "--config.learning_rate=0.03", "--config.batch_size=256", "--config.num_seeds=3")
RUN = {
    QUICKSTART: Small(TINY, ["runs/quickstart/report.md", "runs/quickstart/sft/run.json"]),
    MINE: Small(TINY, ["runs/mine/report.md"]),
    PREVIEW: Small(TINY, ["runs/mine/data/preview-train.html", "runs/mine/data/preview-eval.html"], "What about"),
    "python -m experiments.evaluate --workdir=runs/mine --subset_field=source": Small(
        [], ["runs/mine/evaluation.json"], "By source", [MINE]
    ),
    "python -m experiments.evaluate --workdir=runs/mine --samples=256 --judge=my_judges:prefers": Small(
        [SHORT], [], "Win rate against the reference", [MINE]
    ),
    "python -m experiments.generate --model=runs/mine --prompts=prompts.jsonl --output=samples.jsonl.gz"
    " --samples_per_prompt=4": Small([SHORT], ["samples.jsonl.gz"], "rows in", [MINE]),
    "python -m experiments.score --config=configs/quickstart.py:dpo --workdir=runs/mine"
    " --config.data.train=preferences.jsonl.gz --cache=scores": Small(TINY, ["scores"], "[train]", [MINE]),
    "python -m experiments.report --runs=runs/mine,runs/other": Small([], ["runs/overview.md"], "", [MINE]),
    f'{ANALYZE} --tool="preference_factors()" --data=preferences.jsonl.gz --output=analysis': Small(
        [], ["analysis/preference_factors.md"]
    ),
    'python -m experiments.combine --base=runs/mine/sft --vector="0.5 runs/mine" --output=merged': Small(
        [], ["merged/config.json", "merged/model.safetensors"], "+0.5", [MINE]
    ),
    FINETUNE: Small(TUNED, ["runs/tuned/report.md"]),
    "python -m experiments.export --workdir=runs/tuned --output=tuned-model": Small(
        [], ["tuned-model/config.json", "tuned-model/model.safetensors"], "", [FINETUNE]
    ),
    "python -m experiments.run --list": Small([], [], "ipo.fig1_fig2"),
    "python -m experiments.run ipo.fig1_fig2": Small(TABLE, ["results/ipo.fig1_fig2/table.md"], "closed form"),
    "python -m experiments.zoo --workdir=runs/zoo": Small(
        [*TINY, "--objectives=mpo,kto"], ["runs/zoo/comparison.md", "runs/zoo/frontier.png"]
    ),
    f"{ANALYZE} --tool=\"ranking_accuracy(reference='reference_logp', length='length')\""
    " --data=scores.jsonl --output=analysis": Small([], ["analysis/ranking_accuracy.md"]),
    f"{ANALYZE} --tool=\"preference_factors(text=['words', 'list items'])\""
    " --data=pairs.jsonl --output=analysis": Small([], ["analysis/preference_factors.md"], "", [RSO]),
    f'{ANALYZE} --tool="sparse_features(features=32, active=4)" --arrays=embeddings.npz --output=analysis': Small(
        [], ["analysis/sparse_features.md"]
    ),
    "python -m experiments.train --config=configs/quickstart.py:dpo --workdir=runs/noisy"
    ' --config.data.methods="flip_labels(rate=0.2) | subset(share=0.5, seed=1)"': Small(TINY, ["runs/noisy/report.md"]),
    RSO: Small([], ["pairs.jsonl", "pairs.jsonl.account.json"]),
    f"{QUICK}kto --workdir=runs/kto": Small(FROM_SFT, ["runs/kto/report.md"], "", [QUICKSTART]),
    f"{QUICK}dro --workdir=runs/dro": Small(FROM_SFT, ["runs/dro/report.md"], "", [QUICKSTART]),
    f"{QUICK}pl_dpo --workdir=runs/rankings": Small(FROM_SFT, ["runs/rankings/report.md"], "", [QUICKSTART]),
    REWARD: Small(TINY, ["runs/reward/report.md"]),
    CANDIDATES: Small([SHORT], ["candidates.jsonl"], "rows in", [REWARD]),
    CURATED: Small([], ["rso.jsonl", "rso.jsonl.account.json"], "rso", [CANDIDATES]),
    f"{QUICK}rso_sigmoid --workdir=runs/rso --config.sft={{}} --config.init_from=runs/reward/sft"
    " --config.data.train=rso.jsonl --config.data.eval=synthetic": Small(LEAST, ["runs/rso/report.md"], "", [CURATED]),
    f"{TUNE}dpo --workdir=runs/full {OF_THE_FOLDER}": Small(BRIEF, ["runs/full/report.md"]),
    f"{TUNE}dpo,lora --workdir=runs/lora {OF_THE_FOLDER}": Small(BRIEF, ["runs/lora/report.md"]),
    f"{TUNE}dpo,lora --workdir=runs/qlora {OF_THE_FOLDER} --config.lora.quantize=nf4": Small(
        BRIEF, ["runs/qlora/report.md"]
    ),
    JUDGE: Small(BRIEF, ["runs/judge/report.md"]),
}
# Flags that stand by themselves and are no field of a config: the command whose words they go after.
ALONE = {
    "--help": (QUICKSTART, Small([], [], "optimizer.learning_rate=0.0006")),
}
_COMPILES = "takes minutes and compilers for absent chips; tests/experiments/test_plan.py runs it where they are"
_BENCHMARK = "takes minutes; tests/experiments runs it small"
_ROUNDS = "takes minutes; tests/policies/test_rounds.py does small ones"
_DOWNLOADS = "downloads a dataset; tests/data/test_datasets.py builds each from invented files"
CHECKED = {
    "plan_env/bin/python -m experiments.plan": _COMPILES,
    "python -m experiments.plan": _COMPILES,
    "python -m experiments.benchmarks": _BENCHMARK,
    "python -m experiments.train --config=configs/papers.py": "needs a cluster; tests/experiments/test_cluster.py",
    "python -m experiments.rounds": _ROUNDS,
    "python -m experiments.prepare --config=configs/quickstart.py:dpo --workdir=runs/mine"
    " --config.data.train=hh_rlhf/helpful-base:train": _DOWNLOADS,
    "python -m experiments.train --config=configs/quickstart.py:dpo --workdir=runs/dialogues": "as runs/quickstart",
}
GENERATE = "python -m experiments.generate --model=runs/mine --prompt=hi"
CHECKED_ALONE = {
    "--chat_template_kwargs='{\"enable_thinking\": true}'": GENERATE,
    "--date=2026-11-29": GENERATE,
    "--prefill": GENERATE,
    "--search": "python -m experiments.plan --config=configs/plan.py:llama3_8b --topology=h100",
    "--size=tiny": "python -m experiments.benchmarks.accelerator --output=DIR",
    "--micro_batch=2560": "python -m experiments.benchmarks.throughput --output=DIR --data=long_prompt",
    "--data=paper:...": "python -m experiments.benchmarks.throughput --output=DIR",
    "--prompts=5": "python -m experiments.benchmarks.responses --output=DIR",
    "--trial_pairs=8 --steps=2": "python -m experiments.benchmarks.trl --output=DIR --data=a --model=b --trl_python=c",
    "--steps=200": "python -m experiments.zoo --workdir=runs/zoo",
}
# No commands of the checkout, or those that other tests compare with what they write.
LEFT = {
    "pip install -r requirements.txt": "installs",
    "pip install -r requirements.txt -r requirements-aot.txt": "installs",
    "pip install -r requirements-hf.txt": "installs",
    "pip install .": "installs; tests/test_packaging.py builds it",
    "python -m pytest": "this",
    "python3 -m venv plan_env": "installs",
    "plan_env/bin/pip install -r requirements.txt -r requirements-aot.txt": "installs",
    "python3 -m venv trl_env": "installs",
    "trl_env/bin/pip install -r experiments/benchmarks/trl_side/requirements.txt": "installs",
    "hf download OWNER/NAME --repo-type dataset --local-dir MANUAL_DIR/<dataset>": "downloads",
    "--revision refs/convert/parquet": "of hf download",
    "--distributed": "test_processes_by_the_words_of_their_page",
    "python -m experiments.chaos --output=chaos": "tests/experiments/test_chaos.py runs it small",
    "--share=0.1": "of experiments.chaos",
    "--preview=3": "of experiments.prepare, whole in docs/getting_started.md",
    "--debug": "tests/experiments/test_command.py",
    "python -m docs.draw_mask": "tests/experiments/test_factors.py draws the larger picture",
    "python -m docs.write_chaos chaos": "tests/experiments/test_chaos.py compares its page",
    "--seed": "of experiments.chaos",
    "--only=kills,signals": "of experiments.chaos",
    "--check": "of experiments.run; tests/experiments/test_run.py tries it",
    "python -m docs.write_analysis": "tests/contrib/test_tools.py compares its page",
    "python -m docs.write_checks": "tests/analysis/test_notes.py compares its page",
    "python -m docs.write_data_methods": "tests/data/test_methods_sequences.py compares its page",
    "python -m docs.write_datasets": "tests/data/test_datasets.py compares its page",
    "python -m docs.write_config": "tests/experiments/test_flags.py compares its page",
    "python -m docs.write_notebooks": "tests/test_notebooks.py compares them",
    "python -m docs.write_objectives": "tests/losses/test_table.py compares its page",
    "python -m docs.write_reproduction": "tests/experiments/test_run.py compares its page",
    "python -m docs.write_cluster": "tests/experiments/test_cluster.py compares its page",
    "python -m docs.write_paper_index": "tests/test_paper_index.py compares its page",
    "python -m pytest -n0 PATH::NAME": "this",
    **{
        verdicts.command(load_table(name).__doc__): "tests/experiments/test_tables.py runs every table small"
        for name in table_ids()
    },
    "python -m experiments.run --all --tier=cpu": "tests/experiments/test_tables.py runs every table small",
    "python -m experiments.run dpo.equivalence --rows=+my_losses:squared_hinge": "tests/experiments/test_tables.py",
}
# Flags that stand for any of a section, or for all of them.
SECTIONS = {"--config.loss.NAME": "loss", "--config.sft.NAME": "sft", "--config.loss.beta=...": "loss"}
FILES = ("quickstart", "finetune")


def is_checked(text):
    return any(text.startswith(words) for words in CHECKED)


def is_bare(text):
    """A command that is only named."""
    return text.startswith("python -m experiments.") and len(text.split()) == 3


@dataclass
class Workshop:
    """A folder with all that the documents' words assume, where each command runs once, all in one process."""

    folder: Path
    process: OneProcess
    ran: set[str] = field(default_factory=set)

    def command(self, text: str) -> subprocess.CompletedProcess:
        return self.process.run(shlex.split(text.partition(" -m ")[2]))

    def bash(self, words: str) -> subprocess.CompletedProcess:
        environment = ENVIRONMENT | {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        return subprocess.run(["bash", "-c", words], cwd=self.folder, env=environment, capture_output=True, text=True)

    def run(self, text: str, small: Small) -> str:
        """What the command prints, with what it needs before; raises AssertionError where it fails."""
        for earlier in small.after:
            if earlier not in self.ran:
                self.run(earlier, RUN[earlier])
        if "runs/other" in text:
            shutil.copytree(self.folder / "runs/mine", self.folder / "runs/other")
        words = " ".join([text, *(f"'{flag}'" for flag in small.flags)])
        done = self.command(words)
        self.ran.add(text)
        helps = "--help" in text
        assert (done.returncode == 0) != helps, f"{words}\n{done.stdout[-3000:]}"
        for path in small.makes:
            assert (self.folder / path).exists(), f"{words}\nmade no {path}"
        assert small.says in done.stdout, f"{words}\ndoes not say {small.says!r}\n{done.stdout[-3000:]}"
        return done.stdout


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def write_model(folder: Path) -> None:
    model = ModelConfig(
        vocab_size=264, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_width=8, mlp_width=24, qk_norm="head"
    )
    params = jax.device_get(init(model, jax.random.key(0)))
    save_huggingface(folder, model, params, settings=dict(max_position_embeddings=512))
    write_tokenizer(folder, "byte")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("documents"), np.random.default_rng(0)
    for name in ("prefjax", "experiments", "configs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "bin").mkdir()
    (folder / "bin/python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (folder / "bin/python").chmod(0o755)
    (folder / "my_judges.py").write_text("def prefers(prompt, a, b):\n    return 0.5 + 0.4 * (len(a) > len(b))\n")
    answer = lambda row: "- yes, and more of it\n" * int(rng.integers(1, 4)) + f"words {row} " * int(rng.integers(1, 4))
    pair = lambda row: dict(prompt=f"What about {row}?", chosen=answer(row), rejected=answer(row), source="ab"[row % 2])
    write_rows(folder / "preferences.jsonl.gz", [pair(row) for row in range(40)])
    write_rows(folder / "prompts.jsonl", [dict(prompt=f"And what of {row}?") for row in range(3)])
    ranking = lambda row: dict(
        prompt=f"What about {row}?", completions=[answer(row + k) for k in range(9)], scores=rng.normal(size=9).tolist()
    )
    write_rows(folder / "samples.jsonl", [ranking(row) for row in range(12)])
    two = lambda: rng.normal(-9, 2, size=2).tolist()
    write_rows(
        folder / "scores.jsonl", [dict(policy_logp=two(), reference_logp=two(), length=[4, 6]) for _ in range(20)]
    )
    np.savez(folder / "embeddings.npz", embedding=rng.normal(size=(64, 2, 8)).astype(np.float32))
    write_model(folder / "SmolLM2-135M-Instruct")
    with OneProcess(folder, ENVIRONMENT) as process:
        yield Workshop(folder, process)


def test_every_command_and_flag_of_the_documents_is_named_here_and_nothing_else():
    said = {text for _, text in commands()}
    needed = {text for text in said if not is_checked(text) and not is_bare(text)}
    assert needed == {*RUN, *(text for text in LEFT if not text.startswith("--"))}
    for words in CHECKED:
        assert any(text.startswith(words) for text in said), f"no document says {words}"
    modules = {text.split()[2] for text in (*RUN, *(command for command, _ in ALONE.values()))}
    assert {text.split()[2] for text in said if is_bare(text)} <= modules
    benchmarks = {text.split()[2].removeprefix("experiments.benchmarks.") for text in said if ".benchmarks." in text}
    assert benchmarks <= {*SMALLEST, "accelerator", "correlation", "factors", "pipeline", "throughput", "trl"}, (
        _BENCHMARK
    )


def test_every_flag_alone_is_tried():
    """A field of a config, a flag of a table here, or the name of one that a command beside it uses."""
    named = {page: set() for page in PAGES}
    for page, text in commands():
        if "<" not in text:
            named[page] |= flag_names(text)
    for page, text in flags_alone():
        known = text in ALONE or text in CHECKED_ALONE or text in LEFT or text in SECTIONS or text in fields_alone()
        assert known or text in named[page] or text in ("--config", "--config=FILE"), f"{page}: {text}"


@pytest.mark.slow
@pytest.mark.parametrize("text", RUN)
def test_command(text, workshop):
    if text not in workshop.ran:
        workshop.run(text, RUN[text])


@pytest.mark.slow
@pytest.mark.parametrize("flag", ALONE)
def test_flag_of_a_command(flag, workshop):
    command, small = ALONE[flag]
    workshop.run(f"{command} {flag}", small)


@pytest.mark.slow
def test_processes_by_the_words_of_their_page(workshop):
    """The two processes of docs/processes.md, at another port where that one is taken."""
    (words,) = blocks("docs/processes.md", "bash")
    words = words.replace("localhost:1234", f"localhost:{free_port()}").replace(
        " --distributed", " ".join(["", "--distributed", *TINY])
    )
    done = workshop.bash(words + "status=$?; wait $! && exit $status")
    assert done.returncode == 0 and done.stdout.count("report: ") == 1, done.stdout[-3000:] + done.stderr[-3000:]


def test_commands_that_cannot_run_here_accept_their_flags(workshop):
    # Commands of the recipes are of one form, and tests/experiments/test_cluster.py loads each.
    words = {text for _, text in commands() if is_checked(text) and ("papers.py:" not in text or "prefix_hh" in text)}
    words |= {f"{command} {flag}" for flag, command in CHECKED_ALONE.items()}
    # absl takes that flag before a process runs its first command, so this is another one.
    with OneProcess(workshop.folder, ENVIRONMENT) as process:
        for text in sorted(words):
            done = process.run([*shlex.split(text.partition(" -m ")[2]), "--only_check_args"])
            assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}"


def fields_alone() -> list[str]:
    return [text for _, text in flags_alone() if text.startswith("--config.") and "=" in text and text not in SECTIONS]


def fields_of(text: str) -> dict[str, object]:
    """ "--config.a.b=1 --config.c=x" -> {"a.b": 1, "c": "x"}"""
    values = {}
    for word in shlex.split(text):
        name, _, value = word.removeprefix("--config.").partition("=")
        try:
            values[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            values[name] = value
    return values


# Without these others a field may not be set, or is not read.
WITH = {
    "--config.lora.quantize=nf4": ["lora.rank=16"],
    "--config.loss.dpo.beta=2.0": ["objective=0.8*dpo + 0.2*bco_pair + 1.0*sft"],
    "--config.loss.max_dpo_simpo.dpo.beta=1.0": ["objective=dpo + max(dpo, 0.5*simpo)"],
    "--config.init_from=hf:HuggingFaceTB/SmolLM2-135M-Instruct": ["sft={}"],
}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("text", dict.fromkeys(fields_alone()))
def test_field_of_a_config_arrives(file, text, my_losses, monkeypatch):
    monkeypatch.setattr("prefjax.models.hub.local", str)  # downloads nothing
    given = [word.removeprefix("--config.") for word in shlex.split(text)]
    run = run_config(parse(file, "dpo", *NEEDED.get(file, ()), *WITH.get(text, ()), *given)["config"].value.to_dict())
    for path, value in fields_of(text).items():
        if path == "sft":
            assert value == {} and [name for name, _ in run.stages[:-1]] == []
            continue
        found = run.stage
        for part in path.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
        assert found == value


SECTION_NAMES = "data|rows|model|optimizer|train|reference|mesh|lora|sampling"
FIELD = re.compile(rf"(?:config\.)?((?:{SECTION_NAMES})(?:\.(?!py\b)[a-z_]\w*)+)(?:=.*)?")


def test_fields_that_are_named_without_a_flag_are_there():
    config = parse("quickstart", "dpo")["config"].value
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
        for name in filter(None, map(FIELD.fullmatch, re.findall(r"`([^`\n]+)`", text))):
            found = config
            for part in name[1].split("."):
                assert part in found, f"{page}: {name[0]}"
                found = found[part]


def test_every_page_has_its_place_in_the_navigation_of_the_site():
    """mkdocs.yml names each page of docs/; the whole site is built in tests/test_site.py."""
    named = set(re.findall(r"^ +- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not page.startswith(("benchmarks/", "rso/", "zoo/"))} == named


def test_counts_that_the_documents_say():
    ours = [one for one in OBJECTIVES.values() if one.apply.__module__.startswith("prefjax.")]  # tests add some
    counts = {"objectives": ours, "checks": CHECKS, "named datasets": list(DATASETS), "recipes": RECIPES}
    said = set()
    for page in (*PAGES, "CHANGELOG.md"):
        for number, what in re.findall(rf"\b(\d+) \[?({'|'.join(counts)})\b", (ROOT / page).read_text()):
            assert int(number) == len(counts[what]), f"{page}: {number} {what}"
            said.add(what)
    assert said == set(counts)


def test_every_check_of_a_report_has_its_advice():
    _, _, advice = (ROOT / "docs/reading_a_report.md").read_text().partition("## What is odd")
    assert set(re.findall(r"^\| ([^|]*) \|", advice, re.MULTILINE)) - {"note", "---"} == {
        check.name for check in CHECKS
    }


@pytest.fixture
def my_losses(monkeypatch):
    """The module that the README's own loss would be in."""
    (block,) = [block for block in blocks("README.md", "python") if "squared_hinge" in block]
    names = {"jnp": jax.numpy, "__name__": "__main__"}
    exec(compile(block, "cell", "exec"), names)
    module = type(sys)("my_losses")
    module.squared_hinge = names["squared_hinge"]
    monkeypatch.setitem(sys.modules, "my_losses", module)


@pytest.mark.parametrize("text", SECTIONS)
def test_section_of_a_config_is_there(text):
    config = parse("quickstart", "dpo")["config"].value
    assert set(OBJECTIVES["dpo"].options) <= set(config.loss) and SECTIONS[text] in config


def test_losses_are_plain_functions_with_the_values_that_the_readme_states():
    (block,) = [block for block in blocks("README.md", "python") if "Responses, dpo" in block]
    names = {}
    exec(block, names)
    assert "dpo(pairs, beta=0.1)  # [0.598]," in block
    np.testing.assert_allclose(names["dpo"](names["pairs"], beta=0.1), [0.598], atol=5e-4)
    np.testing.assert_allclose(OBJECTIVES["ipo"].loss(names["pairs"], tau=0.1), [(2 - 1 / 0.2) ** 2], rtol=1e-5)
