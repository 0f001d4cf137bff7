"""--config: every field of every config dataclass can be set by a flag from every config file, and arrives."""

import functools
import importlib.util
import itertools
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict

from configs import quickstart
from experiments.config_flag import complete, define_config, help_text
from prefjax.losses import OBJECTIVES
from prefjax.options import REQUIRED, build, stated, walk
from prefjax.policies.rounds import RoundsConfig
from prefjax.training.config import StageConfig, objective_of
from prefjax.training.optimizers import warmup_of
from prefjax.training.runs import SamplingConfig, record_config, run_config

ROOT = Path(__file__).resolve().parents[2]
FILES = ("quickstart", "finetune", "plan")
WORDS = {"quickstart": "dpo", "finetune": "dpo", "plan": "llama3_1b"}
# What a file leaves to the command line.
SIZES = ("num_layers=2", "width=8", "num_heads=4", "num_kv_heads=2", "head_width=8", "mlp_width=8", "vocab_size=9")
NEEDED = {"finetune": ("data.train=mine.jsonl", *(f"model.{size}" for size in SIZES))}
LEAVES = (bool, int, float, str, tuple)
FIELDS = {path: field for path, field in walk(StageConfig) if field.kind in LEAVES}
LLAMA3 = tuple(
    f"model.rope_scaling.{one}"
    for one in ("factor=2", "low_frequency_factor=1", "high_frequency_factor=4", "original_length=64")
)
# Values that a rule for all would not find.
VALUES = {
    "objective": "simpo",
    "data.format.false_labels": ("Denies:",),
    "data.methods": "flip_labels(rate=0.1)",
    "data.chat_template_kwargs": '{"enable_thinking": false}',
    "data.date": "2026-11-29",
    "data.format.roles": ("client=user",),
    "data.encoding.thought_marks": ("[THINK]", "[/THINK]"),
    "data.encoding.truncation": "trim_prompt_left",
    "model.num_heads": 8,
    "model.num_kv_heads": 1,
    "model.head_width": 10,
    "model.rope_scaling.kind": "llama3",
    "reward_head.width": 4,
}
# field -> the other fields without which it may not be set
WITH = {
    "data.encoding.truncation": ("data.encoding.max_length=9",),
    "rows.batching": ("rows.prompts_per_step=8",),
    "rows.prompts_per_step": ("rows.batching=prompts",),
    "model.local_rope_theta": ("model.sliding_window=9",),
    "model.global_every": ("model.sliding_window=9",),
    "model.pre_norms": ("model.post_norms=true",),
    **{
        f"model.rope_scaling.{one}": ("model.rope_scaling.kind=llama3", *LLAMA3)
        for one in ("low_frequency_factor", "high_frequency_factor")
    },
    "model.rope_scaling.original_length": ("model.rope_scaling.kind=llama3", *LLAMA3),
    "model.rope_scaling.kind": LLAMA3,
    "model.rope_scaling.factor": ("model.rope_scaling.kind=linear",),
    "optimizer.warmup_steps": ("optimizer.warmup_ratio=0",),
    "optimizer.warmup_ratio": ("optimizer.warmup_steps=0",),
    "train.steps": ("train.epochs=0",),
    "train.epochs": ("train.steps=0",),
    "rows.order": (),  # rows.window cannot be set besides
    "rows.merge_from": ("rows.layout=merged",),
    "rows.mismatched": ("reference.kind=live",),
    "reference.init_from": ("reference.kind=live",),
    "reference.cache": ("reference.kind=precomputed",),
    "reference.update_every": ("reference.kind=live", "reference.update_rate=0.125"),
    "reference.update_rate": ("reference.kind=live", "reference.update_every=9"),
    **{f"lora.{one}": ("lora.rank=3",) for one in ("alpha", "targets", "quantize")},
    **{f"reward_head.{one}": ("reward_head.width=4",) for one in ("normalize", "gate")},
}
BEFORE = {name for name, one in OBJECTIVES.items() if one.requires.imitates}  # of the stage before
# field -> an objective that reads it; SFT takes the data of the stage after it, whatever it reads
READ_BY = {
    "data.normalize_targets": "dro",
    "data.format.auxiliary_field": "slic",
    "data.format.margin_field": "margin_dpo",
    "data.format.target_probability_field": "soft_ce",
    "data.format.spans_field": "target_dpo",
    "rows.mismatched": "kto",
}


