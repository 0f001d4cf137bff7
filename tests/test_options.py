"""Options: every field of every config dataclass has a meaning and a range that every instance is held to."""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping

import pytest

from prefjax.data.methods import METHODS
from prefjax.losses import OBJECTIVES
from prefjax.models import ModelConfig
from prefjax.models.rotary import RopeScaling
from prefjax.options import REQUIRED, Option, Range, build, check_ranges, option, options_of
from prefjax.policies.rounds import RoundsConfig
from prefjax.registry import REQUIRED as REQUIRED_OPTION
from prefjax.training.config import StageConfig
from prefjax.training.loop import LoopConfig
from prefjax.training.runs import SamplingConfig, run_config, train_run

NAN, INF = float("nan"), float("inf")
# A legal instance of every dataclass that has required fields.
EXAMPLES = {
    ModelConfig: ModelConfig(0, 1, 8, 2, 1, 4, 8),
    RopeScaling: RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
    LoopConfig: LoopConfig(steps=1),
    RoundsConfig: RoundsConfig("gold"),
}


def dataclasses_of(cls, path):
    yield cls, path
    for field in options_of(cls):
        if dataclasses.is_dataclass(field.kind):
            yield from dataclasses_of(field.kind, f"{path}{field.name}.")


CONFIGS = dict([*dataclasses_of(StageConfig, ""), (SamplingConfig, "sampling."), (RoundsConfig, "rounds.")])
FIELDS = [(cls, field) for cls in CONFIGS for field in options_of(cls) if not dataclasses.is_dataclass(field.kind)]


def example(cls):
    if cls is StageConfig:
        names = {field.name: field.kind for field in options_of(cls) if field.default is REQUIRED}
        return StageConfig("dpo", {}, **{name: example(kind) for name, kind in names.items() if name in NESTED})
    return EXAMPLES.get(cls) or cls()


NESTED = {field.name for field in options_of(StageConfig) if dataclasses.is_dataclass(field.kind)}


def beyond(field):
    """Numbers just outside of a field's range, and those that are none."""
    low, high = field.range.at_least, field.range.at_most
    yield from () if low is None else (field.kind(low - 1),)
    yield from () if high is None else (field.kind(high + 1),)
    yield from (field.kind(bound) for bound in (field.range.above, field.range.below) if bound is not None)
    yield from (NAN, INF, -INF) if field.kind is float else ()


def test_all_config_dataclasses_are_here():
    names = {cls.__name__ for cls in CONFIGS}
    assert names == {
        *("StageConfig", "DataConfig", "RecordFormat", "EncodingPolicy", "WorldOptions", "RowsConfig", "ModelConfig"),
        *("RopeScaling", "OptimizerConfig", "LoopConfig", "ReferenceConfig", "MeshConfig", "LoraConfig", "RewardHead"),
        *("SamplingConfig", "RoundsConfig"),
    }


def test_these_options_may_change_when_a_run_is_continued():
    """A new option decides, unless somebody says here that it does not."""
    free = {f"{path}{field.name}" for cls, path in CONFIGS.items() for field in options_of(cls) if not field.decides}
    assert free == {
        *("init_from", "head_chunk", "check_start", "mesh.data", "mesh.fsdp", "mesh.tensor", "model.remat"),
        *("model.attention", "reference.init_from", "reference.cache"),
        *(f"data.{name}" for name in ("train", "eval", "tokenizer", "directory", "tfds_dir", "manual_dir", "workers")),
        *(
            f"train.{name}"
            for name in ("steps", "epochs", "log_every", "eval_every", "eval_samples", "checkpoint_every")
        ),
        *("train.keep_checkpoints", "train.profile_steps", "train.writers", "train.skip_non_finite"),
        *(f"sampling.{name}" for name in ("prompts", "max_new_tokens", "temperature")),
        "rounds.count",
    }


@pytest.mark.parametrize("cls,field", FIELDS, ids=lambda one: getattr(one, "__name__", getattr(one, "name", "")))
def test_every_field_is_described_and_held_to_its_range(cls, field):
    assert field.meaning and not field.meaning.endswith("."), "a meaning is a phrase"
    assert field.kind in (bool, int, float, str, tuple, Mapping)
    assert bool(field.range.bounds()) == (field.kind in (int, float)), "every number has a range, and only numbers"
    base, name = example(cls), f"{CONFIGS[cls]}{field.name}="
    wrong = beyond(field) if field.range.bounds() else ["no such thing"] * bool(field.range.choices)
    for value in wrong:
        if value in field.range.choices:
            continue
        with pytest.raises(ValueError, match=f"^{re.escape(name)}.*: (set it to|choose)") as refused:
            dataclasses.replace(base, **{field.name: (value,) if field.kind is tuple else value})
        assert str(field.range) in str(refused.value)
    if field.default is not REQUIRED:
        defaults = field.default if field.kind is tuple else (field.default,)
        assert field.optional or all(value in field.range for value in defaults)


