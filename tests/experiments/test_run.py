"""The command and the harness of the paper tables, on a made-up table whose every number is known."""

import ast
import dataclasses
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import jax
import ml_collections
import numpy as np
import pytest
from matplotlib.figure import Figure

from docs import write_reproduction
from experiments import run, tables
from experiments.tables import cells, harness, running, scoreboard, sources, verdicts
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

    def rows(config, cell):
        module.computed.append(cell)
        truth, values = {"first": (1.0, (0.9, 1.1)), "other": (config.shift, (0.5, 0.5))}.get(cell, (0.0, (3.0, 5.0)))
        yield Row(cell, "truth", "x", None, None, truth)
        for seed, value in enumerate(values):
            yield Row(cell, "ours", "x", seed, 0, 7.0)
            yield Row(cell, "ours", "x", seed, 10, value)

    def plot(results):
        """Alt text."""
        return Figure()

    def gap(results, setting):
        return abs(results.mean(setting.key, "ours", "x") - results.mean(setting.key, "truth", "x"))

    module = ModuleType("toy_table", "A toy.\n\nCOMMAND  none\nTIME     none\nRESULT   none\n\nThe rest.\n")
    module.computed = []
    module.__file__ = str(tmp_path / "table.py")
    module.TABLE = Table(shows="Table 1", columns=("truth", "ours"), minutes=0.0, verdict=harness.EXACT)
    module.SETTINGS = (Setting({"loss": "first"}, "x", "seen"), Setting({"loss": "other"}, "x", "unseen"))
    module.CLAIMS = (
        Claim("first_is_true", "the first is true", lambda s: s.key == "first", gap, 0.01),
        Claim("other_is_true", "the other is true", lambda s: s.key == "other", gap, 0.01, harness.SIGN),
    )
    module.PROTOCOL, module.SIZES = {"shift": 0.0}, {"smoke": {"shift": 0.25}, "long": {}, "paper": {}}
    module.cells, module.run, module.plot = lambda config: ["first", "other"], rows, plot
    module.own_settings = lambda name: [Setting({"loss": f"+{name}"}, "x", own=True)]
    monkeypatch.setitem(sys.modules, "toy_table", module)
    for place in (run, running):
        monkeypatch.setattr(place, "load_table", lambda table_id: module)
        monkeypatch.setattr(place, "table_ids", lambda: ["toy.table"], raising=False)
    monkeypatch.chdir(tmp_path)  # where results/cache lies
    return module


def _rows(toy, **config) -> list[Row]:
    settings = ml_collections.ConfigDict({**toy.PROTOCOL, **config})
    return [row for cell in ("first", "other") for row in toy.run(settings, cell)]


def _result(toy, **config) -> dict:
    settings = ml_collections.ConfigDict({**toy.PROTOCOL, **config})
    return verdicts.summarize("toy.table", toy, settings, Results(_rows(toy, **config)), seconds=0.0)


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
    assert [Row(**line) for line in lines] == _rows(toy, shift=0.5)
    assert (out / "plot.png").stat().st_size > 0


