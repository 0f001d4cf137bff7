"""A trained reward model at work: prompts with completions in, one score for each completion out."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from prefjax.data.account import Account, Rejection, collect
from prefjax.data.config import DataConfig
from prefjax.data.encoding import encode, encode_prompt, end_id
from prefjax.data.progress import progress_bar
from prefjax.data.records import Record, Text, is_blank
from prefjax.data.tokenizers import Tokenizer
from prefjax.losses.reward_models import preference_scores
from prefjax.models import decoder, lora
from prefjax.models.lora import LoraConfig
from prefjax.rows.arrays import Rows
from prefjax.rows.store import MemoryTrees, TreeSource
from prefjax.rows.trees import TokenTree
from prefjax.training.checkpoint import load_params, load_proof
from prefjax.training.config import StageConfig, objective_of
from prefjax.training.mesh import MeshConfig, make_mesh
from prefjax.training.parameters import complete_model, ends_of_run, on_mesh, read_policy, tokenizer_of
from prefjax.training.runs import open_run
from prefjax.training.scoring import Setup, response_features, response_states
from prefjax.training.step import init_params
from prefjax.training.tables import over_trees, shape_once


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A reward model on its devices, called with texts.

    A score is the scalar reward. Where the head is an embedding, which only compares, it is the mean of the preference
    scores against the prompt's other completions (arXiv 2410.02197, section 5, with these for the policy's samples).

    setup     without adapters: these are merged into `params`
    params    of the trunk, with the reward head
    data      names the tokenizer and its chat template, and says how long texts may be, as in training
    end_ids   that end responses of the training data; None: unknown
    """

    setup: Setup
    params: Any
    tokenizer: Tokenizer
    data: DataConfig = DataConfig()
    end_ids: Sequence[int] | None = None

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Sequence[Text]]) -> list[list[float]]:
        """One list of scores for each prompt, in the order of its completions.

        Completions of one prompt share its tokens, and equal ones are scored once.

        Raises:
          ValueError: a text that cannot be encoded, or is too long; says which and why.
        """
        records = [
            Record(prompt, tuple(texts), (0.0,) * len(texts), "ranked", source=f"prompt {index}")
            for index, (prompt, texts) in enumerate(zip(prompts, completions, strict=True))
        ]
        return self.scores_of(records)

    def scores_of(self, records: Sequence[Record]) -> list[list[float]]:
        """The same for records."""
        scored, account = self.score(records)
        if len(scored) < len(records):
            raise ValueError(f"{len(records) - len(scored)} of {len(records)} prompts cannot be scored\n{account}")
        return [list(scores) for _, scores in scored]

    def score(self, records: Iterable[Record]) -> tuple[list[tuple[Record, tuple[float, ...]]], Account]:
        """Records with a score for each response, and an account with the stage "score" on those that have none."""
        encoded, account = collect("score", records, self._encode)
        if not encoded:
            return [], account
        by_tree = self.score_trees(MemoryTrees(tree for _, tree, _ in encoded))
        scored = [
            (record, tuple(float(scores[place]) for place in places))
            for (record, _, places), scores in zip(encoded, by_tree, strict=True)
        ]
        return scored, account

    def score_trees(self, trees: TreeSource) -> list[Float32[np.ndarray, "K"]]:
        """The scores of every tree's responses.

        Raises:
          ValueError: a head that only compares, and a tree with one response.
        """
        features = response_table(self.setup, self.params, trees, response_features)
        if features.shape[-1] == 1:
            return [scores[: len(trees[i].responses)] for i, scores in enumerate(features[..., 0])]
        scores = []
        for index, all_slots in enumerate(features):
            own = all_slots[: len(trees[index].responses)]
            if len(own) < 2:
                raise ValueError(
                    f"example {index} has one response, but this reward model ({self.setup.objective.name}) only "
                    "compares responses of one prompt: give at least two different ones"
                )
            scores.append(np.asarray(preference_scores(jnp.asarray(own)[None]))[0].sum(-1) / (len(own) - 1))
        return scores

    def _encode(self, record: Record) -> Iterator[tuple[Record, TokenTree, list[int]] | Rejection]:
        """(record, tree of its different responses, where each response is among them).

        A response without text is the end token alone: a policy may say that, and so it has a score.
        """
        places = {text: k for k, text in reversed([*enumerate(record.responses)]) if not is_blank(text)}
        own = sorted(places.values())  # the first of equal ones
        policy, given = self.data.encoding, record.given
        end = np.array([end_id(record.prompt, self.tokenizer, policy, given=given)], np.int32)
        if own:
            different = record.select(tuple(own), (0.0,) * len(own), "ranked")
            different = dataclasses.replace(different, source=record.source, auxiliary=None, spans=None)
            tree = encode(different, self.tokenizer, policy)
            if isinstance(tree, Rejection):
                yield tree
                return
        else:
            prompt = np.asarray(encode_prompt(record.prompt, self.tokenizer, policy, given=given), np.int32)
            tree = TokenTree(prompt, (), np.zeros(0, np.float32))
        responses = tree.responses + (end,) * any(map(is_blank, record.responses))
        tree = dataclasses.replace(tree, responses=responses, targets=np.zeros(len(responses), np.float32))
        yield record, tree, [len(own) if is_blank(t) else own.index(places[t]) for t in record.responses]


