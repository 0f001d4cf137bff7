"""The site of docs/: built without a warning, every link leads somewhere, there and on a forge, and search works."""

import html
import json
import logging
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from prefjax.losses import OBJECTIVES
from tests.documents import blocks
from tests.test_structure import ALLOWED

ROOT = Path(__file__).resolve().parents[1]
MARKDOWN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.*)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a forge calls the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\\", "", heading).lower() for heading in _HEADING.findall(text))
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_as_a_forge_shows_it(page):
    for link in _LINK.findall(_CODE.sub("", page.read_text())):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / unquote(path)).resolve() if path else page
        assert target.exists(), f"{page.name}: {link} is not there"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link} has no such heading"


def test_every_module_is_in_the_reference():
    pages = {path.stem: path.read_text() for path in (ROOT / "docs/api").glob("*.md")}
    assert set(pages) == {*ALLOWED, "face"}
    for room, text in pages.items():
        assert f"::: prefjax.{room}\n" in text


def test_the_integers_of_the_concepts_are_those_of_the_code():
    names, said = {}, []
    for block in blocks("docs/concepts.md", "python"):
        exec(block, names)
        said += re.findall(r"^((?:forest|rows)\.\S+)  # (\[.*\])$", block, re.MULTILINE)
    assert len(said) == 7
    for expression, numbers in said:
        assert eval(expression, names).tolist() == json.loads(numbers)


def test_the_picture_of_the_rooms_shows_what_may_import_what():
    """Its arrows, followed to their ends."""
    arrows = re.findall(r'<path id="(\w+)-(\w+)"', (ROOT / "docs/rooms.svg").read_text())

    def reached(room: str) -> set[str]:
        return {end for start, to in arrows if start == room for end in (to, *reached(to))}

    assert {room: reached(room) for room in ALLOWED} == ALLOWED and reached("experiments") == set(ALLOWED)


# A table of a page that says where its numbers are from, and the table's rows.
_NUMBERS = re.compile(r"^<!-- numbers of (\S+) -->\n\n((?:\|.*\n)+)", re.MULTILINE)
TABLES = [
    pytest.param(source, table, id=f"{page.stem}-{i}")
    for page in sorted((ROOT / "docs").glob("*.md"))
    for i, (source, table) in enumerate(_NUMBERS.findall(page.read_text()))
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


@pytest.mark.parametrize("source, table", TABLES)
def test_numbers_that_a_page_repeats_are_those_of_their_table(source, table):
    """Each in the row of its name, where there is one (an objective's, say), else anywhere in that file's tables."""
    lines = [cells(line) for line in (ROOT / source).read_text().splitlines() if line.startswith("|")]
    for line in table.splitlines()[2:]:
        name, *said = cells(line)
        for cell in said:
            if re.search(r"\d\.\d", cell):
                there = [line for line in lines if line[0] == name] or lines
                assert any(cell in line for line in there), f"{name}: {cell} is not in {source}"


class Words(logging.Handler):
    """What the builder warns of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; fails with the builder's words where it warns of anything."""
    folder, words = tmp_path_factory.mktemp("site"), Words()
    logger = logging.getLogger("mkdocs")
    logger.addHandler(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")  # the theme's word about its successor
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=False))
    logger.removeHandler(words)
    assert not words.said, "\n".join(words.said)
    return folder


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere(site):
    """Every page of docs/ is in the navigation, or the builder would warn; nothing is fetched from elsewhere."""
    pages = {path.parent: path.read_text() for path in site.rglob("index.html")}
    ids = {folder: set(re.findall(r' id="([^"]+)"', text)) for folder, text in pages.items()}
    for folder, text in pages.items():
        for link in set(re.findall(r'<a [^>]*?href="([^"]+)"', text)):
            link = html.unescape(link)
            if re.match(r"https?://", link):
                continue
            path, _, anchor = link.partition("#")
            target = (folder / unquote(path)).resolve() if path else folder
            assert target.exists(), f"{folder.relative_to(site)}: {link}"
            assert not anchor or unquote(anchor) in ids.get(target, {unquote(anchor)}) | {"__skip", "__toc"}, link
        assert not re.search(r'<(?:script|img|iframe|link rel="(?!canonical)\w+")[^>]*(?:src|href)="(https?:)?//', text)
        assert 'class="mermaid"' not in text, "the theme fetches what draws that"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\s\"']*(?:https?:)?//", sheet.read_text()), sheet


@pytest.mark.slow
def test_search_finds_objectives_options_and_functions(site):
    entries = json.loads((site / "search/search_index.json").read_text())["docs"]
    words = " ".join(entry["title"] + " " + entry["text"] for entry in entries)
    # Tests before this one may have brought objectives of their own.
    ours = [name for name, one in OBJECTIVES.items() if one.apply.__module__.startswith("prefjax.")]
    for name in (*ours, "visible_until", "tokens_per_step", "lay_out_forest", "make_train_step"):
        assert name in words, name
