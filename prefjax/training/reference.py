"""A precomputed reference: every branch scored once by the step's own path, or found in a cache and checked there."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32
from tqdm import tqdm

from prefjax.data.progress import progress_bar
from prefjax.rows.arrays import Rows, RowShape
from prefjax.rows.steps import InOrder, sampled, simulate
from prefjax.rows.store import SelectedTrees, TreeSource
from prefjax.training.mesh import parameter_shardings, row_sharding
from prefjax.training.score_cache import Facts, ScoreCache, model_facts, sequence_keys
from prefjax.training.scoring import Setup, branch_logps
from prefjax.training.tables import over_trees

# Nats by which log-probs of one token may differ between two programs that are both right; those of L tokens differ by
# sqrt(L) times that, as rounding has no preferred sign. Two layouts of SmolLM2-135M in bfloat16 differ by 0.11 at most.
TOLERANCE = {"float64": 1e-6, "float32": 2e-3, "bfloat16": 0.4, "float16": 0.05}
_CHECKED = 8  # examples scored again when scores come from a cache
_PART_STEPS = 32  # what a killed command does again, at most


class ReferenceMismatchError(ValueError):
    """Scores of a cache are not what the reference says now."""


def make_scorer(setup: Setup, params: Any) -> Callable[[Rows], jax.Array]:
    """Rows on the devices -> log-probs [B, G, N] of all branches, nats. Compiled once."""
    score = jax.jit(
        lambda params, rows: branch_logps(setup, params, rows),
        in_shardings=(parameter_shardings(setup.mesh, params), row_sharding(setup.mesh)),
    )
    return lambda rows: score(params, rows)


def open_scores(directory: Path, setup: Setup, parameter_hash: str) -> ScoreCache:
    """The scores of a model in a cache folder; all processes of a run must see the same folder.

    Raises:
      ValueError: a file of scores is damaged; names it.
    """
    _meet("reference scores written")  # by the first process, for an earlier stage
    cache = ScoreCache(directory, model_facts(setup, parameter_hash))
    _meet("reference scores read")  # so that none is written before all have read the same ones
    return cache


def reference_table(
    setup: Setup,
    params: Any,
    trees: TreeSource,
    shape: RowShape,
    cache: ScoreCache,
    facts: Facts,
    *,
    extend: bool = False,
    seed: int = 0,
) -> Float32[np.ndarray, "n N"]:
    """[n, N] log pi_ref of every branch of every example, nats; 0 for a branch an example lacks.

    What the cache holds is taken, after a few examples of it were scored again; the rest is scored, and written as it
    goes. The rows that are scored depend on what was written before only through whole parts, so a command that was
    killed ends, when it is given again, with the very table of one that was not.

    Args:
      shape: of a step's rows over all processes; `setup.accumulation` micro-batches of it are scored one by one.
      facts: see `score_cache.set_facts`.
      extend: score also where the cache was made with another model, tokenizer, template or truncation.
      seed: of the choice of examples that are scored again.

    Raises:
      ReferenceMismatchError: an example scored again differs from the cache.
      ValueError: the cache belongs to another model, tokenizer, template or truncation, each named; or a score is not
        finite.
    """
    shape = dataclasses.replace(shape, rows=shape.rows // setup.accumulation)
    keys, present = sequence_keys(trees, shape.branches)
    found = np.where(present, cache.lookup(keys), np.float32(0))
    done = np.isfinite(found).all(axis=1)
    if not done.all() and not extend:
        cache.check_unchanged(facts, missing=int(np.isnan(found).sum()), total=int(present.sum()))
    scorer = make_scorer(setup, params)
    if done.any():
        _check_again(setup, scorer, (trees, found), shape, np.flatnonzero(done), cache, seed)
    if done.all():
        return found
    first = jax.process_index() == 0
    if first:
        cache.begin_set(facts)
    steps = simulate(sampled(trees, shape, InOrder())).steps
    part = max(1, _PART_STEPS * len(trees) // steps)
    bar = progress_bar(
        shown=True, total=len(trees), initial=int(done.sum()), desc="scoring the reference", unit=" prompts"
    )
    with bar:
        for start in range(0, len(trees), part):
            own = slice(start, start + part)
            # What an earlier part has just scored may recur here.
            known = np.isfinite(np.where(present[own], cache.lookup(keys[own]), 0)).all(axis=1)
            pending = start + np.flatnonzero(~known)
            bar.update(int(np.sum(~done[own])) - len(pending))
            if not len(pending):
                continue
            logps = _score(setup, scorer, SelectedTrees(trees, pending), shape, bar)
            there = present[pending]
            cache.add(keys[pending][there], logps[there], write=first)
    return _complete(np.where(present, cache.lookup(keys), np.float32(0)))


def _score(
    setup: Setup, scorer: Callable[[Rows], jax.Array], trees: TreeSource, shape: RowShape, bar: tqdm | None = None
) -> Float32[np.ndarray, "n N"]:
    """Log-probs of all trees of a source."""
    return _complete(over_trees(scorer, setup.mesh, trees, shape, bar=bar))


def _tolerance(setup: Setup) -> float:
    """Accelerators multiply float32 in fewer bits unless told otherwise: TPUs in those of bfloat16."""
    dtype = setup.model.dtype
    reduced = dtype == "float32" and jax.default_backend() != "cpu"
    return TOLERANCE["bfloat16" if reduced else dtype]


def _meet(where: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _complete(table: np.ndarray) -> np.ndarray:
    lacking = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(lacking):
        raise ValueError(f"{len(lacking)} of {len(table)} examples have no finite reference score, first {lacking[0]}")
    return table


def _check_again(
    setup: Setup,
    scorer: Callable[[Rows], jax.Array],
    held: tuple[TreeSource, Float32[np.ndarray, "n N"]],
    shape: RowShape,
    done: np.ndarray,
    cache: ScoreCache,
    seed: int,
) -> None:
    """Scores a few examples again that the cache holds, and compares. `held`: all trees, and what it holds of them."""
    trees, found = held
    chosen = np.sort(np.random.default_rng(seed).choice(done, min(_CHECKED, len(done)), replace=False))
    selected = SelectedTrees(trees, chosen)
    live, lengths = _score(setup, scorer, selected, shape), selected.lengths.branches(shape.branches)
    gaps = np.abs(live - found[chosen])
    wrong = gaps > _tolerance(setup) * np.sqrt(lengths)
    if not wrong.any():
        return
    row, slot = np.unravel_index(np.argmax(np.where(wrong, gaps, 0)), gaps.shape)
    bad = int(wrong.any(axis=1).sum())
    cause = (
        "that one part of the cache was written by another program"
        if 2 * bad < len(chosen)
        else "that they were computed on other hardware, in another matmul precision, or by another version"
    )
    raise ReferenceMismatchError(
        f"example {chosen[row]}, branch {slot} of {lengths[row, slot]} tokens: the log-prob in {cache.folder} is "
        f"{found[chosen[row], slot]:.4f}, but the reference now gives {live[row, slot]:.4f}, further apart than "
        f"{setup.model.dtype} explains. {bad} of {len(chosen)} examples scored again differ, so it is likely {cause}. "
        "Delete that folder, and score again"
    )
