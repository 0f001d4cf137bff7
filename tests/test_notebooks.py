"""Every notebook is its text, begins with the same way in, is stored without outputs, and runs from its own folder."""

from pathlib import Path

import nbclient
import nbformat
import pytest

from docs.write_notebooks import notebook
from tests.compilation import QUICK

NAMES = ("add_an_objective", "bring_your_model_and_data", "explore_losses", "prefix_sharing", "quickstart")
NAMES += ("reproduce_a_table",)
FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
each_notebook = pytest.mark.parametrize("name", NAMES)
# What takes a reader a minute or two is tiny here, where compiled code is slow: what stands in the text, and what runs.
SMALLER = {
    "quickstart": (
        ("SFT_STEPS, DPO_STEPS = 260, 80", "SFT_STEPS, DPO_STEPS = 12, 4"),
        ("tokens_per_step=4096", "tokens_per_step=512"),
        ("num_layers=3, width=96,", "num_layers=1, width=16,"),
        ("head_width=24, mlp_width=256", "head_width=8, mlp_width=24"),
        ("others.prompts[:100]", "others.prompts[:20]"),
    )
}
SECONDS = 300  # of a cell, on a machine that does other things too


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_there_are_these_notebooks_and_a_text_for_each():
    for suffix in ("ipynb", "py"):
        assert sorted(path.stem for path in FOLDER.glob(f"*.{suffix}")) == sorted(NAMES)


@each_notebook
def test_a_notebook_is_its_text_without_outputs(name):
    """python -m docs.write_notebooks"""
    book = read(name)
    nbformat.validate(book)
    assert (FOLDER / f"{name}.ipynb").read_text() == notebook(FOLDER / f"{name}.py")
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(book))


@each_notebook
def test_a_notebook_begins_with_the_same_way_in(name):
    book = read(name)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    assert code_cells(book)[0].source == code_cells(read("explore_losses"))[0].source
    assert any("px.analysis.style.NOTEBOOK" in cell.source for cell in code_cells(book))


def test_the_way_in_finds_the_checkout_or_asks_for_an_address(tmp_path, monkeypatch):
    """From its own folder, from the root, and from nowhere."""
    cell = code_cells(read("explore_losses"))[0].source
    for folder in (FOLDER, FOLDER.parent):
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.path", [])
        names = {}
        exec(cell, names)
        assert names["sys"].path == [str(FOLDER.parent)]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="set ADDRESS above"):
        exec(cell, {})


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_from_its_own_folder_and_draws(name, monkeypatch):
    for variable in ("MPLBACKEND", "PYTHONPATH"):  # the kernel picks its inline backend, the first cell the checkout
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XLA_FLAGS", QUICK)  # on one device
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    before = set(FOLDER.iterdir())
    book = read(name)
    for large, small in SMALLER.get(name, ()):
        (cell,) = [cell for cell in code_cells(book) if large in cell.source]
        cell.source = cell.source.replace(large, small)
    where = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(book, timeout=SECONDS, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in code_cells(book) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    said = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert all("IProgress not found" in text for text in said), (
        said
    )  # of tqdm, where Jupyter's widgets are not installed
    assert set(FOLDER.iterdir()) == before, "what a notebook writes goes to a temporary folder"
