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
from tqdm import tqdm

from prefjax.data.encoding import EncodingPolicy, encode, encode_prompt, end_id
from prefjax.data.packing import suggest_shape, tree_sizes
from prefjax.data.pipeline import row_dataset
from prefjax.data.planning import InOrder, Planner, simulate
from prefjax.data.records import Record, Text, is_blank
from prefjax.data.report import Rejection, Report, collect
from prefjax.data.rows import Branches, Rows
from prefjax.data.store import MemoryTrees, TreeSource
from prefjax.data.tokenizers import Tokenizer, load_tokenizer
from prefjax.data.trees import TokenTree
from prefjax.losses.reward_models import preference_scores
from prefjax.models import decoder, lora
from prefjax.models.lora import LoraConfig
from prefjax.training.checkpoint import load_identity, load_params
from prefjax.training.config import StageConfig, find_objective
from prefjax.training.feed import to_devices
from prefjax.training.mesh import MeshConfig, make_mesh, row_shards
from prefjax.training.scoring import Setup, response_features, response_states
from prefjax.training.stage import complete_model, load_policy, placed
from prefjax.training.step import init_params


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A reward model on its devices, called with texts.

    A score is the scalar reward. Where the head is an embedding, which only compares, it is the mean of the preference
    scores against the prompt's other completions (arXiv 2410.02197, section 5, with these for the policy's samples).

    setup     without adapters: these are merged into `params`
    params    of the trunk, with the reward head
    encoding  how long texts may be, as in training
    """

    setup: Setup
    params: Any
    tokenizer: Tokenizer
    encoding: EncodingPolicy = EncodingPolicy()

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
        scored, report = self.score(records)
        if len(scored) < len(records):
            raise ValueError(f"{len(records) - len(scored)} of {len(records)} prompts cannot be scored\n{report}")
        return [list(scores) for _, scores in scored]

    def score(self, records: Iterable[Record]) -> tuple[list[tuple[Record, tuple[float, ...]]], Report]:
        """Records with a score for each response, and a report with the stage "score" on those that have none."""
        encoded, report = collect("score", records, self._encode)
        if not encoded:
            return [], report
        by_tree = self.score_trees(MemoryTrees(tree for _, tree, _ in encoded))
        scored = [
            (record, tuple(float(scores[place]) for place in places))
            for (record, _, places), scores in zip(encoded, by_tree, strict=True)
        ]
        return scored, report

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
        texts = [text for text in dict.fromkeys(record.responses) if not is_blank(text)]
        end = np.array([end_id(self.tokenizer, chat=record.is_chat)], np.int32)
        if texts:
            plain = Record(record.prompt, tuple(texts), (0.0,) * len(texts), "ranked", source=record.source)
            tree = encode(plain, self.tokenizer, self.encoding)
            if isinstance(tree, Rejection):
                yield tree
                return
        else:
            prompt = np.asarray(encode_prompt(record.prompt, self.tokenizer), np.int32)
            tree = TokenTree(prompt, (), np.zeros(0, np.float32))
        responses = tree.responses + (end,) * any(map(is_blank, record.responses))
        tree = dataclasses.replace(tree, responses=responses, targets=np.zeros(len(responses), np.float32))
        yield record, tree, [texts.index(t) if not is_blank(t) else len(texts) for t in record.responses]


def load_reward_model(config: StageConfig, workdir: str | Path) -> RewardModel:
    """The reward model of a run's newest checkpoint, cut over all devices of this process.

    Raises:
      ValueError: the run trained a policy.
      FileNotFoundError: there is no checkpoint.
    """
    objective = find_objective(config.objective)
    if not objective.trains_reward_model:
        raise ValueError(f"{workdir} trained a policy ({objective.name}) and no reward model")
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.chat_template)
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    setup = Setup(
        model=complete_model(config.model, tokenizer),
        objective=objective,
        branches=Branches(objective.group_size or objective.least),
        reference="none",
        reward_head=config.reward_head,
        lora=config.lora,
        mesh=mesh,
    )
    shapes = jax.eval_shape(functools.partial(init_params, setup), decoder.shapes(setup.model))
    params = load_params(Path(workdir), placed(mesh, shapes))["policy"]
    if config.lora.rank:
        adapted = load_identity(Path(workdir))["lora"]
        own = dataclasses.replace(config, seed=adapted["seed"])
        params = jax.jit(functools.partial(lora.merge, config.lora))(
            load_policy(own, setup.model, mesh, adapted["base"]), params
        )
    setup = dataclasses.replace(setup, lora=LoraConfig())
    return RewardModel(setup, params, tokenizer, config.data.encoding)


def response_table(
    setup: Setup,
    params: Any,
    trees: TreeSource,
    read: Callable[[Setup, Any, Rows], jax.Array],
    *,
    tokens_per_batch: int = 16_384,
) -> Float32[np.ndarray, "n K m"]:
    """What is read of every response of every tree, from packed rows that share prompts; NaN where a tree has fewer.

    Args:
      read: `response_features`, or `last_response_states`.
    """
    setup = dataclasses.replace(setup, branches=Branches(trees.lengths.responses.shape[1]))
    shards = row_shards(setup.mesh)
    longest = int(tree_sizes(trees.lengths, "shared_packed", setup.branches)[:, 0].max())
    limit = max(tokens_per_batch // shards, longest)
    shape = suggest_shape(trees.lengths, "shared_packed", setup.branches, shards, max_row_length=limit).shape
    steps = simulate(Planner(trees.lengths, shape, InOrder())).steps
    reader = jax.jit(functools.partial(read, setup))
    table = None
    for rows in tqdm(
        row_dataset(trees, shape, InOrder()), total=steps, desc="scoring responses", unit="batch", disable=None
    ):
        values = np.asarray(reader(params, to_devices(setup.mesh, rows)), np.float32)
        if table is None:
            table = np.full((len(trees), *values.shape[2:]), np.nan, np.float32)
        real = rows.example_id >= 0
        table[rows.example_id[real]] = np.where(rows.valid[real][..., None], values[real], np.nan)
    return table


def last_response_states(setup: Setup, params: Any, rows: Rows) -> jax.Array:
    """Hidden states [B, G, K, D] of every response's last token: what a reward head would read."""
    return response_states(setup, params, rows)[0]
