"""Lengths of a dataset of token trees, and what sharing prompts saves; every number with its definition."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from prefjax.rows.packing import TreeLengths
from prefjax.rows.trees import TokenTree


@dataclasses.dataclass(frozen=True)
class Summary:
    """One measured quantity over its population; p95 interpolates linearly between order statistics."""

    definition: str
    count: int
    median: float
    mean: float
    p95: float
    max: float


@dataclasses.dataclass(frozen=True)
class LengthSummary:
    """Lengths in tokens, BOS and EOS included. P is a tree's prompt, L a branch, K the number of responses, C and R the
    chosen and the rejected response of a pair. Branches are the responses and, where a tree has them, the baseline and
    the auxiliary response. What has no population (C where there are no pairs) is left out.

    lengths          name -> Summary
    ratios           name -> Summary of a prompt : response ratio, taken per tree
    ratio_of_means   sum of P over trees / sum over trees of the mean response length
    separate_tokens  sum over branches of P + L: every branch a sequence of its own
    shared_tokens    sum over trees of P + sum of L: every prompt once
    token_saving     separate_tokens / shared_tokens, a ratio of sums over the dataset. The formula 2 (r + 1) / (r + 2)
                     at a median ratio r is not this number, because medians are not means.
    """

    trees: int
    lengths: dict[str, Summary]
    ratios: dict[str, Summary]
    ratio_of_means: float
    separate_tokens: int
    shared_tokens: int

    @property
    def token_saving(self) -> float:
        return self.separate_tokens / self.shared_tokens

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON manifest."""
        return {**dataclasses.asdict(self), "token_saving": self.token_saving}

    def __str__(self) -> str:
        lines = [f"lengths of {self.trees} token trees", *_table(self.lengths, ".0f")]
        lines += ["", "prompt : response, per tree", *_table(self.ratios, ".2f")]
        lines += [
            f"  {self.ratio_of_means:.2f} = sum of P / sum of mean L, over all trees",
            "",
            "tokens through the model per epoch",
            f"  {self.separate_tokens:>12,} separate: sum over branches of P + L",
            f"  {self.shared_tokens:>12,} shared: sum over trees of P + sum of L",
            f"  {self.token_saving:>12.2f} times fewer by sharing: separate / shared",
        ]
        return "\n".join(lines)


def summarize_lengths(trees: Sequence[TokenTree]) -> LengthSummary:
    """Length statistics of trees after encoding, and so after truncation; raises as `summarize`."""
    pairs = [len(tree.responses) == 2 and bool(tree.targets[0] > tree.targets[1]) for tree in trees]
    return summarize(TreeLengths.of(trees), np.array(pairs, bool))


def summarize(lengths: TreeLengths, is_pair: Bool[np.ndarray, "n"]) -> LengthSummary:
    """Length statistics of a dataset.

    Args:
        is_pair: two responses, the first with the higher target.
    Raises:
        ValueError: no trees.
    """
    if not len(lengths):
        raise ValueError("no token trees to measure")
    prompts, responses = lengths.prompt.astype(np.int64), lengths.responses.astype(np.int64)
    count, total = np.count_nonzero(responses, axis=1), responses.sum(axis=1)
    extras = np.stack([lengths.baseline, lengths.auxiliary], axis=1).astype(np.int64)
    pair_prompts, pairs = prompts[is_pair], responses[is_pair]
    chosen, rejected = (pairs[:, side] if pairs.shape[1] > side else pairs[:0, 0] for side in (0, 1))
    shared = prompts + total + extras.sum(axis=1)
    separate = shared + prompts * (count + np.count_nonzero(extras, axis=1) - 1)
    mean_response = total / count

    return LengthSummary(
        trees=len(lengths),
        lengths=_summaries(
            ("prompt", "P, over trees", prompts),
            ("response", "L, over responses", responses[responses > 0]),
            ("chosen", "C, over pairs (K = 2, first target higher)", chosen),
            ("rejected", "R, over pairs", rejected),
            ("sequence", "P + L, over responses", (prompts[:, None] + responses)[responses > 0]),
            ("tree", "P + sum of branches, over trees", shared),
            ("separate", "sum of P + L over a tree's branches; 2 P + C + R for a pair", separate),
            ("responses", "K, over trees", count),
        ),
        ratios=_summaries(
            ("P / C", "over pairs", pair_prompts / chosen),
            ("P / R", "over pairs", pair_prompts / rejected),
            ("P / mean L", "over trees", prompts / mean_response),
            ("P / max L", "over trees", prompts / responses.max(axis=1)),
            ("P / sum L", "over trees", prompts / total),
        ),
        ratio_of_means=float(prompts.sum() / mean_response.sum()),
        separate_tokens=int(separate.sum()),
        shared_tokens=int(shared.sum()),
    )


def _summaries(*rows: tuple[str, str, np.ndarray]) -> dict[str, Summary]:
    return {
        name: Summary(
            definition,
            values.size,
            *(float(f(values)) for f in (np.median, np.mean, lambda v: np.percentile(v, 95), np.max)),
        )
        for name, definition, values in rows
        if values.size
    }


def _table(summaries: dict[str, Summary], number: str) -> list[str]:
    columns = ("median", "mean", "p95", "max")
    lines = [f"  {'':<10} {'count':>8}" + "".join(f" {column:>8}" for column in columns)]
    for name, summary in summaries.items():
        values = "".join(f" {getattr(summary, column):>8{number}}" for column in columns)
        lines.append(f"  {name:<10} {summary.count:>8}{values}  {summary.definition}")
    return lines
