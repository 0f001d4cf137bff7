"""prefjax: offline preference algorithms in JAX, on rows that share prompts.

The unit is one prompt with K responses; it travels from the file on disk to the loss without changing shape:
records -> token trees -> packed rows -> hidden states -> response log-probs -> objective -> train step -> report.
"""

import importlib

__version__ = "0.1.0"

_ROOMS = ("analysis", "data", "losses", "models", "training")


def __getattr__(name: str):
    """`import prefjax; prefjax.losses.dpo(...)` works, and `prefjax.data` alone never pulls in jax."""
    if name in _ROOMS:
        return importlib.import_module(f"prefjax.{name}")
    raise AttributeError(f"module 'prefjax' has no attribute {name!r}")
