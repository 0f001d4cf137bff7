"""The same prompts as one train step in every layout: the tightest rows, compiled, and proven equal before timing."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from prefjax.data.layout import attach_reference, build_rows
from prefjax.data.packing import PACKED_LAYOUTS, TreeLengths, first_fit_decreasing, row_copies, tree_sizes
from prefjax.data.rows import Branches, Rows, RowShape
from prefjax.data.trees import TokenTree
from prefjax.losses import OBJECTIVES
from prefjax.models import ModelConfig, flops, init
from prefjax.training.feed import to_devices
from prefjax.training.mesh import parameter_shardings, row_shards
from prefjax.training.metrics import finish
from prefjax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from prefjax.training.reference import score_table
from prefjax.training.scoring import Setup
from prefjax.training.step import init_state, make_train_step

BASELINE = {"shared": "pairs", "shared_packed": "packed_pairs"}
# Relative. Sums of log-probs differ by rounding; a pair too many or too few moves them by per cents.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
_COMPARED = ("loss", "chosen_logp", "rejected_logp", "grad_norm", "prompts", "responses", "scored_tokens")
_UNIT = 8  # row lengths are multiples of it
_UNBOUNDED = 2**31 - 1
# The optimiser does all of its work and leaves the parameters where they are: every step must return the same numbers.
_OPTIMIZER = OptimizerConfig(learning_rate=0.0)


class Placement(NamedTuple):
    """Which trees share a row, the rows' static shape, and the micro-batches they are cut into."""

    members: list[list[int]]
    shape: RowShape
    accumulation: int

    @property
    def positions(self) -> int:
        """R * T: what goes through the layers, padding included."""
        return self.shape.rows * row_copies(self.shape.layout, self.shape.branches) * self.shape.row_length


