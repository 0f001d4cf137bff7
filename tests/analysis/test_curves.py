"""Reading metrics files: the format training writes, unfinished lines, errors that name the place."""

import pytest

from prefjax.analysis import curve, read_metrics
from prefjax.analysis.curves import last

LINES = (
    '{"step": 10, "split": "train", "loss": 0.69, "reward_accuracy": 0.5}\n'
    '{"step": 20, "split": "train", "loss": 0.5}\n'
    '{"step": 20, "split": "eval", "loss": 0.6, "reward_accuracy": 0.75}\n'
)


def test_reads_and_selects(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES)
    rows = read_metrics(path)
    assert rows[0] == {"step": 10, "split": "train", "loss": 0.69, "reward_accuracy": 0.5}
    steps, values = curve(rows, "loss", "train")
    assert steps.tolist() == [10, 20] and values.tolist() == [0.69, 0.5]
    assert curve(rows, "reward_accuracy", "train")[0].tolist() == [10]
    assert curve(rows, "margin", "eval")[1].size == 0
    assert last(rows, "loss", "eval") == 0.6 and last(rows, "margin", "eval") is None


def test_an_unfinished_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES + '{"step": 30, "spl')
    assert read_metrics(path) == read_metrics_of(tmp_path, LINES)


def read_metrics_of(folder, text):
    path = folder / "other.jsonl"
    path.write_text(text)
    return read_metrics(path)


@pytest.mark.parametrize("bad", ["{nonsense\n", '{"step": 3}\n', "[1, 2]\n"])
def test_a_bad_line_is_named(tmp_path, bad):
    with pytest.raises(ValueError, match=r"other\.jsonl:4: "):
        read_metrics_of(tmp_path, LINES + bad)
