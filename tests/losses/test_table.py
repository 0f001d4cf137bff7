"""The table of objectives is the one its script writes, and every docstring has the form that the script reads."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from prefjax.losses import OBJECTIVES

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("write_objectives", DOCS / "write_objectives.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_table_is_the_generated_one(script):
    assert (DOCS / "objectives.md").read_text() == script.table(), "run: python -m docs.write_objectives"


def test_every_objective_is_in_the_table_once(script):
    text = script.table()
    ours = [name for name, one in OBJECTIVES.items() if one.apply.__module__.startswith("prefjax.")]
    assert len(ours) >= 67
    for name in ours:  # tests before this one may have brought their own
        assert text.count(f"| `{name}`<br>") == 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_docstring_gives_formula_source_tokens_start_and_names_elsewhere(script, name):
    objective, facts = OBJECTIVES[name], script.facts(OBJECTIVES[name])
    assert all(facts.values())
    assert "arXiv" in facts["Source"] or name in ("cdpo", "sft")  # a note outside arXiv; maximum likelihood
    assert any(word in facts["Tokens"] for word in (["last"] if objective.requires.reward_head else ["mean", "summed"]))
    counts_tokens = name == "r_dpo" or "token_logp" in objective.requires.inputs
    assert ("length" in objective.requires.inputs) <= ("mean" in facts["Tokens"] or counts_tokens)
    assert "nats" in objective.apply.__doc__ or "nats" in importlib.import_module(objective.apply.__module__).__doc__
    assert (facts["Start"] == "depends on the model") == (objective.start is None) or name == "pmpo"


def test_a_docstring_of_another_form_is_refused_by_name(script):
    def shapeless():
        """Some loss. It is good."""

    with pytest.raises(ValueError, match="docstring of shapeless must begin"):
        script.facts(dataclasses.replace(OBJECTIVES["dpo"], apply=shapeless))
