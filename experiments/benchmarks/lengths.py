"""Whose lengths a benchmark runs on: a preference file, or lognormal lengths with stated medians and random ids."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from experiments.tables.harness import load_paper
from prefjax.data.encoding import EncodingPolicy, encode_all
from prefjax.data.formats import RecordFormat
from prefjax.data.readers import read_records
from prefjax.data.tokenizers import load_tokenizer
from prefjax.data.transforms import adapt
from prefjax.requirements import Requirements
from prefjax.rows.packing import TreeLengths
from prefjax.rows.trees import TokenTree

PAPER = "paper:"
LONG_PROMPT = "long_prompt"
DIALOGUES = "dialogues"
_TURNS = 4  # of a dialogue
DRAWN = 2048  # trees drawn from a distribution
_CANDIDATES = 256  # samples that `representative` chooses from


@dataclasses.dataclass(frozen=True)
class Lognormal:
    """Independent lognormal lengths of a prompt and its responses, in tokens.

    median_length  median of prompt and two responses together
    median_ratio   median of prompt : one response, which is the ratio of the medians
    *_sigma        standard deviation of the logarithm. The defaults are what the 95th percentiles of HH-RLHF
                   (harmless-base, test) say under SmolLM2's tokenizer: 0.69, and 0.86 and 0.83.
    """

    median_length: float
    median_ratio: float
    prompt_sigma: float = 0.7
    response_sigma: float = 0.8

    def draw(self, rng: np.random.Generator, count: int, responses: int) -> tuple[np.ndarray, np.ndarray]:
        """(prompt lengths [count], response lengths [count, responses]), at least 1 each."""
        prompt, response = self._units(np.random.default_rng(0), 200_000, 2)
        scale = self.median_length / np.median(prompt + response.sum(1))
        prompt, response = self._units(rng, count, responses)
        whole = lambda x: np.maximum(1, np.rint(scale * x)).astype(int)
        return whole(prompt), whole(response)

    def _units(self, rng, count, responses):
        """The same, in units of the median response."""
        prompt = self.median_ratio * rng.lognormal(0, self.prompt_sigma, count)
        return prompt, rng.lognormal(0, self.response_sigma, (count, responses))

    def __str__(self) -> str:
        return (
            f"lognormal lengths, median of P + C + R {self.median_length:g}, median P / C {self.median_ratio:g}, sigma "
            f"{self.prompt_sigma:g} of prompts and {self.response_sigma:g} of responses; random ids"
        )


def published() -> dict[str, Any]:
    """The numbers of others in paper.toml, each with its provenance."""
    return load_paper(Path(__file__).with_name("paper.toml"))


def distributions() -> dict[str, Lognormal]:
    """By name: the paper's six datasets as "paper:NAME", and "long_prompt", six prompt tokens to a response token."""
    lengths = published()["datasets"]["lengths"]
    named = {PAPER + name: Lognormal(**facts) for name, facts in lengths.items() if isinstance(facts, dict)}
    return named | {LONG_PROMPT: Lognormal(median_length=512, median_ratio=6)}


def load_trees(
    data: str, tokenizer_name: str, policy: EncodingPolicy, *, vocab_size: int, group_size: int | None = 2
) -> tuple[list[TokenTree], str]:
    """Trees with example_id 0, 1, ..., and one line that says what they are.

    Args:
      data: a name in `distributions()`, or a file, folder or glob pattern of records.
      policy: the truncation rule. Lengths of a distribution can only be dropped (and drawn again).
      group_size: 2 takes pairs, and rankings as pairs; None any number of responses.

    Raises:
      ValueError: no such distribution, a rule it cannot follow, or a model without the tokenizer's BOS or EOS.
    """
    named = distributions()
    if data == DIALOGUES:
        text = f"dialogues of {_TURNS} turns, a pair at each whose chosen response the next continues; random ids"
        return draw_dialogues(DRAWN, policy, vocab_size=vocab_size), text
    if data in named:
        if policy.truncation != "drop":
            raise ValueError(f"truncation={policy.truncation!r} with data={data!r}: drawn lengths can only be dropped")
        return draw_trees(named[data], DRAWN, policy, vocab_size=vocab_size), str(named[data])
    if data.startswith(PAPER):
        raise ValueError(f"data={data!r}: choose one of {', '.join(named)}, or a file")
    tokenizer = load_tokenizer(tokenizer_name, vocab_size=vocab_size)
    records, report = read_records(data, RecordFormat())
    records, adapted = adapt(records, Requirements(group_size))
    trees, encoded = encode_all(records, tokenizer, policy)
    if not trees:
        raise ValueError(f"{data}: no record is left\n\n{report + adapted + encoded}")
    return trees, f"{len(trees)} records of {data.rsplit('/', 1)[-1]}, {tokenizer_name.rsplit('/', 1)[-1]} tokenizer"