def parse(file, word, *fields, sections=types.MappingProxyType({})):
    values, argv = flags.FlagValues(), ["command", f"--config=configs/{file}.py:{word}"]
    argv += [f"--config.{field}" for field in fields]
    define_config(flag_values=values, sys_argv=argv, sections=sections)
    values(argv)
    return values


def read(run, stage, path):
    return functools.reduce(getattr, path.split("."), run.find("sft") if stage else run.stage)


def other(path, field, before):
    """A legal value that is not the one before."""
    if path in VALUES:
        return VALUES[path]
    if field.kind is bool:
        return not before
    if field.range.choices and field.kind not in (int, float):
        one = next(choice for choice in field.range.choices if choice != before)
        return (one,) if field.kind is tuple else one
    candidates = {int: (2, 3), float: (0.5, 0.75), str: ("mine.jsonl", "other.jsonl"), tuple: (("Says:",), ("A:",))}
    return next(
        one for one in candidates[field.kind] if one != before and (field.kind in (str, tuple) or one in field.range)
    )


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@functools.cache
def as_it_is(file, word):
    return run_config(parse(file, word, *NEEDED.get(file, ())).config.to_dict())


ALONE = [path for path in FIELDS if path not in WITH | READ_BY and path not in ("objective", "init_from")]


@pytest.mark.parametrize("stage", ["", "sft."])
@pytest.mark.parametrize("file", FILES)
def test_every_field_can_be_set(file, stage):
    """All at once that can be set without another one."""
    given, run = NEEDED.get(file, ()), as_it_is(file, WORDS[file])
    before = {path: read(run, stage if run.find("sft") else "", path) for path in ALONE}
    values = {path: other(path, FIELDS[path], before[path]) for path in ALONE}
    flagged = [f"{stage}{path}={value}" for path, value in values.items()]
    run = run_config(parse(file, WORDS[file], *given, *flagged).config.to_dict())
    found = {path: read(run, stage, path) for path in ALONE}
    assert found == values and not [path for path in ALONE if found[path] == before[path]]
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]


@pytest.mark.parametrize("path", [path for path in FIELDS if path not in ALONE])
def test_a_field_can_be_set_with_those_it_needs(path):
    for file, stage in itertools.product(FILES, ("", "sft.")):
        word, given = WORDS[file], list(NEEDED.get(file, ()))
        if path == "rows.mismatched" and stage:  # the stage before reads none
            continue
        if path in READ_BY and not stage:
            word, given = (word, [*given, f"objective={READ_BY[path]}"]) if file == "plan" else (READ_BY[path], given)
        if path == "init_from" and not stage and file == "quickstart":
            given = ["sft={}", *given]
        given += [stage + field for field in WITH.get(path, ())]
        before = None
        if "rope_scaling" not in path:
            run = as_it_is(file, WORDS[file] if file == "plan" else word)
            before = read(run, stage if run.find("sft") else "", path)
        value = other(path, FIELDS[path], before)
        run = run_config(parse(file, word, *given, f"{stage}{path}={value}").config.to_dict())
        found = read(run, stage, path)
        assert found == value != before and type(found) is type(value), f"{file}: {stage}{path}"


@pytest.mark.parametrize("path,field", [(path, field) for path, field in walk(SamplingConfig)])
def test_so_can_samples_and_options_of_the_loss(path, field):
    for file in FILES:
        given = NEEDED.get(file, ())
        config = parse(file, WORDS[file], *given, f"sampling.{path}=3", "loss.beta=0.375").config
        run = run_config(config.to_dict())
        assert getattr(run.sampling, path) == 3 and run.stage.loss["beta"] == 0.375


