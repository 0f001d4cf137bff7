"""The face: one import opens every room, and tab completion says what is there."""

from pathlib import Path

import pytest

import prefjax
from tests.test_structure import ALLOWED


def test_every_room_opens_from_the_package_and_says_what_is_in_it():
    """One import is enough, `dir` and tab completion list what there is, and every name exists."""
    for package in [prefjax, *(getattr(prefjax, room) for room in ALLOWED)]:
        assert set(package.__all__) <= set(dir(package))
        for name in dir(package):
            assert getattr(package, name) is not None
        folder = Path(package.__file__).parent
        modules = {path.stem for path in folder.glob("*.py")} | {
            path.parent.name for path in folder.glob("*/__init__.py")
        }
        if package is not prefjax.losses:
            assert modules - {"__init__"} <= set(dir(package)), package.__name__
        with pytest.raises(AttributeError, match="nothing"):
            _ = package.nothing
