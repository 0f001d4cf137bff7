"""Writes notebooks/*.ipynb from the texts beside them, which are their source: python -m docs.write_notebooks

A text is a notebook in jupytext's percent format: `# %%` begins a cell, `# %% [markdown]` one of prose.
"""

from pathlib import Path

import jupytext
import nbformat

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
_METADATA = {
    "colab": {"provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook(text: Path) -> str:
    """The .ipynb of a text, without outputs and the same at every call."""
    made = jupytext.read(text)
    made.metadata = nbformat.from_dict(_METADATA)
    for number, cell in enumerate(made.cells):
        cell.id, cell.metadata = f"cell-{number:02}", {}
    made.nbformat, made.nbformat_minor = 4, 5
    return nbformat.writes(made, version=nbformat.NO_CONVERT, indent=1) + "\n"


def main() -> None:
    for text in sorted(NOTEBOOKS.glob("*.py")):
        text.with_suffix(".ipynb").write_text(notebook(text), encoding="utf-8")


if __name__ == "__main__":
    main()
