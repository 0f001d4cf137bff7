"""The benchmarks measure what they say, on sizes too small to mean anything."""

import re

import pytest

from experiments.benchmarks import attention


def test_attention_measures_equal_work(tmp_path):
    rows = [row for length in (640, 768) for row in attention.measure(length, repeats=1)]
    assert [row["length"] for row in rows] == [640, 640, 768, 768]
    assert all(row["milliseconds"] > 0 and row["temporary_mb"] > 0 for row in rows)
    text = attention.table(rows)
    assert len(re.findall(r"^\| \d+ ", text, re.M)) == 2
    attention.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_attention_refuses_to_time_a_wrong_implementation(monkeypatch):
    right = attention.implementations

    def wrong(*arrays):
        functions = right(*arrays)
        tiled = functions["live tiles"]
        return functions | {"live tiles": lambda q, k, v: tiled(q, k, 1.01 * v)}

    monkeypatch.setattr(attention, "implementations", wrong)
    with pytest.raises(AssertionError, match="disagree"):
        attention.measure(640, repeats=1)