def test_ranges_in_words():
    assert str(Range()) == "" and "anything" in Range() and None in Range()
    assert str(Range((-1,), at_least=1)) == "-1, or at least 1"
    assert [value in Range((-1,), at_least=1) for value in (-2, -1, 0, 1, 2)] == [False, True, False, True, True]
    assert not any(value in Range(at_least=0) for value in (NAN, INF, -INF, True))
    assert str(Range(above=0, below=1)) == "above 0 and below 1" and 0.5 in Range(above=0, below=1)
    assert str(Range(("a", "b"))) == "a, b" and "c" not in Range(("a", "b"))


def test_a_mapping_becomes_a_dataclass_or_the_error_names_the_field():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        size: int = option(REQUIRED, "how large", at_least=1)
        share: float | None = option(None, "of the whole", at_least=0, at_most=1)

        def __post_init__(self):
            check_ranges(self, "inner")

    @dataclasses.dataclass(frozen=True)
    class Outer:
        names: tuple[str, ...] = option((), "of something", choices=("a", "b"))
        inner: Inner | None = option(None, "inside")

        def __post_init__(self):
            check_ranges(self, "")

    assert build(Outer, {}, "config") == Outer()
    assert build(Outer, {"names": ["a"], "inner": {"size": 3, "share": 1}}, "config") == Outer(("a",), Inner(3, 1.0))
    assert build(Outer, {"names": None, "inner": {"size": None, "share": None}}, "config") == Outer(), "None: not said"
    for values, message in (
        ({"inner": {"share": 0.5}}, "config.inner.size is missing: how large"),
        ({"inner": {"sizes": 3}}, "config.inner.sizes is not an option: did you mean config.inner.size?"),
        ({"inner": {"size": 2.5}}, "config.inner.size=2.5 must be of type int"),
        ({"inner": {"size": 0}}, "inner.size=0: set it to at least 1"),
        ({"names": ["c"]}, "names=('c',): choose of a, b"),
        ({"names": ["a", 1]}, "names=('a', 1) must be a tuple of texts"),
        ({"zzz": 1}, "config.zzz is not an option"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            build(Outer, values, "config")


def ranges_in(hint):
    """Ranges of the numbers that an annotation lets pass, and how many kinds of numbers there are."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    found = [typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is typing.Annotated]
    return found, sum(kind in (int, float) for kind in kinds)


@pytest.mark.parametrize("registry", [OBJECTIVES, METHODS])
def test_every_number_of_an_objective_or_a_method_has_a_range(registry):
    legal = {str: "x", float: 0.25, int: 2, tuple: ("x",)}
    # Tests before this one may have brought entries of their own.
    for entry in (entry for entry in registry.values() if entry.apply.__module__.startswith("prefjax.")):
        hints = typing.get_type_hints(entry.apply, include_extras=True)
        for name, default in entry.options.items():
            found, bare = ranges_in(hints[name])
            assert not bare, f"{entry.name}({name}) has a number without a range"
            for kind, allowed in found:
                assert default in (None, REQUIRED_OPTION) or isinstance(default, tuple | str) or default in allowed
                for value in beyond(Option(name, kind, None, False, default, "", allowed)):
                    if value in allowed:  # one less than the least of float32 is the same number
                        continue
                    plain = lambda hint: ranges_in(hint)[0][0][0] if ranges_in(hint)[0] else hint
                    others = {
                        other: legal[typing.get_origin(plain(hints[other])) or plain(hints[other])]
                        for other, given in entry.options.items()
                        if given is REQUIRED_OPTION
                    }
                    message = rf"^{entry.name}\({name}=...\): {value} is out of range: set it to {allowed}$"
                    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
                        entry.check(others | {name: value})


def test_what_an_option_cannot_be_is_said_before_data_is_read(tmp_path):
    with pytest.raises(ValueError, match=r"^loss: dpo\(beta=...\): -0.1 is out of range: set it to above 0"):
        dataclasses.replace(example(StageConfig), loss={"beta": -0.1})
    values = {"objective": "dpo", "loss": {}, "data": {"train": "nowhere.jsonl"}, "rows": {}, "train": {"steps": 5}}
    values |= {"model": dataclasses.asdict(EXAMPLES[ModelConfig]), "optimizer": {}}
    for start, fix in (("owner/model", "--config.init_from=hf:owner/model downloads"), (str(tmp_path), "")):
        with pytest.raises(ValueError, match=f"^config.init_from='{start}' is neither .*{fix}"):
            run_config(values | {"model": {}, "init_from": start})
    with pytest.raises(ValueError, match="^config.sft: optimizer.clip_norm=-1.0: set it to at least 0"):
        run_config(values | {"sft": {"optimizer": {"clip_norm": -1}}})
    for optimizer, message in (
        (
            {"warmup_steps": 7, "warmup_ratio": 0.1},
            "optimizer.warmup_steps=7 and optimizer.warmup_ratio=0.1 both say how long the warm-up is: set one of them",
        ),
        ({"name": "sgd", "b1": 0.5}, "optimizer sgd takes no b1"),
        ({"final_scale": 0.5}, "optimizer.final_scale has no effect"),
    ):
        for name in ("", "sft"):
            stages = {"optimizer": optimizer} if not name else {"sft": {"optimizer": optimizer}}
            with pytest.raises(ValueError, match=f"^{'config.sft: ' if name else ''}{message}"):
                train_run(run_config(values | stages), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_objectives_that_options_name_exist():
    assert example(StageConfig).objective in OBJECTIVES
