"""Command modules for tests. Each defines the flags of its own program, so a second one cannot just be imported."""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

import pytest
from absl import flags


def load(name: str) -> ModuleType:
    """The module `experiments.<name>`; flags of commands loaded before are forgotten, so their `main` cannot run."""
    forget_flags()
    return importlib.import_module(f"experiments.{name}")


def forget_flags() -> None:
    """Of all commands loaded so far."""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("experiments."):
            for flag in list(defined):
                delattr(flags.FLAGS, flag.name)


@contextlib.contextmanager
def as_program(argv: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is run inside is the program, with its own flags, and must end well."""
    forget_flags()
    before = set(flags.FLAGS)
    monkeypatch.setattr(sys, "argv", list(argv))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # commands set their own
    monkeypatch.setattr("os._exit", sys.exit)  # or an expected error would end the tests
    try:
        with pytest.raises(SystemExit) as ended:
            yield
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        flags.FLAGS.unparse_flags()
    assert not ended.value.code
