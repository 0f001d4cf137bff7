"""Metrics of a held-out set, in one pass whose program is compiled once."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float32

from prefjax.rows.arrays import RowShape
from prefjax.rows.store import TreeSource
from prefjax.training.metrics import Metrics
from prefjax.training.scoring import Setup
from prefjax.training.step import make_eval_step
from prefjax.training.tables import rows_once

_OF_THE_START = ("expected_loss", "start_gap")  # what an evaluation step says for the start check alone


class Evaluator:
    """The held-out set under its own row shape, as it may have another K.

    Args:
      reference: log-probs of every branch of every tree, where the setup's reference is precomputed.
    """

    def __init__(
        self,
        setup: Setup,
        trees: TreeSource,
        shape: RowShape,
        *,
        reference: Float32[np.ndarray, "n N"] | None = None,
    ):
        self._setup = dataclasses.replace(setup, accumulation=1)
        self._trees, self._shape, self._reference = trees, shape, reference
        self._step = make_eval_step(self._setup)

    def __call__(self, params: Any, frozen: Any, carried: Any = None) -> dict[str, float]:
        """Every prompt counts once. Arguments as of `make_eval_step`'s step."""
        rows = rows_once(self._setup.mesh, self._trees, self._shape, reference=self._reference)
        metrics = Metrics.combine(self._step(params, frozen, batch, carried) for batch in rows)
        return {name: value for name, value in metrics.items() if name not in _OF_THE_START}
