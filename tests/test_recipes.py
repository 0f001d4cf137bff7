"""CONTRIBUTING's recipes, done literally: in a copy of the tree, files as they are written there, commands run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_, _, TEXT = (ROOT / "CONTRIBUTING.md").read_text().partition("## Recipes")
RECIPES = {part.split("\n", 1)[0]: part for part in TEXT.split("\n### ")[1:] if "```" in part}
BLOCK = re.compile(r"(.*?)^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_works_as_it_is_written(name, tmp_path):
    """Python goes into the file that the words before it name last, at its end where it is there; bash is run."""
    for part in ("prefjax", "docs", "tests", "experiments", "configs"):
        shutil.copytree(ROOT / part, tmp_path / part)  # with what Python compiled, which stays true of what stays
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for words, language, code in BLOCK.findall(RECIPES[name]):
        if language == "python":
            file = tmp_path / re.findall(r"`([\w/]+\.pyi?)`", words)[-1]
            assert file.exists() == ("at the end of" in words), f"{name}: {file}"
            with file.open("a") as opened:
                opened.write(("\n" if file.stat().st_size else "") + code)
        else:
            done = subprocess.run(
                ["bash", "-e", "-c", code],
                cwd=tmp_path,
                env={**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path)},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{name}: {code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
