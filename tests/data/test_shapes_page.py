"""docs/shapes.md: every sample on it is fed in, and comes to what stands below it."""

import collections
import re
import sys
import types

import pytest

from prefjax.data import formats
from prefjax.data.account import Account
from prefjax.data.formats import RecordFormat
from prefjax.data.readers import SUFFIXES, find_files, read_rows
from prefjax.data.sources import OpenSource
from tests.documents import ROOT

PAGE = (ROOT / "docs/shapes.md").read_text()
SECTION = re.compile(
    r"^### `(?P<name>[^`]+)`\n(?P<text>(?:(?!^###).)*?)"
    r"^```(?P<language>\w+)\n(?P<sample>.*?)^```\n\nRead: (?P<read>.*?)\.\n",
    re.MULTILINE | re.DOTALL,
)
SAMPLES = {found["name"]: found for found in SECTION.finditer(PAGE)}
FIELD = re.compile(r"`data\.format\.(\w+)` names `(\w+)`")


def write(name: str) -> RecordFormat:
    """Writes a sample into the folder that is the current one; the format that its text asks for."""
    found = SAMPLES[name]
    if found["language"] == "python":
        exec(found["sample"], {})
    else:
        with open(name, "w", encoding="utf-8", newline="") as file:
            file.write(found["sample"])
    return RecordFormat(**dict(FIELD.findall(found["text"])))


def said(records, account: Account) -> str:
    """What the page says of records that were read."""
    kinds = collections.Counter(record.kind for record in records)
    parts = [", ".join(f"{n} {kind}{'s' * (kind == 'pair' and n > 1)}" for kind, n in kinds.items())]
    stage = account["read"]
    for title, counts in (("counted", stage.found - stage.dropped), ("dropped", stage.dropped)):
        if counts:
            parts.append(f"{title}: " + ", ".join(f"`{reason}` {n}" for reason, n in counts.items()))
    return "; ".join(parts)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_comes_to_what_the_page_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record_format = write(name)
    assert said(*OpenSource(name).read(record_format, progress=False)) == SAMPLES[name]["read"]


def test_the_page_has_every_suffix_and_every_column():
    assert PAGE.count("\n### `") == len(SAMPLES), "a section without a sample, or without what it comes to"
    named = {suffix for suffix in SUFFIXES if any(name.endswith(suffix) for name in SAMPLES)}
    assert named == {suffix for suffix in SUFFIXES if not suffix.endswith(".gz")}
    samples = "\n".join(found["sample"] for found in SAMPLES.values()) + (ROOT / "docs/chats.md").read_text()
    assert [column for column in formats._KNOWN_COLUMNS if f'"{column}"' not in samples] == []
    for found in SAMPLES.values():
        if found["language"] == "json" and found["name"].endswith(".jsonl"):
            assert len(found["sample"].splitlines()) == 2


def test_rows_of_the_hub_have_the_same_shapes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("datasets")
    monkeypatch.setitem(sys.modules, "datasets", module)
    for name in (name for name, found in SAMPLES.items() if found["language"] != "csv" and "tsv" not in name):
        record_format = write(name)
        rows = [row for path in find_files(name) for _, row in read_rows(path, progress=False)]
        module.load_dataset = lambda *_, rows=rows, **__: rows
        records, account = OpenSource("hf:owner/name:train").read(record_format, progress=False)
        assert said(records, account) == SAMPLES[name]["read"], name
        assert all(record.source.startswith("hf:owner/name:train:") for record in records)