def test_a_field_out_of_its_range_is_refused_by_name():
    for field, message in (
        ("rows.window=0", "rows.window=0: set it to at least 1"),
        ("optimizer.b2=nan", "optimizer.b2=nan: set it to at least 0 and below 1"),
        ("sft.optimizer.name=lion", "config.sft: optimizer.name='lion': choose one of adamw"),
        ("train.writers=stdout", "train.writers=('stdout',): choose of tensorboard, wandb"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            run_config(parse("quickstart", "dpo", field).config.to_dict())


@pytest.mark.parametrize(
    "field,message",
    [
        ("data.trian=x", "config.data.trian is not an option: did you mean config.data.train?"),
        ("tokens_per_step=9", "did you mean config.rows.tokens_per_step?"),
        ("loss.tau=0.1", "dpo takes no option 'tau'; its options and defaults: beta=0.1"),
        ("objective=ipo", "states config.loss.beta, but ipo takes tau, normalize: give the objective behind the colon"),
        ("train.steps=many", "train.steps"),
    ],
)
def test_a_flag_that_cannot_be_says_what_can(field, message):
    with pytest.raises(flags.Error, match=re.escape(message)):
        parse("quickstart", "dpo", field)


def test_a_file_with_an_unknown_field_is_named(tmp_path):
    with pytest.raises(ValueError, match="mine.py: config.optimizer.lr is not an option"):
        complete({"optimizer": {"lr": 1.0}}, "mine.py")
    with pytest.raises(
        ValueError, match="config.sft.rows.windows is not an option: did you mean config.sft.rows.window?"
    ):
        complete(ConfigDict({"sft": {"rows": {"windows": 1}}}), "mine.py")
    with pytest.raises(flags.Error, match="there is no file 'configs/nothing.py'"):
        parse("nothing", "dpo")


def test_an_objective_by_flag_brings_its_options():
    stage = run_config(parse("plan", "llama3_1b", "objective=ipo", "loss.tau=0.25").config.to_dict()).stage
    assert stage.objective == "ipo" and stage.loss == OBJECTIVES["ipo"].options | {"tau": 0.25}


def test_a_sum_by_flag_brings_the_options_of_its_terms():
    """MPO by one flag: what the file says of dpo stays with it; behind the colon every term gets what suits it."""
    given = ("objective=0.8*dpo + 0.2*bco_pair + 1.0*sft", "loss.bco_pair.beta=0.5")
    config = parse("quickstart", "dpo", *given).config
    assert "loss.sft.normalize='length': of 0.8*dpo" in help_text(config)
    run = run_config(config.to_dict())
    options = {"dpo": {"beta": 2.0}, "bco_pair": {"beta": 0.5}, "sft": {"normalize": "length"}}
    assert run.stage.loss == options and objective_of(run.stage).options == options
    assert run.find("sft").loss == {} and run.stage.reference.kind == "live"
    named = run_config(parse("quickstart", "mpo").config.to_dict()).stage
    assert named.loss == options | {"bco_pair": {"beta": 2.0}} and named.reference.kind == "live"
    scored = quickstart.get_config("pl_dpo + 0.5*dro_p + sft")
    assert scored.data.pair_targets == "scores" and not scored.data.normalize_targets
    assert run_config(complete(scored, "quickstart").to_dict()).stage.loss["pl_dpo"] == {"beta": 2.0}
    nested = "dpo + max(simpo, 0.5*cdpo)"
    extreme = run_config(parse("quickstart", nested, "loss.max_simpo_cdpo.cdpo.beta=1").config.to_dict()).stage.loss
    assert extreme["max_simpo_cdpo"]["cdpo"]["beta"] == 1 and extreme["max_simpo_cdpo"]["simpo"]["beta"] == 60
    wrapped = run_config(parse("quickstart", "smooth(simpo, rate=0.2)", "loss.gamma=0.3").config.to_dict()).stage
    assert wrapped.loss == {"rate": 0.2, "beta": 60.0, "gamma": 0.3} and wrapped.reference.kind == "none"
    with pytest.raises(flags.Error, match="dpo takes no option 'gamma'"):
        parse("quickstart", "dpo", "objective=0.8*dpo + 0.2*bco_pair", "loss.dpo.gamma=1")
    with pytest.raises(ValueError, match="objective soft_ce, a term of .* needs target_probability"):
        run_config(parse("quickstart", "dpo", "objective=dpo + soft_ce").config.to_dict())
    with pytest.raises(flags.Error, match="takes no option ipo.tau=None; its options: dpo.beta, bco_pair.beta"):
        parse("quickstart", "dpo", "objective=0.8*dpo + 0.2*bco_pair", "loss.ipo.tau=1")


def test_the_stage_before_is_as_the_run_where_nothing_is_said():
    given = ("data.train=mine.jsonl", "data.encoding.max_length=77", "optimizer.b1=0.5", "train.writers=wandb")
    run = run_config(parse("quickstart", "dpo", *given, "sft.data.encoding.special_text=parse").config.to_dict())
    sft = run.find("sft")
    assert (sft.data.train, sft.data.encoding.max_length, sft.data.encoding.special_text) == ("mine.jsonl", 77, "parse")
    assert run.stage.data.encoding.special_text == "reject"
    assert (run.stage.optimizer.b1, sft.optimizer.b1) == (0.5, 0.9), "the file states an optimiser for SFT"
    assert sft.train.writers == ("wandb",), "but metrics go where the run's go"
    assert run_config(parse("quickstart", "dpo", "sft={}").config.to_dict()).find("sft") is None
    started = run_config(parse("plan", "llama3_1b", "sft.optimizer.learning_rate=0.5").config.to_dict())
    assert started.find("sft").optimizer.schedule == "linear", "the file says nothing of SFT"


def test_completing_adds_only_defaults():
    for file in FILES:
        module = importlib.import_module(f"configs.{file}")
        for word in module.SHAPES if file == "plan" else OBJECTIVES.keys() - {*BEFORE, "rationale_dpo"}:
            bare, whole = module.get_config(word), complete(module.get_config(word), file)
            for config in (bare, whole):
                config.unlock()
                for path, value in (field.split("=") for field in NEEDED.get(file, ())):
                    config.update_from_flattened_dict({path: int(value) if value.isdigit() else value})
            bare.update({name: {} for name in ("data", "rows") if name not in bare})
            bare.loss = {**OBJECTIVES[bare.objective].options, **bare.get("loss", {})}
            assert run_config(bare.to_dict()) == run_config(whole.to_dict()), f"{file}:{word}"


def test_files_state_only_what_differs_from_the_defaults():
    """With some objective or shape; others state it to show what it is."""
    for file in FILES:
        module, differing, said = importlib.import_module(f"configs.{file}"), set(), set()
        for word in module.SHAPES if file == "plan" else OBJECTIVES.keys() - BEFORE:
            values = stated(module.get_config(word).to_dict())
            for path, field in (*walk(StageConfig), *walk(SamplingConfig, "sampling.")):
                value = functools.reduce(lambda at, name: (at or {}).get(name), path.split("."), values)
                if value is not None and field.kind in LEAVES:
                    said.add(path)
                    differing |= {path} if field.default is REQUIRED or value != field.default else set()
        assert said == differing, f"configs/{file}.py"


@pytest.mark.parametrize("file", ["finetune", "quickstart"])
def test_a_smoke_run_is_four_steps_of_anything(file):
    full, smoke = (as_it_is(file, word) for word in ("dpo", "dpo,smoke"))
    assert [stage.config.train.steps for stage in smoke.stages] == [4] * len(full.stages)
    assert all(warmup_of(stage.config.optimizer, 4) == (1, 1) for stage in smoke.stages)
    assert (smoke.stage.loss, smoke.stage.rows, smoke.stage.objective) == (full.stage.loss, full.stage.rows, "dpo")
    assert smoke.sampling.prompts == 4


def test_adapters_have_their_own_learning_rate():
    alone, both = as_it_is("finetune", "kto,lora").stage, as_it_is("finetune", "kto,lora,smoke").stage
    assert (alone.objective, alone.lora.rank, alone.optimizer.learning_rate) == ("kto", 16, 5e-4)
    assert (both.lora.rank, both.optimizer.learning_rate, both.train.steps) == (16, 5e-4, 4)


def test_the_document_is_up_to_date():
    spec = importlib.util.spec_from_file_location("write_config", ROOT / "docs" / "write_config.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (ROOT / "docs" / "config.md").read_text()
    assert text == script.document(), "run: python -m docs.write_config"
    rounds = len(list(walk(RoundsConfig)))
    assert text.count("\n| `") == len(FIELDS) + 1 + 3 + rounds, "every field, `loss`, of the samples and of rounds"


def test_the_command_of_rounds_reads_their_options_from_every_file():
    """With their defaults where a file says nothing of them; others refuse the section by name."""
    for file, given in (("rounds", ()), ("quickstart", ()), ("finetune", NEEDED["finetune"])):
        flagged = ("rounds.select=rso(count=4)", "rounds.samples=6", "rounds.scorer=logp", "rounds.temperature=0.5")
        whole = parse(file, "dpo", *given, *flagged, sections={"rounds": RoundsConfig}).config.to_dict()
        rounds = build(RoundsConfig, whole.pop("rounds"), "config.rounds")
        assert (rounds.select, rounds.samples, rounds.scorer, rounds.temperature) == ("rso(count=4)", 6, "logp", 0.5)
        assert rounds.max_new_tokens == (64 if file == "rounds" else 256) and rounds.reference == "previous"
        run_config(whole)
    with pytest.raises(flags.Error, match="config.rounds is not an option"):
        parse("rounds", "dpo")
    small = importlib.import_module("configs.rounds").get_config("ipo,smoke")
    assert (small.objective, small.train.steps, small.rounds.scorer, small.loss.to_dict()) == (
        "ipo",
        2,
        "mean_logp",
        {},
    )
    text = help_text(sections={"rounds": RoundsConfig})
    assert "rounds.samples=8 (at least 2): responses to each prompt" in text


def test_every_file_opens_with_what_it_is():
    for file in (*FILES, "papers"):
        text = importlib.import_module(f"configs.{file}").__doc__
        headings = re.findall(r"^([A-Z]+)  ", text, re.MULTILINE)
        assert headings == ["PAPER", "RESULT", "HARDWARE", "TIME", "COMMAND", "DATA"]
        assert "from configs" not in (ROOT / f"configs/{file}.py").read_text(), "can be read alone"


def test_the_recorded_config_is_whole_and_means_the_same(tmp_path):
    values = parse("quickstart", "dpo", "optimizer.mu_dtype=bfloat16").config.to_dict()
    record_config(values, tmp_path)
    record_config(values, tmp_path)
    text = (tmp_path / "config.json").read_text()
    for name in ("mu_dtype", "weight_decay", "keep_checkpoints", "rope_scaling"):
        assert f'"{name}"' in text
    assert re.search(r'"mu_dtype": "bfloat16"', text)


@pytest.mark.slow
def test_help_lists_fields_with_values_ranges_and_meanings():
    arguments = ["-m", "experiments.prepare", "--config=configs/finetune.py:dpo", "--help"]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    text = " ".join(done.stdout.split())
    assert "rows.window=4096 (at least 1): trees packed together by first-fit-" in text
    assert "optimizer.learning_rate=5e-07 (at least 0)" in text and "loss.beta=0.1: of dpo" in text
    assert "sft.FIELD: the same of the SFT stage before" in text
