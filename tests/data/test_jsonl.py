"""The one writer of JSONL: whole files, equal bytes for equal rows, gzipped by the name."""

import gzip
import hashlib
import json
import time

import pytest

from prefjax.data.jsonl import write_rows
from prefjax.data.readers import read_rows
from prefjax.data.synthetic import World


@pytest.mark.parametrize("name", ["new/r.jsonl", "r.jsonl.gz"])
def test_rows_are_read_back_and_equal_rows_are_equal_bytes(tmp_path, name, monkeypatch):
    rows = [*World(0).rankings(20, 3), {"prompt": "ß\u2028\n", "completion": "𝄞"}]
    path = tmp_path / name
    assert write_rows(path, iter(rows)) == 21
    assert [row for _, row in read_rows(path, progress=False)] == rows
    text = (gzip.decompress if name.endswith(".gz") else bytes)(path.read_bytes()).decode()
    assert text == "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    before = hashlib.sha256(path.read_bytes()).digest()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    renamed = path.with_name(f"other-{path.name}")
    write_rows(renamed, rows)
    assert hashlib.sha256(renamed.read_bytes()).digest() == before


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_a_file_that_is_not_whole_is_not_there(tmp_path, name):
    def broken():
        yield {"a": 1}
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_rows(tmp_path / name, broken())
    assert not (tmp_path / name).exists()
    write_rows(tmp_path / name, [{"a": 2}])
    with pytest.raises(RuntimeError, match="stopped"):
        write_rows(tmp_path / name, broken())
    assert [row for _, row in read_rows(tmp_path / name, progress=False)] == [{"a": 2}]
    with pytest.raises(ValueError, match=r"suffix must be .jsonl or .jsonl.gz"):
        write_rows(tmp_path / "r.json", [])
