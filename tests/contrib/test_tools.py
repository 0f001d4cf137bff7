"""The tools' registry and page, the checks of their columns, and the files that every one of them writes."""

import json

import matplotlib.image
import numpy as np
import pytest

from docs import write_analysis
from prefjax.contrib.output import ToolOutput, write_output
from prefjax.contrib.table import Table
from prefjax.contrib.tools import TOOLS
from prefjax.registry import REQUIRED

RNG = np.random.default_rng(0)
PAIR = RNG.normal(size=(40, 2))
ROWS = Table(
    {
        "policy_logp": PAIR - 20,
        "reference_logp": RNG.normal(size=(40, 2)) - 20,
        "length": RNG.integers(3, 9, (40, 2)),
        "proportion": RNG.uniform(0.5, 1, 40),
        "score": PAIR,
        "subset": ["easy", "hard"] * 20,
        "reward": RNG.normal(size=(40, 8)),
        "helpfulness": RNG.integers(1, 6, (40, 4)),
        "honesty": RNG.integers(1, 6, (40, 4)),
        "embedding": RNG.normal(size=(40, 2, 6)),
        "responses": [["a " * int(n), "b " * int(m)] for n, m in RNG.integers(1, 30, (40, 2))],
        "before": RNG.uniform(size=40),
        "after": RNG.uniform(size=40),
        "dimension": [str(place) for place in range(40)],
        "first": [f"r{i}" for i in range(5) for j in range(5) if i != j] * 2,
        "second": [f"r{j}" for i in range(5) for j in range(5) if i != j] * 2,
        "probability": RNG.uniform(size=40),
    }
)
OPTIONS = {
    "ranking_accuracy": dict(reference="reference_logp", length="length", proportion="proportion"),
    "best_of_n": dict(gold="reward"),
    "mini_best_of_n": dict(size=2, loops=4, threshold=1.0),
    "aspect_conflict": dict(aspects=("helpfulness", "honesty")),
    "preference_factors": dict(text=("words",), columns=("length",)),
    "sparse_features": dict(features=4, active=1, epochs=2),
    "pairwise_ranking": dict(beam=4),
}


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_writes_a_table_numbers_and_a_plot(name, tmp_path):
    output = TOOLS[name].apply(ROWS, **OPTIONS.get(name, {}))
    path = write_output(tmp_path / "new", name, output, "python -m experiments.analyze")
    text = path.read_text()
    assert text.startswith(f"# {output.headline}\n") and "| --- |" in text and f"]({name}.png)" in text
    values = json.loads((tmp_path / "new" / f"{name}.json").read_text())
    assert values["tool"] == name and len(values) > 3
    image = matplotlib.image.imread(tmp_path / "new" / f"{name}.png")
    assert min(image.shape[:2]) > 100 and image[..., :3].std() > 0.05


@pytest.mark.parametrize("name", [name for name, tool in TOOLS.items() if not tool.records])
def test_every_tool_names_a_column_that_is_missing(name):
    with pytest.raises(ValueError, match="there is no column '.*'; there are other"):
        TOOLS[name].apply(Table({"other": [1]}), **OPTIONS.get(name, {}))


def test_options_have_types_and_the_page_is_current():
    for tool in TOOLS.values():
        some = {name: ("x",) for name, default in tool.options.items() if default is REQUIRED}
        assert list(tool.check(some)) == list(tool.options)
        with pytest.raises(ValueError, match=f"{tool.name} takes no option 'colour'"):
            tool.check(some | {"colour": 1})
        assert set(tool.response_columns) <= set(tool.options)
    assert TOOLS["aspect_conflict"].options == {"aspects": REQUIRED}
    assert write_analysis.PAGE.read_text() == write_analysis.render(), "run python -m docs.write_analysis"


@pytest.mark.parametrize(
    "read, value, message",
    [
        ("numbers", "1", "row 2: must be a finite number, got '1'"),
        ("numbers", float("nan"), "must be a finite number, got nan"),
        ("numbers", None, "must be a finite number, got None"),
        ("lists", [1, float("inf")], "must be a list of finite numbers"),
        ("lists", [], "must be a list of finite numbers"),
        ("lists", "12", "must be a list of finite numbers"),
        ("pairs", [1, 2, 3], r"must be two finite numbers, \[chosen, rejected\], got \[1, 2, 3\]"),
        ("pairs", 1, "must be two finite numbers"),
        ("vector_pairs", [[1, 2], [1]], "must be two vectors"),
        ("vector_pairs", [[1.0, 2.0, 3.0]] * 2, "row 2: 3 numbers, row 1 has 2"),
        ("vector_pairs", [[1.0, float("nan")]] * 2, "must be two vectors"),
        ("labels", ["a"], "must be a text or a number"),
        ("labels", None, "must be a text or a number, got None"),
    ],
)
def test_values_that_are_none_are_refused_with_their_row(read, value, message):
    good = {"numbers": 1, "lists": [1], "pairs": [1, 2], "vector_pairs": [[1.0, 2.0]] * 2, "labels": "a"}[read]
    with pytest.raises(ValueError, match=f"column 'x', .*{message}|column 'x', {message}"):
        getattr(Table({"x": [good, value]}), read)("x")


def test_columns_are_read_as_they_are():
    rows = Table({"x": [True, 0.5], "y": [[1, 2], [3, 4]], "z": np.arange(8.0).reshape(2, 2, 2), "name": ["b", 2.0]})
    assert rows.numbers("x").tolist() == [1.0, 0.5] and rows.pairs("y").tolist() == [[1, 2], [3, 4]]
    assert rows.vector_pairs("z").shape == (2, 2, 2) and rows.labels("name") == ["b", "2"]
    groups = rows.groups("name")
    assert list(groups) == ["b", "2"] and groups["2"].numbers("x").tolist() == [0.5] and len(groups["b"]) == 1
    assert list(rows.groups(None)) == ["all"]
    with pytest.raises(ValueError, match="as many rows as each other"):
        Table({"x": [1], "y": [1, 2]})
    with pytest.raises(ValueError, match="there are no rows"):
        Table({})


def test_a_finding_without_a_plot_has_no_picture(tmp_path):
    output = ToolOutput("One", ["text"], {"share": np.float64(0.5), "bad": float("nan"), "array": np.arange(2)}, None)
    text = write_output(tmp_path, "name", output, "command").read_text()
    assert "png" not in text and not (tmp_path / "name.png").exists()
    values = json.loads((tmp_path / "name.json").read_text())
    assert values["share"] == 0.5 and values["bad"] is None and values["array"] == [0, 1]