def draw_trees(
    lengths: Lognormal,
    count: int,
    policy: EncodingPolicy,
    *,
    vocab_size: int,
    responses: int = 2,
    seed: int = 0,
) -> list[TokenTree]:
    """Trees of these lengths; those that exceed the policy's limits are left out and drawn again."""
    rng = np.random.default_rng(seed)
    limits = [policy.max_prompt_length, policy.max_response_length, policy.max_length]
    trees: list[TokenTree] = []
    while len(trees) < count:
        for prompt, branches in zip(*lengths.draw(rng, count, responses), strict=True):
            longest = branches.max()
            sizes = (prompt, longest, prompt + longest)
            if all(limit is None or size <= limit for size, limit in zip(sizes, limits, strict=True)):
                trees.append(make_tree(rng, len(trees), prompt, branches, vocab_size))
    return trees[:count]


def draw_dialogues(pairs: int, policy: EncodingPolicy, *, vocab_size: int, seed: int = 0) -> list[TokenTree]:
    """Dialogues of four turns, of 16 to 64 tokens of a user and 48 to 160 of each response, as far as they fit."""
    rng = np.random.default_rng(seed)
    trees: list[TokenTree] = []
    while len(trees) < pairs:
        dialogue, context = [], np.ones(1, np.int32)
        for _ in range(_TURNS):
            pair = make_tree(rng, 0, int(rng.integers(16, 65)), rng.integers(48, 161, 2), vocab_size)
            pair = dataclasses.replace(pair, prompt=np.concatenate([context, pair.prompt[1:]]))
            context = np.concatenate([pair.prompt, pair.responses[0]])
            dialogue.append(pair)
        if policy.max_length is None or len(context) <= policy.max_length:
            trees += dialogue
    return [dataclasses.replace(tree, example_id=row) for row, tree in enumerate(trees[:pairs])]


def make_tree(rng: np.random.Generator, example_id: int, prompt: int, branches, vocab_size: int) -> TokenTree:
    """Random ids; the targets go down from 1 to 0 in equal steps."""
    ids = lambda length: rng.integers(vocab_size, size=int(length), dtype=np.int32)
    targets = np.linspace(1, 0, len(branches), dtype=np.float32)
    return TokenTree(ids(prompt), tuple(map(ids, branches)), targets, example_id=example_id)


def representative(trees: list[TokenTree], count: int, seed: int = 0) -> list[TokenTree]:
    """`count` trees whose mean prompt and mean response length are nearest to those of all, of many random samples.

    A step on a CPU holds a dozen pairs, and a dozen taken blindly may share much more or much less than the dataset.

    Raises:
      ValueError: fewer trees than asked for.
    """
    if count > len(trees):
        raise ValueError(f"pairs={count}, but only {len(trees)} are there: lower it")
    lengths = TreeLengths.of(trees)
    whole = np.stack([lengths.prompt, lengths.responses.sum(1)], axis=1).astype(float)
    rng = np.random.default_rng(seed)
    samples = [rng.permutation(len(trees))[:count] for _ in range(_CANDIDATES)]
    distance = lambda sample: np.abs(np.log(whole[sample].mean(0) / whole.mean(0))).sum()
    best = np.sort(min(samples, key=distance))
    return [dataclasses.replace(trees[i], example_id=row) for row, i in enumerate(best)]
