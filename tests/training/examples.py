"""Small random trees, a tiny model, and a setup for every objective: shared by the tests of the step."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefjax.losses import objective
from prefjax.models import ModelConfig, init
from prefjax.models.reward_head import RewardHead
from prefjax.rows.arrays import Branches, RowShape
from prefjax.rows.layout import build_rows
from prefjax.rows.packing import PACKED_LAYOUTS
from prefjax.rows.trees import TokenTree
from prefjax.training.scoring import Setup
from prefjax.training.step import init_params, place_state

# Layouts, meshes and accumulation see an objective as a function of `Responses`: they are proven once per field of it
# and its gradient. A test says that these objectives read every field. Coupled ones: kto, and the sums, of which the
# statistics of dro_p and aot have gradients. K-wise: pl_dpo, in a sum with a coupled term, one that imitates, and every
# wrapper, each of a pair loss over all pairs of a ranking.
RANKED = (
    "0.5*dro_p + 0.3*pl_dpo + 0.4*log_mean_exp(all_pairs(smooth(dpo))) + "
    "0.3*max(all_pairs(per_token(ipo)), all_pairs(clip_tokens(unflip(gpo)))) + 1.0*sft"
)
REPRESENTATIVES = (
    *"dpo dpo_norm kto dro wpo pmpo slic soft_ce margin_dpo sparsepo two_d_dpo sampo bt gpm".split(),
    RANKED,
    "0.5*bco + 0.3*aot + 0.2*aot_unpaired",
)


VOCABULARY = 31
GROUPS, ROWS = 3, 8
LONGEST = 11  # tokens of a response of `trees`
MODEL = ModelConfig(
    vocab_size=VOCABULARY,
    num_layers=2,
    width=16,
    num_heads=4,
    num_kv_heads=2,
    head_width=8,
    mlp_width=24,
    dtype="float64",
    param_dtype="float64",
)


def trees(count: int, *, responses: int = 2, seed: int = 0) -> list[TokenTree]:
    """Random trees; among them are one-token responses, identical ones, some with a token that is not scored, and (the
    last) a one-token prompt."""
    rng = np.random.default_rng(seed)
    tokens = lambda low, high: rng.integers(3, VOCABULARY, rng.integers(low, high)).astype(np.int32)
    made = []
    for i in range(count):
        branches = [tokens(1, 12) for _ in range(responses)]
        if i % 5 == 1:
            branches[-1] = branches[-1][:1]
        if i % 5 == 2:
            branches[-1] = branches[0]
        if i % 5 == 3:  # a token that is read and not scored, between two that are, as in a response of several turns
            branches[0] = np.concatenate([branches[0][:1], ~branches[0][:1], branches[0][:1]])
        targets = rng.permutation(responses)[::-1] if responses > 2 else np.arange(responses)[::-1]
        if responses == 1:
            targets = np.array([i % 2])
        made.append(
            TokenTree(
                prompt=tokens(1, 2) if i == count - 1 else tokens(2, 14),
                responses=tuple(branches),
                targets=targets.astype(np.float32),
                baseline=tokens(1, 9),
                auxiliary=tokens(1, 8),
                weight=1.0 + 0.5 * (i % 3),
                margin=float(rng.normal()),
                target_probability=float(rng.uniform()),
                token_weight=tuple(rng.uniform(-0.5, 2, len(b)).astype(np.float32) for b in branches),
                token_segment=tuple((np.cumsum(rng.random(len(b)) < 0.5)).astype(np.int32) for b in branches),
                example_id=i,
            )
        )
    return made


def tiered(names: Iterable[str], *fast: str) -> list:
    """The names, to parametrize a test; all but the fast ones are for the slow tier."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def setup_for(name: str, **changes) -> Setup:
    """A setup for one objective; `reference` and `value_network` follow from what it reads."""
    return Setup(
        changes.pop("model", MODEL),
        objective(name, **changes.pop("options", {})),
        reward_head=RewardHead(4, normalize=True, gate=True) if name == "gpm" else RewardHead(),
        **changes,
    )


def branches_for(name: str, *, responses: int = 2, longest: int = LONGEST) -> Branches:
    """The branches of the rows that an objective reads, the auxiliary response too where it may read one."""
    requires = objective(name).requires
    return Branches(
        responses,
        baseline=requires.baseline,
        auxiliary="auxiliary_logp" in requires.inputs | requires.optional,
        longest=longest if requires.single_tokens else 0,
    )


def shape_for(setup: Setup, layout: str, *, rows: int = ROWS, length: int = 0, **branches: int) -> RowShape:
    """A shape that holds G trees a row where trees are packed, one a row otherwise."""
    length = length or {"packed_pairs": 320, "shared_packed": 160}.get(layout, 80)
    requires = setup.objective.requires
    return RowShape(
        layout,
        rows,
        length,
        length,
        GROUPS if layout in PACKED_LAYOUTS else 1,
        branches_for(setup.objective.name, **branches),
        64 if setup.value_network == "own" else 0,
        requires.pair_numbers + requires.token_labels,
        entries=2 * length,
    )


def rows_for(setup: Setup, layout: str, examples: list[TokenTree], *, rows: int = ROWS, **sizes: int):
    """The examples under a layout, G trees a row where trees are packed."""
    sizes.setdefault("responses", max(len(tree.responses) for tree in examples))
    groups = shape_for(setup, layout).groups
    while len(examples) > rows * groups:
        rows *= 2
    grouped = [examples[i : i + groups] for i in range(0, len(examples), groups)]
    return build_rows(grouped, shape_for(setup, layout, rows=rows, **sizes))


def state_for(setup: Setup, params, tx, frozen=None):
    """A state of copies of trained parameters, as `parameters` makes them."""
    return place_state(setup, jax.tree.map(jnp.array, params), tx, frozen=frozen)


_made = {}


def parameters(setup: Setup) -> tuple[dict, dict]:
    """(trained parameters, reference parameters), both random and different; no gradient is zero by symmetry."""
    # Only what changes the shapes or the dtype is part of the key: every fast path starts from equal numbers.
    key = (setup.model.dtype, setup.value_network, setup.objective.requires.reward_head, setup.reward_head)
    if key not in _made:
        noise = np.random.default_rng(3)
        # Norm scales of exactly 1 and heads of exactly 0 would hide wrong gradients.
        jitter = lambda x: np.asarray(x) + 0.3 * noise.normal(size=x.shape).astype(x.dtype)
        reference, policy = (jax.tree.map(jitter, init(setup.model, jax.random.key(i))) for i in (0, 1))
        params = init_params(setup, policy)
        if setup.value_network != "none" or setup.objective.requires.reward_head:
            params = jax.tree.map(jitter, params)
        _made[key] = jax.tree.map(np.asarray, params), reference
    return _made[key]
