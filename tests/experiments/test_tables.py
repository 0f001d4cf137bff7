"""Tables of papers in seconds: every claim holds at the size :smoke, and a wrong sign in a loss turns a table red."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.special
from matplotlib.figure import Figure

from experiments import run
from experiments.tables import bandit, enumerable, figures, harness, load_table, table_ids
from experiments.tables.harness import Row
from prefjax.losses import OBJECTIVES

pytestmark = pytest.mark.slow

ELSEWHERE = {"ipo.fig1_fig2": "tests/experiments/test_ipo_table.py"}
# Those that run a language model: tests/experiments/test_language_model_tables.py.
TABLES = [name for name in table_ids() if name not in ELSEWHERE and load_table(name).TABLE.size == harness.CPU]


@functools.cache
def smoke(table_id: str, cell: str) -> tuple[Row, ...]:
    """The rows of one cell, computed once for all tests here."""
    module = load_table(table_id)
    with jax.enable_x64(module.TABLE.float64):
        return tuple(module.run(harness.get_config(table_id, module, "smoke"), cell))


def judged(table_id: str, again: str = "") -> harness.Judgement:
    """The claims on a smoke run; the cells whose name has the word `again` in it are computed anew."""
    module = load_table(table_id)
    rows = []
    for cell in harness.cell_names(module, harness.get_config(table_id, module, "smoke")):
        rows += smoke.__wrapped__(table_id, cell) if again and again in cell else smoke(table_id, cell)
    return harness.judge(module.SETTINGS, module.CLAIMS, harness.Results(rows), unverified(table_id))


def unverified(table_id: str) -> set[str]:
    module = load_table(table_id)
    paper = harness.load_paper(Path(module.__file__).with_name("paper.toml"))
    return {name for name, fact in paper.get(table_id.split(".")[1], {}).items() if not fact["verified"]}


@pytest.mark.parametrize("table_id", TABLES)
def test_every_claim_holds_in_seconds(table_id):
    module = load_table(table_id)
    try:
        judgement = judged(table_id)
    except harness.NotRun as missing:
        pytest.skip(str(missing))
    failed = [claim.name for claim, outcome in zip(module.CLAIMS, judgement.claims, strict=True) if not outcome[2]]
    assert not failed, judgement.reasons


def test_markers_at_the_edges_of_a_figure_are_whole():
    settings = [harness.Setting({"loss": loss}, "value") for loss in ("first", "last")]
    numbers = [("first", "known", 0.0), ("first", "ours", 0.1), ("last", "known", 1.0), ("last", "ours", 0.9)]
    rows = [Row(row, col, "value", None, None, value) for row, col, value in numbers]
    figure = figures.dots(harness.Results(rows), settings, known="known", ours="ours")
    figure.draw_without_rendering()
    (axis,) = figure.axes
    markers = [line for line in axis.lines if line.get_marker() == "o"]
    assert len(markers) == 4
    for line in markers:
        (place,) = axis.transData.transform(line.get_xydata())
        radius = (line.get_markersize() + line.get_markeredgewidth()) / 2 * figure.dpi / 72
        assert (axis.bbox.min <= place - radius).all() and (place + radius <= axis.bbox.max).all()


def chosen_for_rejected(r):
    return r.replace(
        logp=r.logp[:, ::-1], reference_logp=None if r.reference_logp is None else r.reference_logp[:, ::-1]
    )


WRONG = {  # what is exchanged, and the table and cell that must notice
    "dpo": (chosen_for_rejected, "dpo.equivalence", "dpo soft"),
    "ipo": (chosen_for_rejected, "ipo.asymptotic", "ipo"),
    "slic": (chosen_for_rejected, "slic.two_arms", "all"),
    "rdpo": (chosen_for_rejected, "rdpo.rates", "rdpo 0.1"),
    "dro": (lambda r: r.replace(target=-r.target), "dro.theory", "listed"),
    "kto": (lambda r: r.replace(target=1 - r.target), "kto.theory", "4.1"),
    "rso_hinge": (chosen_for_rejected, "rso.theorem1", "losses"),
    "rso_sigmoid": (chosen_for_rejected, "dpo.equivalence", "rso_sigmoid"),
    "gpm": (lambda r: r.replace(features=r.features[:, ::-1]), "gpm.cyclic", "gpm"),
    "soft_ce": (chosen_for_rejected, "ranking.idealised", "all"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_sign_in_a_loss_turns_a_table_red(name, monkeypatch):
    wrong, table_id, cell = WRONG[name]
    right = OBJECTIVES[name]
    flipped = functools.wraps(right.apply)(lambda r, **options: right.apply(wrong(r), **options))
    monkeypatch.setitem(OBJECTIVES._all(), name, dataclasses.replace(right, apply=flipped))
    judgement = judged(table_id, again=cell)
    assert not judgement.holds and harness.NOT_REPRODUCED in judgement.rows
    assert any(reason for reason in judgement.reasons)


MINE = """
from prefjax.losses import for_pairs
from prefjax.losses.links import logistic
from prefjax.losses.reducers import gap, log_ratio, of_pairs, pairs

@for_pairs({"reference_logp"})
def gentle(r, *, beta: float = 0.5):
    \"\"\"DPO by another name.\"\"\"
    r = pairs(r, "reference_logp")
    return of_pairs(r, logistic(beta * gap(log_ratio(r))))
