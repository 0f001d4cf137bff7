"""The papers' page and the errata: complete, certified by what is there, and no title that nobody read."""

import re

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from ml_collections import ConfigDict

from configs import finetune, quickstart
from docs import write_paper_index
from docs.evidence import ROOT, is_there
from experiments.tables import load_table, running, table_ids
from experiments.tables.harness import CPU
from prefjax.contrib.tools import TOOLS
from prefjax.data.datasets import DATASETS
from prefjax.data.methods import METHODS
from prefjax.losses import COMPOSITIONS, OBJECTIVES
from prefjax.losses.wrappers import WRAPPERS

PAGE = write_paper_index.PAGE.read_text()
ITEMS = write_paper_index.items()
ALL = list(write_paper_index.sources())


def ours(registry):
    """Tests before this one may have brought entries of their own."""
    return {name for name, entry in registry.items() if entry.apply.__module__.startswith("prefjax.")}


def test_the_page_is_current():
    assert write_paper_index.render() == PAGE, "run python -m docs.write_paper_index"


def test_every_paper_that_prefjax_names_stands_there():
    on_page = set(re.findall(r"^\| \[([\d.]+)\]", PAGE, re.MULTILINE))
    assert write_paper_index.named() <= on_page and len(on_page) >= 60


def test_a_number_is_read_wherever_a_text_ends_it():
    text = "arXiv 2305.18290, and 2212.04089. Not 0.2305 or 20240.12345; arXiv 0912.3599 (2009)"
    assert write_paper_index.numbers(text) == ["2305.18290", "2212.04089", "0912.3599"]


def test_everything_in_the_registries_stands_there():
    said = {(item.kind, item.what.strip("`")) for _, item in ALL}
    assert {name for kind, name in said if kind == "objective"} == ours(OBJECTIVES)
    assert {name for kind, name in said if kind == "method"} == ours(METHODS)
    assert {name for kind, name in said if kind == "tool"} == ours(TOOLS)
    for kind, registry in (("wrapper", WRAPPERS), ("sum", COMPOSITIONS), ("dataset", DATASETS)):
        assert {name for said_kind, name in said if said_kind == kind} == set(registry)


def test_nothing_of_the_registries_is_uncertified_and_what_certifies_is_there():
    evidence = [text for _, item in ALL for text in item.certified]
    evidence += [text for known in write_paper_index.FACTS["elsewhere"].values() for text in known["certified"]]
    assert all(item.certified for _, item in ALL)
    assert [text for text in evidence if not is_there(text)] == []
    for how in (
        "test_every_objective.py::test_value_and_gradient_are_those_of_the_paper",
        "test_identities.py::test_identity",
    ):
        assert is_there(f"tests/losses/{how}")


def test_evidence_that_is_gone_is_noticed():
    assert is_there("tests/losses/test_identities.py::fdpo tends to dpo")
    for gone in (
        "test_identities.py::fdpo tends to ipo",
        "test_identities.py::test_identities",
        "test_gone.py::test_identity",
    ):
        assert not is_there(f"tests/losses/{gone}")


def test_verdicts_are_those_of_the_committed_runs():
    for table_id in table_ids():
        verdict, size = running.committed(table_id)["verdict"], load_table(table_id).TABLE.size
        command = f"`python -m experiments.run {table_id}{'' if size == CPU else ':' + size}`"
        assert f"{verdict} (`{table_id}`" in PAGE and command in PAGE


def test_titles_were_read_somewhere():
    facts = write_paper_index.FACTS
    assert all(title and how in facts["read"] for title, how in facts["titles"].values())
    assert set(facts["titles"]) <= set(ITEMS), "titles of papers that are not here"


@pytest.mark.parametrize("module", [quickstart, finetune], ids=["quickstart", "finetune"])
def test_configs_of_objectives_exist(module):
    name = module.__name__.rpartition(".")[2]
    arguments = re.findall(rf"`configs/{name}\.py:([^`]+)`", PAGE)
    assert arguments and all(isinstance(module.get_config(argument), ConfigDict) for argument in arguments)


ERRATA = (ROOT / "docs/errata.md").read_text()


def test_evidence_of_the_errata_is_there():
    """Every row that says something of a paper or a code names a test or a table that shows it."""
    rows = [line for line in ERRATA.splitlines() if line.startswith(("| [", "| code: "))]
    assert len(rows) >= 20
    for row in rows:
        tests, tables = re.findall(r"`(tests/[^`]+::[^`]+)`", row), re.findall(r"table `([^`]+)`", row)
        assert tests or tables, row
        assert all(map(is_there, tests)) and set(tables) <= set(table_ids()), row


def test_what_the_errata_say_of_d3_is_what_the_committed_run_says():
    result = running.committed("ipo.fig1_fig2")
    (claim,) = [claim for claim in result["claims"] if claim["name"] == "erratum_d3"]
    assert claim["holds"] and "claim `erratum_d3`" in ERRATA


def test_the_worst_of_five_normal_rewards_is_no_mu_minus_two_sigma():
    """-1.163, by the density of the least of five."""
    x = np.linspace(-8, 8, 20_001)
    density = 5 * scipy.stats.norm.pdf(x) * scipy.stats.norm.sf(x) ** 4
    assert scipy.integrate.trapezoid(x * density, x) == pytest.approx(-1.163, abs=1e-3)
