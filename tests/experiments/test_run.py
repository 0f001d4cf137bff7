"""The command and the harness of the paper tables, on a made-up table whose every number is known."""

import ast
import json
import re
from pathlib import Path
from types import ModuleType

import jax
import ml_collections
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import run, tables
from experiments.tables import harness, verdicts
from experiments.tables.harness import Claim, Results, Row, Setting, Table, UsageError
from prefjax.losses import OBJECTIVES

TABLES = Path(tables.__file__).parent

GOLDEN = """\
| loss  | shown | paper | truth  | ours (2 seeds, 95 % CI) | verdict        |
| ----- | ----- | ----- | ------ | ----------------------- | -------------- |
| first | x     | one   | 1.0000 | 1.0000 ± 1.2706         | EXACT          |
| other | x     | —     | 0.0000 | 0.5000 ± 0.0000         | NOT REPRODUCED |"""


@pytest.fixture
def toy(tmp_path, monkeypatch) -> ModuleType:
    """A table `toy.table` with two rows and one claim about each; `config.shift` moves the second row's truth."""
    (tmp_path / "paper.toml").write_text(
        '[paper]\nname = "Toy"\narxiv = "0000.00000"\n'
        '[table.seen]\ncell = "one"\nsource = "Table 1"\nsection = "1"\nversion = "v1"\nverified = true\n'
        '[table.unseen]\ncell = "two"\nverified = false\n'
    )

    def get_config(arg=""):
        return ml_collections.ConfigDict({"shift": 0.0})

    def rows(config):
        for row, truth, values in (("first", 1.0, (0.9, 1.1)), ("other", config.shift, (0.5, 0.5))):
            yield Row(row, "truth", "x", None, None, truth)
            for seed, value in enumerate(values):
                yield Row(row, "ours", "x", seed, 0, 7.0)
                yield Row(row, "ours", "x", seed, 10, value)

    def plot(results):
        """Alt text."""
        return Figure()

    def gap(results, setting):
        return abs(results.mean(setting.key, "ours", "x") - results.mean(setting.key, "truth", "x"))

    module = ModuleType("table", "A toy.\n\nCOMMAND  none\nTIME     none\nRESULT   none\n\nThe rest.\n")
    module.__file__ = str(tmp_path / "table.py")
    module.TABLE = Table(shows="Table 1", columns=("truth", "ours"), minutes=0.0, verdict=harness.EXACT)
    module.SETTINGS = (Setting({"loss": "first"}, "x", "seen"), Setting({"loss": "other"}, "x", "unseen"))
    module.CLAIMS = (
        Claim("first_is_true", "the first is true", lambda s: s.key == "first", gap, 0.01),
        Claim("other_is_true", "the other is true", lambda s: s.key == "other", gap, 0.01, harness.SIGN),
    )
    module.get_config, module.run, module.plot = get_config, rows, plot
    monkeypatch.setattr(run, "load_table", lambda table_id: module)
    return module


def _result(toy, **config) -> dict:
    settings = toy.get_config()
    settings.update(config)
    return verdicts.summarize("toy.table", toy, settings, Results(toy.run(settings)), seconds=0.0)


def test_table_is_golden_and_unverified_statements_are_not_shown(toy):
    assert verdicts.markdown_table(_result(toy)) == GOLDEN


def test_exit_status_is_that_of_the_claims(toy, tmp_path, capsys):
    out = tmp_path / "out"
    assert run.main(["toy.table", f"--workdir={out}"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("A toy.\n\nCOMMAND  none\nTIME     none\nRESULT   none\n")
    assert "The rest" not in printed and GOLDEN in printed
    assert "FAILS: the other is true. Worst 0.5 at other, bound 0.01." in printed
    assert "toy.table: NOT REPRODUCED · 1/2 claims hold · rows: 1 EXACT, 1 NOT REPRODUCED" in printed

    assert run.main(["toy.table", f"--workdir={out}", "--config.shift=0.5"]) == 0
    assert "toy.table: EXACT · 2/2 claims hold · rows: 1 EXACT, 1 SIGN" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["config"] == {"shift": 0.5} and result["environment"]["jax"] == jax.__version__
    assert (out / "table.md").read_text() == verdicts.markdown(result)
    lines = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [Row(**line) for line in lines] == list(toy.run(ml_collections.ConfigDict({"shift": 0.5})))
    assert (out / "plot.png").stat().st_size > 0


def test_check_compares_with_the_reference_run(toy, tmp_path, capsys):
    command = ["toy.table", f"--workdir={tmp_path / 'out'}", "--check"]
    assert run.main(command) == 2
    assert "toy.table has no reference run" in capsys.readouterr().err

    toy.get_config = lambda arg="": ml_collections.ConfigDict({"shift": 0.5})
    folder = tmp_path / "reference" / "table"
    folder.mkdir(parents=True)
    reference = _result(toy)

    def check(reference) -> tuple[int, str]:
        (folder / "result.json").write_text(json.dumps(reference))
        status = run.main(command)
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    status, printed = check(reference)
    assert status == 0 and "agrees with the reference run" in printed

    reference["rows"][0]["cells"]["ours"] = {"mean": 1.2, "half_width": 0.19, "seeds": 2}
    status, printed = check(reference)
    assert status == 1 and "first: ours is 1.0000, in the reference 1.2000" in printed

    reference["rows"][0]["cells"]["ours"]["half_width"] = 0.21
    assert check(reference)[0] == 0

    reference["rows"][1]["verdict"] = harness.EXACT
    status, printed = check(reference)
    assert status == 1 and "other: verdict is SIGN, in the reference EXACT" in printed

    reference["config"]["shift"] = 0.0
    status, printed = check(reference)
    assert status == 2 and "shift=0.5 (reference 0.0)" in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give one table of: .*ipo.fig1_fig2"),
        (["nope.nothing"], "no table 'nope.nothing'; there are: .*ipo.fig1_fig2"),
        (["ipo.fig1_fig2:big"], "no argument or :smoke, got :big"),
        (["ipo.fig1_fig2", "--config.stpes=1"], "no config field stpes; there are: .*steps"),
        (["ipo.fig1_fig2", "--config.steps=many"], "config.steps"),
        (["ipo.fig1_fig2", "--chekc"], "chekc"),
        (["ipo.fig1_fig2", "--config.steps", "1"], "write options as --name=value"),
        (["ipo.fig1_fig2", "--config.steps=150"], "config.steps=150 must be a multiple of record_every=100"),
        (["ipo.fig1_fig2", "--config.num_seeds=1"], "config.num_seeds must be at least 2"),
        (["ipo.fig1_fig2", "--config.steps=100", "--check"], r"steps=100 \(reference 18000\)"),
    ],
)
def test_wrong_command_lines_say_what_to_write(argv, message, capsys):
    assert run.main(argv) == 2
    assert re.search(message, capsys.readouterr().err)


