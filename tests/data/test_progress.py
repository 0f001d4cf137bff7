"""Progress in a log: nothing of what is quick, a line with the time left of what is not."""

import re

from prefjax.data import progress
from prefjax.data.progress import progress_bar


def test_a_log_has_a_line_with_the_time_left(capsys, monkeypatch):
    with progress_bar(desc="quick", shown=True) as bar:
        bar.update(5)
    assert list(progress_bar(range(3), shown=False, desc="hidden")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress, "_EVERY", 1e-9)
    with progress_bar(desc="pairs.jsonl", shown=True) as bar:
        bar.unit, bar.unit_scale, bar.total = "B", True, 4000
        bar.update(1000)
        bar.update(1000)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"pairs.jsonl: +50% 2.00k/4.00k \[.*<.*B/s\]", lines[1]), lines
