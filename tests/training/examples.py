"""Small random trees, a tiny model, and a setup for every objective: shared by the tests of the step."""

import jax
import numpy as np

from prefjax.data.layout import build_rows
from prefjax.data.rows import Branches, RowShape
from prefjax.data.trees import TokenTree
from prefjax.losses import OBJECTIVES
from prefjax.models import ModelConfig, init
from prefjax.models.reward_head import RewardHead
from prefjax.training.batches import marks_of, numbers_of
from prefjax.training.scoring import Setup
from prefjax.training.step import init_params

# Layouts, meshes and accumulation see an objective as a function of `Responses`: they are proven once per field of it
# and its gradient. A test says that these objectives read every field. Coupled ones: kto and dro_p, whose statistic
# has a gradient. K-wise: pl_dpo.
REPRESENTATIVES = tuple(
    "dpo dpo_norm kto dro dro_p wpo pmpo slic soft_ce margin_dpo pl_dpo sparsepo two_d_dpo sampo bt gpm".split()
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
                token_weights=tuple(rng.uniform(-0.5, 2, len(b)).astype(np.float32) for b in branches),
                token_segments=tuple((np.cumsum(rng.random(len(b)) < 0.5)).astype(np.int32) for b in branches),
                example_id=i,
            )
        )
    return made


def setup_for(name: str, **changes) -> Setup:
    """A setup for one objective; `reference`, `value_network` and the branches follow from what it reads."""
    objective = OBJECTIVES[name]
    model = changes.pop("model", MODEL)
    value_network = changes.pop("value_network", "own" if "value" in objective.needs else "none")
    return Setup(
        model=model,
        objective=objective,
        branches=Branches(
            changes.pop("responses", 2),
            baseline="baseline_logp" in objective.needs,
            auxiliary="auxiliary_logp" in objective.needs | objective.optional,
            longest=LONGEST if objective.reads_tokens else 0,
        ),
        reference="live" if objective.needs_reference else "none",
        value_network=value_network,
        reward_head=RewardHead(4, normalize=True, gate=True) if name == "gpm" else RewardHead(),
        **changes,
    )


def rows_for(setup: Setup, layout: str, examples: list[TokenTree], *, rows: int = ROWS, length: int = 0):
    """The examples under a layout: G trees a row where trees are packed, one a row otherwise."""
    length = length or (320 if layout == "packed_pairs" else 160)
    groups = GROUPS if layout.endswith(("packed", "packed_pairs")) else 1
    while len(examples) > rows * groups:
        rows *= 2
    prompt_length = 64 if setup.value_network == "own" else 0
    numbers, marks = numbers_of(setup.objective), marks_of(setup.objective)
    shape = RowShape(layout, rows, length, length, groups, setup.branches, prompt_length, numbers, marks)
    return build_rows([examples[i : i + groups] for i in range(0, len(examples), groups)], shape)


_made = {}


def parameters(setup: Setup) -> tuple[dict, dict]:
    """(trained parameters, reference parameters), both random and different; no gradient is zero by symmetry."""
    # Only what changes the shapes or the dtype is part of the key: every fast path starts from equal numbers.
    key = (setup.model.dtype, setup.value_network, setup.objective.trains_reward_model, setup.reward_head)
    if key not in _made:
        noise = np.random.default_rng(3)
        # Norm scales of exactly 1 and heads of exactly 0 would hide wrong gradients.
        jitter = lambda x: np.asarray(x) + 0.3 * noise.normal(size=x.shape).astype(x.dtype)
        reference, policy = (jax.tree.map(jitter, init(setup.model, jax.random.key(i))) for i in (0, 1))
        params = init_params(setup, policy)
        if setup.value_network != "none" or setup.objective.trains_reward_model:
            params = jax.tree.map(jitter, params)
        _made[key] = jax.tree.map(np.asarray, params), reference
    return _made[key]