def place(
    trees: Sequence[TokenTree], layout: str, branches: Branches, *, shards: int = 1, micro_batch: int | None = None
) -> Placement:
    """All trees in one optimiser step, with as little padding as the layout allows.

    Rows of `pairs` and `shared` are as long as the longest tree. Packed rows are as few as `micro_batch` permits, and
    as short as first-fit-decreasing can make them.

    Args:
      shards: the number of rows is a multiple of it.
      micro_batch: positions of one shard that a forward and backward pass may hold (one row at least); more rows than
        that are accumulated. None: everything at once.
    """
    lengths = TreeLengths.of(trees)
    sizes = tree_sizes(lengths, layout, branches)
    longest, total = sizes[:, 0].max(), sizes[:, 0].sum()
    whole = lambda tokens: _UNIT * math.ceil(tokens / _UNIT)
    if layout in PACKED_LAYOUTS:
        rows = shards * math.ceil(total / (shards * max(longest, micro_batch or total)))
        row_length = whole(max(longest, total / rows))
        pack = lambda: first_fit_decreasing(sizes, np.array([row_length, *[_UNBOUNDED] * 3]))
        while len(members := pack()) > rows:
            row_length += _UNIT
    else:
        rows, row_length = len(trees), whole(longest)
        members = [np.array([tree]) for tree in range(len(trees))]
    at_once = max(1, (micro_batch or _UNBOUNDED) // (row_length * row_copies(layout, branches)))
    fewest = math.ceil(rows / (shards * at_once))
    padded = lambda parts: math.ceil(rows / (parts * shards)) * parts * shards
    accumulation = min(range(fewest, max(fewest, rows) + 1), key=lambda parts: (padded(parts), parts))
    shape = RowShape(
        layout=layout,
        rows=padded(accumulation),
        row_length=row_length,
        scored_length=int(max(sizes[row, 1].sum() for row in members)),
        groups=max(map(len, members)),
        branches=branches,
    )
    return Placement([row.tolist() for row in members], shape, accumulation)


def total_work(trees: Sequence[TokenTree], *, shared: bool) -> flops.Work:
    """What the mathematics asks of a forward pass over all trees."""
    count = flops.shared_work if shared else flops.separate_work
    work = [count(len(tree.prompt), np.array([len(branch) for branch in tree.branches])) for tree in trees]
    return sum(work[1:], work[0])


class Gains(NamedTuple):
    """What sharing prompts saves: ratios of sums over the trees, separate / shared."""

    tokens: float
    flops: float


def ideal_gains(model: ModelConfig, trees: Sequence[TokenTree]) -> Gains:
    """S_tokens and S_FLOPs. A step is a multiple of a forward pass, so the ratio holds with any reference."""
    separate, shared = total_work(trees, shared=False), total_work(trees, shared=True)
    forward = lambda work: float(flops.forward_flops(model, work))
    return Gains(float(separate.tokens / shared.tokens), forward(separate) / forward(shared))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One compiled step over the trees. `run` returns its metrics when the device is done."""

    layout: str
    reference: str
    placement: Placement
    padding: float  # share of the positions that hold no token
    memory_mb: float  # arguments + temporaries that the compiler reserves, per device
    run: Callable[[], dict[str, float]]

    @property
    def name(self) -> str:
        return f"{self.layout}, {self.reference}"

    def facts(self) -> dict[str, Any]:
        """Plain values for result.json."""
        shape = self.placement.shape
        return {
            "layout": self.layout,
            "reference": self.reference,
            "rows": shape.rows * row_copies(shape.layout, shape.branches),
            "row_length": shape.row_length,
            "scored_length": shape.scored_length,
            "micro_batches": self.placement.accumulation,
            "positions": self.placement.positions,
            "padding": self.padding,
            "memory_mb": self.memory_mb,
        }


class Training:
    """One policy, another model as its reference, and one optimiser state, which the steps of all cells hand on."""

    def __init__(self, model: ModelConfig, mesh: Mesh):
        self.model, self.mesh = model, mesh
        shardings = parameter_shardings(mesh, jax.eval_shape(lambda key: init(model, key), jax.random.key(0)))
        make = jax.jit(lambda key: init(model, key), out_shardings=shardings)
        self._reference = make(jax.random.key(1))
        self._optimizer = make_optimizer(_OPTIMIZER, 1)
        self._state = init_state(mesh, self._optimizer, {"policy": make(jax.random.key(0))})

    def setup(self, objective: str, branches: Branches, reference: str, accumulation: int = 1) -> Setup:
        return Setup(
            model=self.model,
            objective=OBJECTIVES[objective],
            branches=branches,
            reference=reference,
            accumulation=accumulation,
            mesh=self.mesh,
        )

    def reference_table(self, trees: Sequence[TokenTree], objective: str, micro_batch: int | None) -> np.ndarray:
        """[n, K] log-probs of every response under the reference, nats, scored once and not timed."""
        branches = _branches(trees)
        placement = place(trees, "shared_packed", branches, shards=row_shards(self.mesh), micro_batch=micro_batch)
        setup = self.setup(objective, branches, "live")
        rows = _rows(trees, placement)
        return score_table(setup, self._reference, [rows], examples=len(trees), steps=1)

    def cell(
        self,
        trees: Sequence[TokenTree],
        layout: str,
        reference: str,
        *,
        objective: str = "dpo",
        micro_batch: int | None = None,
        table: np.ndarray | None = None,
    ) -> Cell:
        """Compiles the real train step on these trees: policy forward and backward, reference, optimiser.

        Args:
          table: reference log-probs, for reference="precomputed".
        """
        branches = _branches(trees)
        placement = place(trees, layout, branches, shards=row_shards(self.mesh), micro_batch=micro_batch)
        rows = _rows(trees, placement)
        padding = 1 - float((rows.segment_ids > 0).mean())
        if reference == "precomputed":
            rows = attach_reference(rows, table)
        setup = self.setup(objective, branches, reference, placement.accumulation)
        on_devices = to_devices(self.mesh, rows)
        live = self._reference if reference == "live" else None
        step = make_train_step(setup, self._optimizer, make_schedule(_OPTIMIZER, 1), self._state)
        compiled = step.lower(self._state, live, on_devices).compile()
        memory = compiled.memory_analysis()

        def run() -> dict[str, float]:
            self._state, metrics = jax.block_until_ready(compiled(self._state, live, on_devices))
            return finish(metrics)

        megabytes = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6
        return Cell(layout, reference, placement, padding, megabytes, run)


def check_equal(results: Mapping[str, Mapping[str, float]], dtype: str) -> None:
    """Refuses to time a wrong computation: all cells must have computed the same thing.

    Raises:
      AssertionError: names the cells and the number that differs.
    """
    first, *others = results
    for metric in _COMPARED:
        expected = results[first].get(metric)
        for other in others:
            value = results[other].get(metric)
            close = expected == value or abs(value - expected) <= TOLERANCE[dtype] * abs(expected)
            assert close, f"{other} computes {metric} {value}, but {first} {expected}: not the same work"


def _branches(trees: Sequence[TokenTree]) -> Branches:
    return Branches(responses=max(len(tree.responses) for tree in trees))


def _rows(trees: Sequence[TokenTree], placement: Placement) -> Rows:
    return build_rows([[trees[i] for i in row] for row in placement.members], placement.shape)
