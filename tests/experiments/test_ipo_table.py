"""IPO's Figures 1 and 2: the closed forms against hand values, the smoke run, a wrong loss, the reference run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import run
from experiments.tables import harness
from experiments.tables.ipo import fig1_fig2
from prefjax.losses import OBJECTIVES

pytestmark = pytest.mark.slow

FOLDER = Path(fig1_fig2.__file__).parent
FILES = ("table.md", "plot.png", "result.json", "rows.jsonl")


def _softmax(*theta: float) -> np.ndarray:
    return np.exp(theta) / np.exp(theta).sum()


@pytest.mark.parametrize(
    ("tau", "d1_a", "d3_c"), [(0.1, 0.9644, 0.0034), (0.5, 0.5627, 0.1554), (1, 0.4484, 0.2327), (5, 0.3558, 0.3115)]
)
def test_ipo_closed_form(tau, d1_a, d3_c):
    forms = {data: fig1_fig2.ipo_closed_form(fig1_fig2._actions(data), tau) for data in fig1_fig2.DATA}
    t = 1 / (2 * tau)
    np.testing.assert_allclose(forms["D1"], _softmax(2 * t / 3, 0, -2 * t / 3), rtol=1e-9)
    np.testing.assert_allclose(forms["D2"], 1 / 3, rtol=1e-9)
    np.testing.assert_allclose(forms["D3 as printed"], 1 / 3, rtol=1e-9)
    np.testing.assert_allclose(forms["D3 tie + loss"], _softmax(t, t, 0), rtol=1e-9)
    np.testing.assert_allclose(forms["D3 chain"], _softmax(t, 0, -t), rtol=1e-9)
    np.testing.assert_allclose(forms["D1"][0], d1_a, atol=5e-5)
    np.testing.assert_allclose(forms["D3 tie + loss"][2], d3_c, atol=5e-5)


def test_dpo_limit():
    limits = {data: fig1_fig2.dpo_limit(fig1_fig2._actions(data)).tolist() for data in fig1_fig2.DATA}
    third = [1 / 3, 1 / 3, 1 / 3]
    assert limits == {
        "D1": [1, 0, 0],
        "D2": third,
        "D3 as printed": third,
        "D3 tie + loss": [0.5, 0.5, 0],
        "D3 chain": [1, 0, 0],
    }


def test_default_config_is_the_papers_protocol():
    protocol = harness.load_paper(FOLDER / "paper.toml")["fig1_fig2"]["protocol"]
    assert fig1_fig2.PROTOCOL == {"record_every": 100} | {
        key: protocol[key] for key in ("steps", "learning_rate", "batch_size", "num_seeds")
    }


def _run(argv: list[str], folder: Path) -> tuple[int, dict]:
    status = run.main([*argv, f"--workdir={folder}", f"--cache={folder / 'cache'}"])
    return status, json.loads((folder / "result.json").read_text())


def _blank(results) -> Figure:
    """No figure: the smoke run draws the real one."""
    return Figure()


def _verdicts(result: dict, **labels) -> set[str]:
    return {row["verdict"] for row in result["rows"] if labels.items() <= row["labels"].items()}


def test_smoke_holds_every_claim(tmp_path):
    status, result = _run(["ipo.fig1_fig2:smoke"], tmp_path)
    assert status == 0 and result["verdict"] == harness.EXACT
    assert _verdicts(result, loss="ipo", data="D1") == _verdicts(result, loss="dpo", data="D2") == {harness.EXACT}
    assert _verdicts(result, data="D3 as printed") == {harness.NOT_REPRODUCED}
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "cache"}
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    curves = 5 * 2 * 4 * 3  # data sets x losses x taus x actions
    assert len(lines) == curves * (3 * 21 + 1)  # 3 seeds at steps 0, 100, ... 2,000, and the closed form
    starts = [row["value"] for row in map(json.loads, lines) if row["step"] == 0]
    np.testing.assert_allclose(starts, 1 / 3, rtol=1e-6)


def test_a_wrong_sign_in_a_loss_turns_its_rows_red(tmp_path, monkeypatch):
    right = OBJECTIVES["ipo"]

    def flipped(r, **options):  # the rejected response taken for the chosen one
        return right.loss(r.replace(logp=r.logp[:, ::-1]), **options)

    all_of_them = dict(OBJECTIVES)
    monkeypatch.setattr(fig1_fig2, "OBJECTIVES", all_of_them | {"ipo": dataclasses.replace(right, apply=flipped)})
    monkeypatch.setattr(fig1_fig2, "plot", _blank)
    status, result = _run(["ipo.fig1_fig2:smoke", "--config.num_seeds=2"], tmp_path)
    assert status == 1 and result["verdict"] == harness.NOT_REPRODUCED
    assert _verdicts(result, loss="ipo", data="D1") == {harness.NOT_REPRODUCED}
    assert _verdicts(result, loss="dpo", data="D1") == {harness.EXACT, harness.SIGN}


def test_full_run_agrees_with_the_committed_reference(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fig1_fig2, "plot", _blank)
    status, result = _run(["ipo.fig1_fig2", "--check"], tmp_path)
    printed = capsys.readouterr().out
    assert status == 0 and "agrees with the reference run" in printed
    assert max(c["measured"] for c in result["claims"] if c["name"] == "ipo_closed_form") < 0.03