def open_reward_model(workdir: str | Path, config: StageConfig | None = None) -> RewardModel:
    """The reward model of a run's newest checkpoint, cut over all devices of this process.

    Args:
      config: how it was trained; None: as the folder says.

    Raises:
      ValueError: there is no run, or it trained a policy.
      FileNotFoundError: there is no checkpoint.
    """
    config = open_run(workdir).stage if config is None else config
    objective = objective_of(config)
    if not objective.requires.reward_head:
        raise ValueError(f"{workdir} trained a policy ({objective.name}) and no reward model")
    tokenizer = tokenizer_of(config.data, config.model)
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    setup = Setup(
        model=complete_model(config.model, tokenizer),
        objective=objective,
        reward_head=config.reward_head,
        lora=config.lora,
        mesh=mesh,
    )
    shapes = jax.eval_shape(functools.partial(init_params, setup), decoder.shapes(setup.model))
    params = load_params(workdir, on_mesh(mesh, shapes))["policy"]
    if config.lora.rank:
        base = read_policy(load_proof(workdir).facts["init_from"], setup.model, mesh, seed=config.seed)
        params = jax.jit(functools.partial(lora.merge, config.lora))(base, params)
    setup = dataclasses.replace(setup, lora=LoraConfig())
    return RewardModel(setup, params, tokenizer, config.data, ends_of_run(workdir))


def response_table(
    setup: Setup, params: Any, trees: TreeSource, read: Callable[[Setup, Any, Rows], jax.Array]
) -> Float32[np.ndarray, "n K m"]:
    """What is read of every response of every tree, from packed rows that share prompts; NaN where a tree has fewer.

    Args:
      read: `response_features`, or `last_response_states`.
    """

    @jax.jit
    def of_rows(params: Any, rows: Rows) -> jax.Array:
        values = read(setup, params, rows).astype(jnp.float32)
        return jnp.where(rows.valid[..., None], values, jnp.nan)

    bar = progress_bar(shown=True, total=len(trees), desc="scoring responses", unit=" prompts")
    with bar:
        shape = shape_once(trees, setup.mesh)
        return over_trees(lambda rows: of_rows(params, rows), setup.mesh, trees, shape, bar=bar)


def last_response_states(setup: Setup, params: Any, rows: Rows) -> jax.Array:
    """Hidden states [B, G, K, D] of every response's last token: what a reward head would read."""
    return response_states(setup, params, rows)[0]
