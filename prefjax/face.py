"""What a notebook or a script composes: records in, a training loop of one's own, numbers and samples out.

    import prefjax as px
    objective = px.objective("dpo", beta=2.0)
    train, held_out = px.encode(records, tok, objective, holdout=0.05)
    state = px.init_state(px.Setup(model, objective), px.init(model, seed=0), optax.adamw(1e-4))
    step = px.make_train_step(setup)
    for rows in px.pack(train, objective, tokens_per_step=4096):
        state, metrics = step(state, rows)

The commands in `experiments/` are made of the same parts.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from prefjax.data import in_memory
from prefjax.data.encoding import EncodingPolicy, decode_response
from prefjax.data.formats import RecordFormat
from prefjax.data.in_memory import EncodedTrees
from prefjax.data.records import Record
from prefjax.data.tokenizers import Tokenizer
from prefjax.losses import Objective, objective
from prefjax.models import ModelConfig, SamplingOptions, decoder
from prefjax.policies.open import open_policy
from prefjax.policies.rollouts import Sampler, sample_responses
from prefjax.rows.arrays import LAYOUTS, Rows
from prefjax.rows.mismatch import mismatched_baselines
from prefjax.rows.pipeline import row_dataset
from prefjax.rows.steps import FullRows
from prefjax.rows.store import TreeSource
from prefjax.training.batches import shape_for
from prefjax.training.config import RowsConfig
from prefjax.training.evaluator import Evaluator
from prefjax.training.parameters import Policy, stop_ids
from prefjax.training.scoring import Setup
from prefjax.training.stage import plain_policy
from prefjax.training.step import TrainState


def encode(
    records: Iterable[Record | dict[str, Any]],
    tokenizer: Tokenizer,
    for_objective: Objective | str,
    *,
    holdout: float = 0.0,
    policy: EncodingPolicy = EncodingPolicy(),
    record_format: RecordFormat = RecordFormat(),
) -> tuple[EncodedTrees, EncodedTrees]:
    """Records as token trees in memory, as the objective needs them: those to train on, and those held out.

    What becomes of every record is counted by reason in `.account` of both; print it.

    Args:
      records: rows of the shapes that files hold (docs/datasets.md): {"prompt": ..., "chosen": ..., "rejected": ...},
        as text or as chat messages; or `Record`s.
      holdout: share of the prompts, chosen by a hash, that is held out.
      policy: how long texts may be, and what becomes of longer ones.
      record_format: names of further columns.

    Raises:
      ValueError: no record is left to train on; says why they were dropped.
    """
    requires = objective(for_objective).requires
    return in_memory.encode_records(
        records, tokenizer, requires, holdout=holdout, policy=policy, record_format=record_format
    )


def init(model: ModelConfig, *, seed: int = 0) -> Any:
    """Fresh parameters of a policy: a plain nested dict of arrays."""
    return decoder.init(model, jax.random.key(seed))


def load(source: str | Path, **options: Any) -> Policy:
    """A policy that was trained, or comes from elsewhere: `.params` and what belongs to them.

    Args:
      source: a run's --workdir, the folder of one of its stages (WORKDIR/sft), a Hugging Face folder, or
        "hf:owner/name", which is downloaded.
      options: as of `prefjax.policies.open_policy`: mesh, dtype, chat_template, chat_template_kwargs, date.
    """
    return open_policy(source, **options)


def pack(
    trees: TreeSource,
    for_objective: Objective | str,
    *,
    tokens_per_step: int,
    seed: int | None = 0,
    epochs: int | None = None,
    layout: str = "shared_packed",
    reference: Float32[np.ndarray, "n N"] | None = None,
) -> Iterator[Rows]:
    """Rows of one static shape, packed full, shuffled anew every epoch; an iterator with get_state() and set_state().

    Args:
      tokens_per_step: positions of all rows of one step.
      seed: of the order; None: every epoch as the trees lie.
      epochs: passes over the trees; None goes on for ever.
      layout: "shared_packed"; "merged", where records of a row share what they begin with; or one of the plainer ones
        that they are compared with: shared, packed_pairs, pairs.
      reference: [n, N] log-probs of every branch under a precomputed reference, nats.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: choose one of {LAYOUTS}")
    requires = objective(for_objective).requires
    batching = FullRows(seed, epochs)
    trees = _with_baselines(trees, requires.baseline, seed or 0)
    rows = RowsConfig(layout=layout, tokens_per_step=tokens_per_step)
    shape = shape_for(rows, requires, trees, batching, prompt_rows=requires.value)
    return iter(row_dataset(trees, shape, batching, reference=reference))


def evaluate(setup: Setup, state: TrainState, trees: TreeSource, *, tokens_per_step: int = 16_384) -> dict[str, float]:
    """Metrics over all trees, each prompt counted once; names and units: `prefjax.training.metrics`."""
    requires = setup.objective.requires
    trees = _with_baselines(trees, requires.baseline, setup.seed)
    shape = shape_for(
        RowsConfig(tokens_per_step=tokens_per_step),
        requires,
        trees,
        FullRows(0),
        prompt_rows=setup.value_network == "own",
    )
    return Evaluator(setup, trees, shape)(state.params, state.frozen, state.carried)


def sample(
    setup: Setup,
    state: TrainState,
    prompts: Sequence[np.ndarray | str],
    tokenizer: Tokenizer,
    *,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    seed: int = 0,
) -> list[str]:
    """One response of the policy to every prompt, as text.

    Args:
      prompts: token ids, as `EncodedTrees.prompts` has them, or plain texts.
      temperature: logits are divided by it; 0 takes the most likely token.
    """
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ids = [
        np.array(begin + tokenizer.encode(prompt), np.int32) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    responses = sample_responses(
        Sampler(setup.model, plain_policy(setup, state), stop_ids(None, tokenizer), tokenizer.pad_id, setup.mesh),
        ids,
        SamplingOptions(temperature=temperature, max_new_tokens=max_new_tokens),
        seed=seed,
    )
    return [
        decode_response(prompt.tolist(), response.tokens.tolist(), tokenizer, chat=False)
        for prompt, response in zip(ids, responses, strict=True)
    ]


def _with_baselines(trees: TreeSource, wanted: bool, seed: int) -> TreeSource:
    return mismatched_baselines(trees, seed) if wanted else trees