def test_list_shows_every_file(capsys):
    assert run.main(["--list"]) == 0
    files = {f"{path.parent.name}.{path.stem}" for path in TABLES.glob("*/*.py") if path.stem != "__init__"}
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == files == set(tables.table_ids())


def test_a_measurement_that_is_no_number_fails_its_claim():
    settings = [Setting({"row": name}, "x") for name in "ab"]
    measured = {"a": 0.0, "b": np.nan}
    claim = Claim("c", "c", lambda s: True, lambda results, s: measured[s.key], at_most=1.0)
    judgement = harness.judge(settings, [claim], Results([]))
    assert judgement.rows == [harness.EXACT, harness.NOT_REPRODUCED] and not judgement.holds
    assert judgement.claims[0][1] == "b"


def test_a_failing_claim_outweighs_one_that_holds_and_every_row_needs_one():
    settings = [Setting({"row": name}, "x") for name in "ab"]
    claims = [
        Claim("all", "", lambda s: True, lambda results, s: 0.0, at_most=1.0),
        Claim("a", "", lambda s: s.key == "a", lambda results, s: 2.0, at_most=1.0, verdict=harness.ORDER),
    ]
    assert harness.judge(settings, claims, Results([])).rows == [harness.NOT_REPRODUCED, harness.EXACT]
    assert harness.judge(settings, claims[::-1], Results([])).rows == [harness.NOT_REPRODUCED, harness.EXACT]
    with pytest.raises(ValueError, match="no claim is about b"):
        harness.judge(settings, claims[1:], Results([]))
    with pytest.raises(ValueError, match="'a' is about no setting"):
        harness.judge(settings[1:], claims, Results([]))


def test_mean_interval_is_students():
    mean, half = harness.mean_interval(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))
    np.testing.assert_allclose(mean, [2.0, 5.0])
    np.testing.assert_allclose(half, [4.302653 / np.sqrt(3), 0.0], rtol=1e-6)  # t(0.975, 2 degrees of freedom)


def test_a_seed_does_not_depend_on_how_many_run():
    def draw(key):
        return jax.random.normal(key, (3,))

    few, many = harness.over_seeds(draw, 2), harness.over_seeds(draw, 5)
    np.testing.assert_array_equal(few, many[:2])
    assert len(np.unique(many)) == 15
    with pytest.raises(UsageError, match="num_seeds"):
        harness.over_seeds(draw, 1)


def test_verified_statements_need_provenance(tmp_path):
    file = tmp_path / "paper.toml"
    fact = '[table.fact]\ncell = "1"\nsource = "Table 2"\nsection = "3"\n'
    file.write_text(fact + "verified = true\n")
    with pytest.raises(ValueError, match=r"\[table.fact\] is verified, so it needs version"):
        harness.load_paper(file)
    file.write_text(fact)
    with pytest.raises(ValueError, match=r"\[table.fact\] needs verified = true or false"):
        harness.load_paper(file)
    file.write_text(fact + 'version = "v1"\nverified = true\n')
    assert harness.load_paper(file)["table"]["fact"]["cell"] == "1"


def _defined_losses(source: str) -> list[str]:
    """Signs that a file defines a loss instead of importing it from prefjax.losses, where the tables certify it."""
    forbidden = {"log_sigmoid", "logsigmoid", "sigmoid", "softplus", "relu", "logaddexp", "expit", "losses"}
    names = set(OBJECTIVES) | {f"{name}_loss" for name in OBJECTIVES}
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.strip("_") in names:
            found.append(node.name)
        if isinstance(node, ast.Attribute) and node.attr in forbidden:
            found.append(node.attr)
        if isinstance(node, ast.ImportFrom) and node.module != "prefjax.losses":
            found += [alias.name for alias in node.names if alias.name in forbidden | names]
    return found


def test_no_table_defines_a_loss():
    found = {str(path): _defined_losses(path.read_text()) for path in TABLES.rglob("*.py")}
    assert len(found) > 5 and not any(found.values()), found
    for source in (
        "def ipo(r, tau): return (r - 1 / (2 * tau)) ** 2",
        "def _dpo_loss(h): return h",
        "def f(h): return -jax.nn.log_sigmoid(h)",
        "from jax.nn import softplus",
        "x = optax.losses.sigmoid_binary_cross_entropy(1, 2)",
    ):
        assert _defined_losses(source), source