def test_check_compares_with_the_reference_run(toy, tmp_path, capsys):
    command = ["toy.table", f"--workdir={tmp_path / 'out'}", "--check"]
    assert run.main(command) == 2
    assert "toy.table has no reference run" in capsys.readouterr().err

    toy.PROTOCOL["shift"] = 0.5
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
        (["ipo.fig1_fig2:big"], "ipo.fig1_fig2 has the sizes :smoke, :cpu, :long, :paper, got :big"),
        (["ipo.fig1_fig2", "--config.stpes=1"], "no config field stpes; there are: .*steps"),
        (["ipo.fig1_fig2", "--config.steps=many"], "config.steps"),
        (["ipo.fig1_fig2", "--chekc"], "chekc"),
        (["ipo.fig1_fig2", "--config.steps", "1"], "write options as --name=value"),
        (["ipo.fig1_fig2", "--config.steps=150"], "config.steps=150 must be a multiple of record_every=100"),
        (["ipo.fig1_fig2", "--config.num_seeds=1"], "config.num_seeds must be at least 2"),
        (["ipo.fig1_fig2", "--config.steps=100", "--check"], r"steps=100 \(reference 18000\)"),
        (["ipo.fig1_fig2", "--rows=+dpo"], "--rows: ipo.fig1_fig2 takes no further objectives; these do: "),
        (["ipo.fig1_fig2", "--rows=dpo"], r"--rows=dpo: rows are added, so write --rows=\+module:loss"),
        (["ipo.fig1_fig2:smoke", "--keep_reference"], "keeps a run at the size :cpu, without --rows"),
        (["ipo.fig1_fig2", "--jobs=0"], "jobs"),
        (["--all", "ipo.fig1_fig2"], "--all runs every table, so ipo.fig1_fig2 cannot stand beside it"),
        (["--all", "--tier=huge"], "tier"),
    ],
)
def test_wrong_command_lines_say_what_to_write(argv, message, capsys):
    assert run.main(argv) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_cell_is_computed_once(toy, tmp_path, monkeypatch, capsys):
    """And again where its config, its source or jax is another; a damaged file is put aside and named."""
    command = ["toy.table", "--workdir=out"]
    run.main(command)
    assert toy.computed == ["first", "other"] and "0 of 2 cells cached" in capsys.readouterr().out
    run.main(command)
    assert toy.computed == ["first", "other"] and "2 of 2 cells cached" in capsys.readouterr().out

    kept = sorted((tmp_path / "results/cache").iterdir())
    for file, harm in zip(kept, ("", "{}"), strict=True):
        file.write_text(harm)
    run.main(command)
    assert sorted(toy.computed[2:]) == ["first", "other"] and "is damaged" in capsys.readouterr().err
    run.main([*command, "--config.shift=1"])
    assert len(toy.computed) == 6
    monkeypatch.setattr(cells, "source_hash", lambda module, own: "another")
    run.main(command)
    assert len(toy.computed) == 8


def test_a_run_that_was_killed_goes_on_at_the_cell_it_lacks(toy, monkeypatch):
    ours = toy.run

    def killed(config, cell):
        if cell == "other":
            raise KeyboardInterrupt
        return ours(config, cell)

    monkeypatch.setattr(toy, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        run.main(["toy.table"])
    monkeypatch.setattr(toy, "run", ours)
    run.main(["toy.table"])
    assert toy.computed == ["first", "other"]


def test_own_objectives_are_rows_without_a_verdict_and_cells_of_their_own(toy, capsys):
    run.main(["toy.table"])
    assert run.main(["toy.table", "--rows=+mine:loss,+dpo", "--config.shift=0.0"]) == 1
    printed = capsys.readouterr().out
    assert toy.computed == ["first", "other", "+mine:loss", "+dpo"]
    assert re.search(r"\| \+mine:loss \| x +\| — +\| 0.0000 +\| 4.0000 ± [\d.]+ +\| — ", printed)
    assert "rows: 2 —, 1 EXACT, 1 NOT REPRODUCED" in printed


def test_keep_reference_and_the_scoreboard(toy, tmp_path, capsys):
    assert running.committed("toy.table")["verdict"] == harness.NOT_RUN
    assert run.main(["--list"]) == 0 and re.match(r"toy.table +NOT RUN +Toy, arXiv", capsys.readouterr().out)
    assert run.main(["toy.table", "--keep_reference"]) == 1
    assert {path.name for path in (tmp_path / "reference/table").iterdir()} == {"result.json", "table.md", "plot.png"}
    capsys.readouterr()
    assert run.main(["--list"]) == 0
    assert re.match(r"toy.table +NOT REPRODUCED \(0 s, here\) +Toy, arXiv", capsys.readouterr().out)
    (tmp_path / "results/toy.table/result.json").unlink()
    assert run.main(["--list"]) == 0
    assert re.match(r"toy.table +NOT REPRODUCED \(0 s\) +Toy, arXiv", capsys.readouterr().out)
    kept = running.committed("toy.table")
    assert 0 <= kept["processor_seconds"] < 60
    counted = scoreboard.page([{**kept, "processor_seconds": 7.4, "seconds": 99.0}])
    assert re.search(r"^\| `toy.table` .* \| 7 \|$", counted, re.MULTILINE)
    page = scoreboard.page([kept])
    assert "| EXACT | 1 | 0 |" in page and "| NOT REPRODUCED | 1 | 1 |" in page
    assert "- `toy.table`, other: the other is true: here 0.5, bound 0.01." in page


def test_all_runs_every_table_at_one_size_and_counts_what_cannot_run(toy, tmp_path, capsys):
    assert run.main(["--all", "--tier=smoke"]) == 1  # shift is 0.25 there
    assert "toy.table: NOT REPRODUCED · 1/2 claims hold" in capsys.readouterr().out
    assert (tmp_path / "results/toy.table-smoke/table.md").exists()
    assert "other: the other is true: here 0.25" in (tmp_path / "results/scoreboard.md").read_text()

    def missing(config):
        raise harness.NotRun("config.data names no folder")

    toy.cells = missing
    assert run.main(["--all", "--workdir=more"]) == 0
    page = (tmp_path / "more/scoreboard.md").read_text()
    assert "- `toy.table`: config.data names no folder" in page and "| NOT RUN | 0 | 1 |" in page
    assert run.main(["toy.table"]) == 2


def test_a_number_nobody_has_read_gives_no_verdict(toy):
    toy.CLAIMS = (toy.CLAIMS[0], dataclasses.replace(toy.CLAIMS[1], paper=True))
    result = _result(toy)
    assert [row["verdict"] for row in result["rows"]] == [harness.EXACT, harness.UNVERIFIED]
    assert result["verdict"] == harness.EXACT and result["claims"][1]["holds"]


def test_bootstrap_interval():
    values = np.random.default_rng(1).normal(size=(200, 2)) + np.array([[0.0, 4.0]])
    low, high = harness.bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(400), rel=0.15)  # strata differ by 4: that is no noise
    assert harness.bootstrap_interval(values) == (low, high)


