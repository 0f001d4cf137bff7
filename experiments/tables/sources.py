"""The code that a table's numbers come from: its module and everything it imports of this checkout, as one hash."""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_OURS = ("experiments", "prefjax")
_DRAWS_ONLY = "experiments.tables.figures"  # makes pictures of numbers, and no number


def source_hash(module: str, own: Iterable[str] = ()) -> str:
    """Hash of the source of `module`, of what it imports of this checkout, and so on: what a cached cell stands on.

    Imports are read in the source, wherever in it they stand. Importing a package itself, as `prefjax.losses`, whose
    registry finds its modules by looking into the folder, counts as all of its modules.

    Args:
        own: modules of a user whose objectives join the table; their file alone counts.
    """
    total = hashlib.sha256()
    for name, text in sorted(_closure(module)) + sorted((name, _own_text(name)) for name in own):
        total.update(f"{name}\n{len(text)}\n{text}".encode())
    return total.hexdigest()


def _closure(module: str) -> set[tuple[str, str]]:
    """(file, text) of everything that is reached from a module."""
    reached: set[Path] = set()
    waiting = list(_files(module))
    while waiting:
        path = waiting.pop()
        if path in reached:
            continue
        reached.add(path)
        for name in _imports(path):
            waiting += _files(name)
    return {(path.relative_to(_ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in reached}


def _files(name: str) -> list[Path]:
    """The file of a module; of a package all of its modules."""
    if name.split(".")[0] not in _OURS or name == _DRAWS_ONLY:
        return []
    path = _ROOT.joinpath(*name.split("."))
    if path.is_dir():
        return sorted(path.rglob("*.py"))
    return [path.with_suffix(".py")] if path.with_suffix(".py").exists() else []


@functools.cache
def _imports(path: Path) -> tuple[str, ...]:
    return tuple(_named(ast.parse(path.read_text(encoding="utf-8"))))


def _named(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if _files(submodule) or submodule == _DRAWS_ONLY else node.module


def _own_text(name: str) -> str:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return ""
    return Path(spec.origin).read_text(encoding="utf-8", errors="replace")
