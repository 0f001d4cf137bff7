"""Python objects -> token trees in memory, with the same account of every record as prepared files have."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int32

from prefjax.data.account import Account, Finding, collect
from prefjax.data.encoding import EncodingPolicy, encode_all
from prefjax.data.formats import RecordFormat, parse
from prefjax.data.records import Record
from prefjax.data.tokenizers import Tokenizer
from prefjax.data.transforms import adapt
from prefjax.data.treatment import is_held_out
from prefjax.requirements import Requirements
from prefjax.rows.store import MemoryTrees
from prefjax.rows.trees import TokenTree


class EncodedTrees(MemoryTrees):
    """Token trees in memory, and what became of the records that they were made of."""

    def __init__(self, trees: Iterable[TokenTree], account: Account):
        super().__init__(trees)
        self.account = account

    @property
    def prompts(self) -> list[Int32[np.ndarray, "P"]]:
        """Token ids of the different prompts, in order."""
        _, first = np.unique(self.prompt_hashes, return_index=True)
        return [self[int(index)].prompt for index in np.sort(first)]


def encode_records(
    records: Iterable[Record | Mapping[str, Any]],
    tokenizer: Tokenizer,
    requires: Requirements,
    *,
    holdout: float = 0.0,
    policy: EncodingPolicy = EncodingPolicy(),
    record_format: RecordFormat = RecordFormat(),
) -> tuple[EncodedTrees, EncodedTrees]:
    """(trees to train on, trees held out): parsed, adapted to what an objective requires, encoded.

    Args:
      records: rows of the shapes that `formats` reads, or records.
      holdout: share of the prompts, chosen by their hash, that is held out.

    Raises:
      ValueError: no record is left to train on; the message holds the counts by reason.
    """
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout={holdout} must be a share in [0, 1)")

    def read(numbered: tuple[int, Record | Mapping[str, Any]]) -> Iterator[Record | Finding]:
        number, row = numbered
        if isinstance(row, Record):
            return iter((row,))
        return parse(row, f"record {number}", record_format)

    parsed, account = collect("read", enumerate(records), read)
    splits: tuple[list[Record], list[Record]] = ([], [])
    for record in parsed:
        splits[is_held_out(record, holdout)].append(record)
    made = []
    pair_targets = "scores" if requires.group_size == 2 and requires.reads == "scores" else "labels"
    for own in splits:
        adapted, adapting = adapt(own, requires, pair_targets=pair_targets)
        trees, encoding = encode_all(adapted, tokenizer, policy, progress=False)
        made.append(EncodedTrees(trees, account + adapting + encoding))
    if not len(made[0]):
        raise ValueError(f"no record is left to train on\n\n{made[0].account}")
    return made[0], made[1]