def test_source_hash_changes_with_what_a_module_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_ROOT", tmp_path)
    files = {
        "prefjax/losses/__init__.py": "",
        "prefjax/losses/found.py": "x = 1",  # imported by name of its package alone, as the registry does
        "prefjax/other.py": "",
        "experiments/shared.py": "from prefjax.losses import OBJECTIVES",
        "experiments/table.py": "def run():\n    from experiments import shared",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    first = sources.source_hash("experiments.table")
    (tmp_path / "prefjax/other.py").write_text("x = 2")
    assert sources.source_hash("experiments.table") == first
    for name in ("prefjax/losses/found.py", "experiments/shared.py", "experiments/table.py"):
        before = sources.source_hash("experiments.table")
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n# changed")
        assert sources.source_hash("experiments.table") != before, name
    assert sources.source_hash("experiments.table", ["json"]) != sources.source_hash("experiments.table")


def test_scoreboard_page_is_made_of_the_reference_runs():
    assert write_reproduction.PAGE.read_text() == write_reproduction.page(), "python -m docs.write_reproduction"


def test_what_is_said_to_be_not_made_is_not_there():
    assert not set(tomllib.loads(scoreboard.NOT_MADE.read_text())) & set(tables.table_ids())


@pytest.mark.parametrize("table_id", tables.table_ids())
def test_every_table_is_whole(table_id):
    """Four sizes of known fields, three overrides that its config takes, a reference whose page is made from it."""
    module = tables.load_table(table_id)
    assert set(module.SIZES) == set(harness.SIZES) - {harness.CPU}
    assert all(set(size) <= set(module.PROTOCOL) for size in module.SIZES.values())
    kept = running.reference(table_id, module)
    if kept is None:
        with pytest.raises(harness.NotRun):
            harness.cell_names(module, harness.get_config(table_id, module))
        return
    assert len(verdicts.overrides(kept)) >= 3
    for flag, _ in verdicts.overrides(kept):
        if flag.startswith("--config."):
            run._flags([table_id, flag], "out", harness.get_config(table_id, module, module.TABLE.size))
    folder = running.reference_folder(table_id, module)
    assert (folder / "table.md").read_text() == verdicts.markdown(kept)
    assert kept["docstring"] == module.__doc__.strip(), "the table's docstring changed: make the reference run again"
    assert (folder / "plot.png").stat().st_size < 200_000
    assert all(row["reason"] for row in kept["rows"] if row["verdict"] == harness.NOT_REPRODUCED)


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
    forbidden = {"log_sigmoid", "logsigmoid", "sigmoid", "softplus", "relu", "logaddexp", "log1p", "expit", "losses"}
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
        "f = lambda h: jnp.log1p(jnp.exp(-h))",
    ):
        assert _defined_losses(source), source
