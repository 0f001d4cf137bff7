"""The wheel: `prefjax` alone, typed, open from any folder; and requirements that are the same wherever they stand."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import prefjax

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Which parts of pyproject.toml each file installs; datasets, large and rarely needed, stands in a file of its own.
FILES = {
    "requirements.txt": ("data", "hub", "report", "commands", "docs", "test"),
    "requirements-hf.txt": ("hub",),
    "requirements-loggers.txt": ("loggers",),
    "requirements-dev.txt": ("dev",),
}
# Optional packages, which importing the core's rooms must not need.
OPTIONAL = ("tensorflow_datasets", "pyarrow", "transformers", "tokenizers", "huggingface_hub", "jinja2", "datasets")
OPTIONAL += ("regex", "matplotlib", "adjustText", "tensorboardX", "wandb", "ml_collections", "pytest", "beartype")
CORE_ROOMS = ("data", "rows", "losses", "models", "training", "policies")
# Their modules that do need one: [data], [data], [hub].
BEYOND_CORE = ("prefjax.data.dataset_builder", "prefjax.rows.record_files", "prefjax.data.template_arithmetic")


def requirements(lines):
    """(name, bounds) of every requirement among the lines."""
    parsed = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {(requirement.name.lower(), str(requirement.specifier)) for requirement in parsed}


def test_requirement_files_and_pyproject_say_the_same():
    written = {file: requirements((ROOT / file).read_text().splitlines()) for file in FILES}
    parts = {name: requirements(lines) for name, lines in EXTRAS.items()} | {"": requirements(PROJECT["dependencies"])}
    apart = written["requirements-hf.txt"]
    assert written["requirements.txt"] == set.union(parts[""], *(parts[p] for p in FILES["requirements.txt"])) - apart
    for file in set(FILES) - {"requirements.txt", "requirements-hf.txt"}:
        assert written[file] == set.union(*(parts[part] for part in FILES[file]))
    assert {name for name, _ in apart} == {"datasets"} and apart <= parts["hub"]
    assert set(parts) - {""} == set().union(*FILES.values()), "an extra that no file installs"


def test_every_requirement_is_bounded_above_and_met_here():
    for line in [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]:
        requirement = Requirement(line)
        assert any(bound.operator == "<" for bound in requirement.specifier), f"{line}: below which version?"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        assert requirement.specifier.contains(version), f"{line}, but {version} is installed"


def test_the_core_needs_no_extra():
    code = f"""
import importlib, pkgutil, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"{{name}} is hidden", name=name)

sys.meta_path.insert(0, Hidden())
import prefjax
for room in {CORE_ROOMS!r}:
    for module in pkgutil.iter_modules(getattr(prefjax, room).__path__, f"prefjax.{{room}}."):
        if module.name not in {BEYOND_CORE!r}:
            importlib.import_module(module.name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: what an archive of the repository holds, and nothing of git."""
    copy, output = tmp_path_factory.mktemp("archive"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for folder in ("prefjax", "experiments", "configs", "tests", "notebooks", "docs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", output, copy], check=True)
    (path,) = output.iterdir()
    return path


def test_the_wheel_holds_prefjax_alone(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    information = f"prefjax-{prefjax.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"prefjax", information}
    here = {str(path.relative_to(ROOT)) for suffix in ("py", "pyi") for path in (ROOT / "prefjax").rglob(f"*.{suffix}")}
    assert here | {"prefjax/py.typed"} == {name for name in names if name.startswith("prefjax/")}
    assert f"{information}/licenses/LICENSE" in names
    described = zipfile.ZipFile(wheel).read(f"{information}/METADATA").decode()
    assert f"Version: {prefjax.__version__}" in described and "Requires-Dist: jax" in described


def test_an_installed_wheel_is_imported_from_anywhere(wheel, tmp_path):
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*install, "--target", target, wheel], check=True)
    code = f"""
import prefjax, pathlib, rlcompleter
assert pathlib.Path(prefjax.__file__).parent == pathlib.Path({str(target)!r}) / "prefjax"
assert prefjax.__version__ == {prefjax.__version__!r}
complete = rlcompleter.Completer({{"prefjax": prefjax}}).complete
assert complete("prefjax.los", 0).startswith("prefjax.losses") and complete("prefjax.rows.Tok", 0)
assert prefjax.losses.dpo and prefjax.rows.TokenTree
"""
    environment = {**os.environ, "PYTHONPATH": str(target)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
