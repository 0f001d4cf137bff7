"""The same prompts as one train step in every layout: the tightest rows, compiled, and proven equal before timing."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from experiments.benchmarks.sweep import Cell
from prefjax.fit import flops
from prefjax.losses import objective as objective_of
from prefjax.models import ModelConfig, init
from prefjax.rows.arrays import Branches, Rows, RowShape
from prefjax.rows.layout import attach_reference, build_rows
from prefjax.rows.packing import PACKED_LAYOUTS, TreeLengths, first_fit_decreasing, row_copies, tree_sizes
from prefjax.rows.store import MemoryTrees
from prefjax.rows.trees import TokenTree
from prefjax.rows.units import measure, plan_units
from prefjax.training.feed import to_devices
from prefjax.training.mesh import parameter_shardings, row_shards
from prefjax.training.metrics import Metrics
from prefjax.training.optimizers import OptimizerConfig, make_optimizer
from prefjax.training.reference import make_scorer
from prefjax.training.scoring import Setup
from prefjax.training.step import jit_train_step, loss_and_gradients, place_state
from prefjax.training.tables import over_trees

BASELINE = {"shared": "pairs", "shared_packed": "packed_pairs", "merged": "packed_pairs"}
_COMPARED = ("loss", "chosen_logp", "rejected_logp", "grad_norm", "prompts", "responses", "scored_tokens")
_UNIT = 8  # row lengths are multiples of it
_UNBOUNDED = 2**31 - 1
# The optimiser does all of its work and leaves the parameters where they are: every step must return the same numbers.
OPTIMIZER = OptimizerConfig(learning_rate=0.0)


class Placement(NamedTuple):
    """Which trees share a row, the rows' static shape, and the micro-batches they are cut into."""

    members: list[list[int]]
    shape: RowShape
    accumulation: int

    @property
    def positions(self) -> int:
        """R * T: what goes through the layers, padding included."""
        return self.shape.rows * row_copies(self.shape.layout, self.shape.branches) * self.shape.row_length

    def facts(self) -> dict[str, int]:
        """Plain values for result.json."""
        return {
            "rows": self.positions // self.shape.row_length,
            "row_length": self.shape.row_length,
            "scored_length": self.shape.scored_length,
            "micro_batches": self.accumulation,
            "positions": self.positions,
        }


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
    sizes = tree_sizes(TreeLengths.of(trees), layout, branches)
    longest, total = sizes[:, 0].max(), total_work(trees, layout).tokens
    whole = lambda tokens: _UNIT * math.ceil(tokens / _UNIT)
    if layout in PACKED_LAYOUTS:
        rows = shards * math.ceil(total / (shards * max(longest, micro_batch or total)))
        row_length, pack = whole(max(longest, total / rows)), _packing(trees, layout, branches)
        while len(members := pack(row_length)) > rows:
            row_length += _UNIT
    else:
        rows, row_length = len(trees), whole(longest)
        members = [[tree] for tree in range(len(trees))]
    at_once = max(1, (micro_batch or _UNBOUNDED) // (row_length * row_copies(layout, branches)))
    fewest = math.ceil(rows / (shards * at_once))
    padded = lambda parts: math.ceil(rows / (parts * shards)) * parts * shards
    accumulation = min(range(fewest, max(fewest, rows) + 1), key=lambda parts: (padded(parts), parts))
    scored = lambda row: sizes[row, 1].sum()
    if layout == "merged":  # responses with a common start have its tokens scored once
        sharing = measure(trees, branches)
        scored = lambda row: sharing.size(row)[1]
    shape = RowShape(
        layout=layout,
        rows=padded(accumulation),
        row_length=row_length,
        scored_length=int(max(map(scored, members))),
        groups=max(map(len, members)),
        branches=branches,
        entries=int(max(sizes[row, 1].sum() for row in members)) if layout == "merged" else 0,
    )
    return Placement(members, shape, accumulation)


def _packing(trees: Sequence[TokenTree], layout: str, branches: Branches) -> Callable[[int], list[list[int]]]:
    """Row length -> the trees of every row, in as few as first-fit-decreasing finds; of `merged`, units of trees."""
    if layout != "merged":
        sizes = tree_sizes(TreeLengths.of(trees), layout, branches)
        capacity = lambda length: np.array([length, *[_UNBOUNDED] * 3])
        return lambda length: [row.tolist() for row in first_fit_decreasing(sizes, capacity(length))]
    sharing = measure(trees, branches)

    def pack(length: int) -> list[list[int]]:
        units = plan_units(sharing, np.array([length, *[_UNBOUNDED] * 4]), merge_from=1)
        rows = first_fit_decreasing(units.sizes, np.array([length - sharing.trunk, *[_UNBOUNDED] * 4]))
        return [[tree for unit in row for tree in units.members[unit]] for row in rows]

    return pack


def total_work(trees: Sequence[TokenTree], layout: str) -> flops.Work:
    """What the mathematics asks of a forward pass over all trees; of `merged`, as if one row held them."""
    if layout == "merged":
        tokens = sum(len(tree.prompt) + len(branch) for tree in trees for branch in tree.responses)
        shape = RowShape("merged", 1, tokens, tokens, len(trees), branches_of(trees), entries=tokens)
        rows = build_rows([trees], shape)
        real = rows.segment_ids > 0
        area = (rows.visible_until - np.arange(tokens))[real].sum()
        return flops.Work(float(real.sum()), float(area), float(rows.scored.sum()))
    count = flops.shared_work if layout in BASELINE else flops.separate_work
    work = [count(len(tree.prompt), np.array([len(branch) for branch in tree.branches])) for tree in trees]
    return sum(work[1:], work[0])


class Gains(NamedTuple):
    """What sharing saves: ratios of sums over the trees, before / after."""

    tokens: float
    flops: float

    def against(self, time: float) -> dict[str, float]:
        """S_time as it was measured, both ideals, and the efficiency: the share of what the arithmetic allows."""
        return {"s_time": time, "s_tokens": self.tokens, "s_flops": self.flops, "efficiency": time / self.flops}


def ideal_gains(model: ModelConfig, trees: Sequence[TokenTree], layout: str = "shared_packed") -> Gains:
    """S_tokens and S_FLOPs. A step is a multiple of a forward pass, so the ratio holds with any reference."""
    return work_saved(model, total_work(trees, "pairs"), total_work(trees, layout))


def work_saved(model: ModelConfig, before: flops.Work, after: flops.Work) -> Gains:
    """Tokens and FLOPs of one over those of the other."""
    forward = lambda work: float(flops.forward_flops(model, work))
    return Gains(float(before.tokens / after.tokens), forward(before) / forward(after))


class Training:
    """One policy, another model as its reference, and one optimiser state, which the steps of all cells hand on."""

    def __init__(self, model: ModelConfig, mesh: Mesh):
        self.model, self.mesh = model, mesh
        shardings = parameter_shardings(mesh, jax.eval_shape(lambda key: init(model, key), jax.random.key(0)))
        make = jax.jit(lambda key: init(model, key), out_shardings=shardings)
        self._reference = make(jax.random.key(1))
        self._optimizer = make_optimizer(OPTIMIZER, 1)
        params = {"policy": make(jax.random.key(0))}
        self._state = place_state(self.setup("dpo", "live"), params, self._optimizer)

    @property
    def reference_bytes(self) -> int:
        """Of the reference model, on all devices."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._reference))

    def setup(self, objective: str, reference: str, accumulation: int = 1) -> Setup:
        return Setup(
            model=self.model,
            objective=objective_of(objective),
            reference=reference,
            accumulation=accumulation,
            mesh=self.mesh,
        )

    def reference_table(self, trees: Sequence[TokenTree], objective: str, micro_batch: int | None) -> np.ndarray:
        """[n, K] log-probs of every response under the reference, nats, scored once and not timed."""
        branches = branches_of(trees)
        placement = place(trees, "shared_packed", branches, shards=row_shards(self.mesh), micro_batch=micro_batch)
        score = make_scorer(self.setup(objective, "live"), self._reference)
        return over_trees(score, self.mesh, MemoryTrees(trees), placement.shape)

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

        Returns:
          `run` returns the step's metrics. Facts: the rows; padding, the share of the positions that hold no token; and
          memory_mb, arguments and temporaries that the compiler reserves, per device.
        """
        print(f"compiling {layout}, reference {reference}, remat {self.model.remat}", flush=True)
        branches = branches_of(trees)
        placement = place(trees, layout, branches, shards=row_shards(self.mesh), micro_batch=micro_batch)
        rows = lay_out(trees, placement)
        facts = {"layout": layout, "reference": reference, **placement.facts()}
        facts["padding"] = 1 - float((rows.segment_ids > 0).mean())
        if reference == "precomputed":
            rows = attach_reference(rows, table)
        setup = self.setup(objective, reference, placement.accumulation)
        on_devices = to_devices(self.mesh, rows)
        live = self._reference if reference == "live" else None
        compiled = (
            jit_train_step(setup, self._state.replace(frozen=live))
            .lower(self._state.changing(), live, on_devices)
            .compile()
        )
        memory = compiled.memory_analysis()
        facts["memory_mb"] = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6

        def run() -> dict[str, float]:
            changed, metrics = jax.block_until_ready(compiled(self._state.changing(), live, on_devices))
            self._state = changed.replace(tx=self._state.tx)
            return _compared(metrics)

        return Cell(facts, run)


def gradient_cell(model: ModelConfig, params: Any, tree: TokenTree, layout: str) -> Cell:
    """Compiles DPO's gradient on one pair: policy forward and backward, neither reference nor optimiser."""
    branches = branches_of([tree])
    setup = Setup(model=model, objective=objective_of("dpo"), reference="precomputed")
    rows = lay_out([tree], place([tree], layout, branches))
    rows = jax.device_put(attach_reference(rows, np.zeros((1, 2), np.float32)))

    def gradients(params, rows):
        gradients, metrics = loss_and_gradients(setup, {"policy": params}, None, rows)
        return gradients, Metrics(metrics | {"grad_norm": (optax.global_norm(gradients), 1.0)})

    compiled = jax.jit(gradients).lower(params, rows).compile()
    return Cell({}, lambda: _compared(jax.block_until_ready(compiled(params, rows))[1]))


def _compared(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What two layouts of the same trees must agree on."""
    return {name: metrics[name] for name in _COMPARED if name in metrics}


def branches_of(trees: Sequence[TokenTree]) -> Branches:
    return Branches(responses=max(len(tree.responses) for tree in trees))


def lay_out(trees: Sequence[TokenTree], placement: Placement) -> Rows:
    """The rows of one optimiser step."""
    return build_rows([[trees[i] for i in row] for row in placement.members], placement.shape)
