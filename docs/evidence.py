"""What a page names as its evidence, `path::name`, and whether the tree still has it."""

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def is_there(evidence: str) -> bool:
    """Whether the file of "path::name" defines a function of that name, or has it as a text (the name of a case)."""
    path, _, name = evidence.partition("::")
    return (ROOT / path).is_file() and (name in functions_of(path) or name in texts_of(path))


@functools.cache
def functions_of(path: str) -> frozenset[str]:
    """The functions that a file defines."""
    return frozenset(node.name for node in _nodes(path) if isinstance(node, ast.FunctionDef))


@functools.cache
def texts_of(path: str) -> frozenset[str]:
    """The texts in a file."""
    return frozenset(
        node.value for node in _nodes(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


@functools.cache
def _nodes(path: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))))