"""


def test_an_objective_of_ones_own_joins_a_table_by_one_flag(tmp_path, monkeypatch, capsys):
    """Its population optimum is that of DPO at its own beta, and it needs no change of the table."""
    (tmp_path / "my_losses_of_tables.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    module = load_table("dpo.equivalence")
    monkeypatch.setattr(module, "cells", lambda config: [])
    monkeypatch.setattr(module, "SETTINGS", ())
    monkeypatch.setattr(module, "CLAIMS", ())
    monkeypatch.setattr(module, "plot", functools.wraps(module.plot)(lambda results: Figure()))
    folders = [f"--workdir={tmp_path / 'out'}", f"--cache={tmp_path / 'cache'}"]
    assert run.main(["dpo.equivalence:smoke", "--rows=+my_losses_of_tables:gentle", *folders]) == 0
    [row] = json.loads((tmp_path / "out/result.json").read_text())["rows"]
    assert row["labels"]["loss"] == "+my_losses_of_tables:gentle" and row["own"] and row["verdict"] == harness.NOTHING
    assert row["cells"]["ours"]["mean"] < 1e-6
    for name, message in (("sft", "it is no loss of pairs"), ("wpo", "it reads log_sum_p2"), ("dop", "near it: ")):
        assert run.main(["dpo.equivalence:smoke", f"--rows=+{name}", *folders]) == 2
        assert message in capsys.readouterr().err


def test_win_rates_of_a_made_up_leaderboard(tmp_path, monkeypatch):
    """Right in every column, red where a published number is another, and not run where there is no checkout."""
    module = load_table("alpacaeval.win_rate")
    monkeypatch.setattr(module, "PROMPTS", 4)
    with pytest.raises(harness.NotRun, match="github.com/tatsu-lab/alpaca_eval"):
        module.cells(harness.get_config("alpacaeval.win_rate", module))
    preferences = {"terse": [1.0, 1.2, 1.5, 1.1], "wordy": [2.0, 1.9, 1.5, 1.4]}
    lines = [",win_rate,standard_error,discrete_win_rate,avg_length,n_total"]
    for model, values in preferences.items():
        file = tmp_path / "results" / model / "weighted_alpaca_eval_gpt4_turbo/annotations.json"
        file.parent.mkdir(parents=True)
        output = "a" * (3 if model == "terse" else 9)
        file.write_text(
            json.dumps([dict(instruction=f"q{i}", output_2=output, preference=p) for i, p in enumerate(values)])
        )
        error = 100 * np.std(values, ddof=1) / 2
        discrete = {"terse": 12.5, "wordy": 62.5}[model]
        lines.append(f"{model},{100 * (np.mean(values) - 1)},{error},{discrete},{len(output)},4")
    board = tmp_path / module.LEADERBOARD
    board.parent.mkdir(parents=True)

    def verdicts(text):
        board.write_text(text)
        config = harness.get_config("alpacaeval.win_rate", module)
        config.data = str(tmp_path)
        rows = module.run(config, *module.cells(config))
        return harness.judge(module.SETTINGS, module.CLAIMS, harness.Results(rows)).rows

    right = "\n".join(lines)
    assert verdicts(right) == [harness.EXACT] * 4 + [harness.SIGN]
    assert verdicts(right.replace(",62.5,", ",62.6,"))[2] == harness.NOT_REPRODUCED


def test_the_optimum_of_the_enumerable_policy_is_best_and_has_the_value_of_the_closed_form():
    world = enumerable.make_world(0, prompts=4, responses=16, width=3)
    for beta in (0.2, 2.0):
        best = enumerable.optimum(world, beta)
        value = enumerable.regularised(world, best, beta)
        assert value == pytest.approx(enumerable.optimal_value(world, beta).mean())
        rng = np.random.default_rng(1)
        for _ in range(20):
            other = scipy.special.log_softmax(best + 0.1 * rng.normal(size=best.shape), axis=1)
            assert enumerable.regularised(world, other, beta) < value
            assert enumerable.kl(other, best) > 0
    assert enumerable.kl(best, best) == 0
    np.testing.assert_allclose(enumerable.listed_policy(world, np.zeros(3)), world.reference_logp)
    assert world.reward.std() == pytest.approx(1)


def test_draws_follow_the_reference_and_the_rewards():
    world = enumerable.make_world(0, prompts=2, responses=4, width=3)
    rng = np.random.default_rng(0)
    prompt, response = enumerable.draw(rng, world, 40_000, 1)
    for x in range(2):
        seen = np.bincount(response[prompt == x, 0], minlength=4) / (prompt == x).sum()
        np.testing.assert_allclose(seen, np.exp(world.reference_logp[x]), atol=0.01)
    for flip_rate in (0.0, 0.3):
        pairs = enumerable.draw_pairs(rng, world, 40_000, flip_rate)
        reward = world.reward[pairs.prompt[:, None], pairs.response]
        p = 1 / (1 + np.exp(-np.abs(reward[:, 0] - reward[:, 1])))
        right = (reward[:, 0] > reward[:, 1])[reward[:, 0] != reward[:, 1]].mean()
        expected = (p * (1 - flip_rate) + (1 - p) * flip_rate)[reward[:, 0] != reward[:, 1]].mean()
        assert right == pytest.approx(expected, abs=0.01)


def test_the_minimiser_of_two_arms_finds_kinks_and_says_where_there_is_none():
    with jax.enable_x64(True):
        assert bandit.minimiser(lambda h: jax.numpy.abs(h - 3.0)) == pytest.approx(3.0)
        assert bandit.minimiser(lambda h: -h) == bandit.FARTHEST
        assert bandit.minimiser(lambda h: h) == -bandit.FARTHEST
