"""Registries: every module's entries found without a list, errors with the names near, and options by annotation."""

import sys
from pathlib import Path
from typing import Literal

import pytest

from prefjax.contrib.tools import TOOLS
from prefjax.data.datasets import DATASETS
from prefjax.data.methods import METHODS
from prefjax.losses import OBJECTIVES
from prefjax.registry import REQUIRED, Entry, FunctionRegistry

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "data method": """
        aepo best_against_few bradley_terry_labels bradley_terry_targets column_window complete_comparisons
        conditioned_pairs delta_pairs diverse_subset easiest flip_labels fold join margin_window pairs pass_fail
        reward_augmented reward_positions route rso score_window self_label subset variance_window""",
    "tool": """
        aspect_conflict best_of_n mini_best_of_n pairwise_ranking performance_falls preference_distinguishability
        preference_factors ranking_accuracy sparse_features subset_accuracy""",
    "dataset": """
        capybara_dpo codeprefbench coig_p community_alignment evalbiasbench helpsteer2 helpsteer3 hh_rlhf kto_mix
        metamath_dpo multipref offsetbias orca_dpo_pairs rpr search_arena shp skywork_reward tldr tulu_2_5
        ultrafeedback ultrafeedback_binarized ultramedical wildfeedback""",
    "objective": """
        alphapo aot aot_unpaired apo_down apo_zero apo_zero_unpaired bco bco_pair bt bt_margin bt_ranking cal_dpo cdpo
        cpo discopop dpo dpo_norm dpo_rw dpop dro dro_p exo_pair exo_rw fdpo fdpo_js gpm gpo gpo_score hypo infonca ipo
        kto ld_dpo lipo_lambda margin_dpo mmpo nca nca_pair odpo orpo pl_dpo pl_ranking pmpo r_dpo rationale_dpo rdpo
        reward_rpo rpo_nll rso_hinge rso_hinge_raw rso_sigmoid sampo sft simpo slic slic_list soft_ce sparsepo sppo
        target_dpo tdpo1 tdpo2 two_d_dpo ulma ulma_binary ulma_continuous wpo
        beta_dpo npo simnpo simper""",
}
COMMANDS = """
    analyze annotate combine curate decompose evaluate export generate plan prepare report rounds run score train
    zoo"""


@pytest.mark.parametrize("registry", (METHODS, TOOLS, DATASETS, OBJECTIVES), ids=lambda registry: registry.kind)
def test_names_that_users_know_are_there(registry):
    assert set(NAMES[registry.kind].split()) <= set(registry)
    assert all(entry.name == name for name, entry in registry.items())


def test_commands_that_users_know_are_there():
    for name in COMMANDS.split():
        assert '\nif __name__ == "__main__":' in (ROOT / f"experiments/{name}.py").read_text(), name


ENTRIES = """
from {package} import ADD
from {package} import {other}

@ADD(loud=True)
def {name}b(x): ...

@ADD()
def {name}a(x): ...
"""


class Loud(Entry):
    def __init__(self, apply, loud=False):
        super().__init__(apply)
        object.__setattr__(self, "loud", loud)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    folder = tmp_path / "invented_things"
    folder.mkdir()
    registry = FunctionRegistry(Loud, kind="thing", package=folder.name, page="docs/things.md")
    (folder / "__init__.py").write_text("")
    for name, other in ("zy"), ("yz"):
        (folder / f"{name}.py").write_text(ENTRIES.format(package=folder.name, name=name, other=other))
    monkeypatch.syspath_prepend(tmp_path)
    __import__(folder.name).ADD = registry.register
    yield registry
    for module in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[module]


@pytest.mark.parametrize("first", ["", ".z"])
def test_modules_of_the_package_are_found_in_order_whoever_was_imported_first(registry, first):
    __import__(f"invented_things{first}")

    @registry.register()
    def apart(x): ...

    assert list(registry) == ["yb", "ya", "zb", "za", "apart"] and len(registry) == 5
    assert [entry.loud for entry in registry.values()] == [True, False, True, False, False]
    assert registry["apart"].apply is apart and "nothing" not in registry and registry.get("nothing") is None


def test_a_name_is_given_once_except_in_a_notebook(registry):
    def yb(x): ...

    with pytest.raises(ValueError, match="two of kind 'thing' are named 'yb': in invented_things.y and in elsewhere"):
        registry.add(Loud(yb), "invented_things.y")
        registry.add(Loud(yb), "elsewhere")
    registry = FunctionRegistry(Loud, kind="thing", package="json", page="")
    for loud in (False, True):
        registry.add(Loud(yb, loud), "__main__")
    assert registry["yb"].loud
    with pytest.raises(ValueError, match="two of kind"):
        registry.add(Loud(yb), "elsewhere")


def test_an_unknown_name_lists_what_is_near():
    with pytest.raises(
        ValueError, match="no data method named 'flip_label'; near it: flip_labels, self_label .docs/data_methods"
    ):
        METHODS.find("flip_label")
    with pytest.raises(ValueError) as error:
        TOOLS.find("qqq")
    assert all(name in str(error.value) for name in TOOLS)
    assert METHODS.find("rso") is METHODS["rso"]
    with pytest.raises(KeyError):
        METHODS["flip_label"]


def options(
    records,
    plain=1,
    *,
    share: float,
    count: int | None = None,
    rule: Literal["one", "two"] = "one",
    sizes: tuple[int, ...] = (),
    weights: tuple[float, ...] = (),
    names: tuple[str, ...] = ("a",),
    loud: bool = False,
):
    """Options of every type."""


def test_options_are_completed_and_become_what_their_annotations_say():
    entry = Entry(options)
    assert entry.options["share"] is REQUIRED and "plain" not in entry.options
    values = entry.check({"share": 1, "sizes": [2, 4], "weights": [1, 0.5], "names": ["x"], "rule": "two"})
    assert values == dict(share=1.0, count=None, rule="two", sizes=(2, 4), weights=(1.0, 0.5), names=("x",), loud=False)
    assert type(values["share"]) is float and type(values["weights"][0]) is float


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "options needs the option 'share'"),
        ({"share": 1, "colour": 2}, "options takes no option 'colour'; it takes share, count, rule"),
        ({"share": True}, r"options\(share=...\): True must be a number"),
        ({"share": 1, "count": 2.0}, "2.0 must be an integer or None"),
        ({"share": 1, "rule": "three"}, "'three' must be 'one' or 'two'"),
        ({"share": 1, "sizes": [1, 2.0]}, r"\[1, 2.0\] must be a list of integers"),
        ({"share": 1, "weights": ["a"]}, "must be a list of numbers"),
        ({"share": 1, "names": "a"}, "must be a list of texts"),
        ({"share": 1, "loud": 1}, "1 must be True or False"),
    ],
)
def test_options_that_do_not_fit_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        Entry(options).check(given)


def test_text_is_read_as_entries_with_all_their_options():
    read = METHODS.parse("subset(size=1) | pairs | delta_pairs(model='m',\n strong='a', weak=('b'))")
    assert [(entry.name, options) for entry, options in read] == [
        ("subset", dict(size=1, share=None, seed=0)),
        ("pairs", dict(rule="best_worst")),
        ("delta_pairs", dict(model="m", strong="a", weak="b")),
    ]
    assert METHODS.parse(" ") == []
