"""Command modules for tests. Each defines the flags of its own program, so a second one cannot just be imported."""

import importlib
from types import ModuleType

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
