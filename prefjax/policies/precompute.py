"""Scores a whole stage's data under one model ahead of training, and says per record what came out."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from prefjax.data.jsonl import score_row
from prefjax.data.prepare import records_of
from prefjax.data.progress import progress_bar
from prefjax.losses import Responses
from prefjax.rows.arrays import Branches
from prefjax.rows.store import PreparedTrees
from prefjax.rows.trees import is_scored
from prefjax.training.checkpoint import parameter_hash
from prefjax.training.config import StageConfig, objective_of
from prefjax.training.mesh import make_mesh
from prefjax.training.parameters import read_policy, tokenizer_of
from prefjax.training.reference import open_scores, reference_table
from prefjax.training.score_cache import set_facts
from prefjax.training.stage import load_splits, make_setup

# What a loss may read to be one record's own number.
_PER_RECORD = frozenset(
    {"logp", "reference_logp", "length", "target", "valid", "margin", "target_probability", "auxiliary_logp"}
)


class Scored(NamedTuple):
    """One split under one model: prepared trees, the branches of every tree, and their log-probs [n, N] in nats."""

    trees: PreparedTrees
    branches: Branches
    table: Float32[np.ndarray, "n N"]


def score_stage(config: StageConfig, data_directory: Path, cache: Path, source: str) -> dict[str, Scored]:
    """Scores the train and eval trees of a stage with the model of `source`, or finds the scores in the cache.

    The rows are those of training with a precomputed reference, so a run that then reads the cache gets what it would
    have scored by itself, bit for bit.

    Args:
      source: as `read_policy` takes it.

    Raises:
      ReferenceMismatchError, ValueError: as `reference_table`.
    """
    mesh = make_mesh(config.mesh)
    tokenizer = tokenizer_of(config.data, config.model)
    splits = dict(zip(("train", "eval"), load_splits(config, tokenizer, data_directory), strict=True))
    setup = make_setup(config, tokenizer, mesh)
    params = read_policy(source, setup.model, mesh, seed=config.seed)
    scores = open_scores(cache, setup, parameter_hash(params))
    scored = {}
    for name, split in splits.items():
        own_setup = setup if name == "train" else dataclasses.replace(setup, accumulation=1)
        facts = set_facts(split.prepared.manifest)
        table = reference_table(
            own_setup, params, split.trees, split.shape, scores, facts, extend=True, seed=config.seed
        )
        scored[name] = Scored(split.prepared, split.shape.branches, table)
    return scored


def score_rows(
    config: StageConfig,
    data_directory: Path,
    reference: Mapping[str, Scored],
    policy: Mapping[str, Scored] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of a score file, which data methods take by `join`: one for every record that became a tree.

    Columns with one value for each response: `reference_logp` and, of a policy, `policy_logp` and `implicit_reward`,
    their difference; all sums over the response's tokens, in nats; `length` in tokens. Columns with one value:
    `split`, `example_id`, and of a policy `loss`, the objective's, where it depends on nothing but this record.
    """
    tokenizer = tokenizer_of(config.data, config.model)
    requires = objective_of(config).requires
    for split, (trees, branches, table) in reference.items():
        other = None if policy is None else policy[split].table
        losses = None if other is None else record_losses(config, trees, branches, other, table)
        pairs = records_of(config.data, requires, tokenizer, data_directory, trees)
        for row, (record, tree) in enumerate(
            progress_bar(pairs, shown=True, total=len(trees), desc=split, unit=" records")
        ):
            count = len(tree.responses)
            columns = {
                "split": split,
                "example_id": row,
                "length": [int(is_scored(response).sum()) for response in tree.responses],
                "reference_logp": _numbers(table[row, :count]),
            }
            if other is not None:
                columns["policy_logp"] = _numbers(other[row, :count])
                columns["implicit_reward"] = _numbers(other[row, :count] - table[row, :count])
            if losses is not None:
                columns["loss"] = _numbers(losses[row : row + 1])[0]
            yield score_row(record, columns)


def record_losses(
    config: StageConfig,
    trees: PreparedTrees,
    branches: Branches,
    policy: Float32[np.ndarray, "n N"],
    reference: Float32[np.ndarray, "n N"],
) -> Float32[np.ndarray, "n"] | None:
    """[n] the objective's loss of every record; None where it needs more than the record's own log-probs."""
    objective = objective_of(config)
    if objective.coupled or objective.initial_carried() or not objective.requires.inputs <= _PER_RECORD:
        return None
    k = branches.responses
    length, target = np.zeros((2, len(trees), k), np.float32)
    numbers = {name: np.zeros(len(trees), np.float32) for name in objective.requires.pair_numbers}
    for row in range(len(trees)):
        tree = trees[row]
        length[row, : len(tree.responses)] = [is_scored(response).sum() for response in tree.responses]
        target[row, : len(tree.responses)] = tree.targets
        for name, values in numbers.items():
            values[row] = getattr(tree, name)
    if branches.auxiliary:
        numbers["auxiliary_logp"] = policy[:, branches.auxiliary_slot]
    arrays = dict(logp=policy[:, :k], reference_logp=reference[:, :k], length=length, target=target, **numbers)
    responses = Responses(**{name: jnp.asarray(x) for name, x in arrays.items()}, valid=jnp.asarray(length > 0))
    return np.asarray(objective.loss(responses), np.float32)


def _numbers(values: np.ndarray) -> list[float]:
    """Rounded to what float32 holds of a log-prob of some hundred nats."""
    return [round(float(value), 5) for value in values]
