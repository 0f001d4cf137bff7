"""The rooms: imports go one way, files stay small, and the data room works without jax."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Which other rooms of prefjax each room may import.
ALLOWED = {
    "rows": set(),
    "data": {"rows"},
    "losses": set(),
    "models": {"rows"},
    "training": {"data", "rows", "losses", "models"},
    "policies": {"data", "rows", "losses", "models", "training", "analysis"},
    "fit": {"data", "rows", "losses", "models", "training", "analysis"},
    "analysis": set(),
    "contrib": {"analysis"},
}
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "prefjax").rglob("*.py"))
LONGEST = 400  # lines of a file
LONGEST_BODY = 60  # lines of a function below its docstring
MOST_PARAMETERS = 8
# Its parameters are options of a user's: each is said alone, and none belongs to another.
OPTIONS = {"sparse_features"}


def imported(path):
    """Full names of all modules a file imports, at any depth."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", [path for path in MODULES if len(path.parts) > 2], ids=str)
def test_imports_go_one_way(path):
    room = path.parts[1]
    names = list(imported(path))
    rooms = {name.split(".")[1] for name in names if name.startswith("prefjax.") and name.split(".")[1] in ALLOWED}
    assert rooms <= ALLOWED[room] | {room}
    forbidden = {"absl", "ml_collections", "experiments", "torch", "tensorflow"}
    if room in ("rows", "data", "analysis", "contrib"):
        forbidden |= {"jax", "flax", "optax"}
    assert not forbidden & {name.split(".")[0] for name in names}


def test_what_is_above_the_rooms_is_imported_by_them_and_contrib_by_nothing():
    """`prefjax/*.py` opens no room but by name, when asked; the literature's tools can be deleted without a trace."""
    for path in MODULES:
        names = {name for name in imported(path) if name.startswith("prefjax.")}
        if len(path.parts) == 2 and path.name == "registry.py":
            assert not names and not {"jax", "numpy"} & {name.split(".")[0] for name in imported(path)}
        if "contrib" not in path.parts:
            assert not [name for name in names if name.startswith("prefjax.contrib")], path


def test_every_room_is_known():
    assert {path.parts[1] for path in MODULES if len(path.parts) > 2} == set(ALLOWED)


def test_files_stay_small_and_have_a_sentence():
    for path in [*MODULES, *(p.relative_to(ROOT) for p in (ROOT / "experiments").rglob("*.py"))]:
        text = (ROOT / path).read_text()
        assert len(text.splitlines()) <= LONGEST, f"{path} is two rooms"
        assert path.name != "utils.py"
        assert ast.get_docstring(ast.parse(text)), f"{path}: say in one sentence what it is"


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_functions_stay_short_and_take_few_parameters():
    for path in [
        *MODULES,
        *(p.relative_to(ROOT) for folder in ("experiments", "configs") for p in (ROOT / folder).rglob("*.py")),
    ]:
        for function in functions(ast.parse((ROOT / path).read_text())):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            length = function.end_lineno - body[0].lineno + 1 if body else 0
            assert length <= LONGEST_BODY, f"{path}: {function.name} is two functions"
            said = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
            count = len([each for each in said if each.arg not in ("self", "cls")])
            assert count <= MOST_PARAMETERS or function.name in OPTIONS, f"{path}: {function.name} takes {count}"


def test_reading_records_and_building_rows_needs_no_jax():
    """Grain imports jax by itself where it finds it; nothing before the pipeline does, and no backend ever starts."""
    code = """
import sys
from prefjax.data import encoding, readers, records, synthetic, transforms
from prefjax.rows import layout, lengths, packing, steps, trees
assert not {"jax", "flax", "tensorflow", "torch"} & set(sys.modules), "imported"
import numpy as np
from prefjax.rows.pipeline import row_dataset
from prefjax.rows.steps import InOrder
from prefjax.rows.arrays import Branches, RowShape
from prefjax.rows.store import MemoryTrees
tree = trees.TokenTree(np.ones(3, np.int32), (np.ones(2, np.int32),), np.ones(1, np.float32))
list(row_dataset(MemoryTrees([tree]), RowShape("shared_packed", 1, 8, 8, 1, Branches(1)), InOrder()))
if "jax" in sys.modules:
    from jax._src import xla_bridge
    assert not xla_bridge._backends, "the data side started a backend"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
