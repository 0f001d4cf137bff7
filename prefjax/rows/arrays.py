"""The arrays every step receives, whatever the layout. NamedTuples: pytrees for JAX and Grain without importing JAX.

Shape letters: R rows, T positions, S scored tokens per row, G groups (prompts) per row, K responses per group,
N branches per group (K responses, then the optional baseline, then the optional auxiliary), Q prompt-row positions,
E scored entries per row: E = S and entry t is scored token t, except in layout `merged` (see `Rows.entries`).
B is the leading axis of the per-group arrays: B = R, except in layout `pairs`, where the N branches of one group
lie in N consecutive rows, so R = B * N and G = 1. `R // B` is all a consumer needs to know.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Branches:
    """Which branches hang below every prompt of a run; static, so it is known when the step is compiled.

    longest  L, tokens of the longest response, where an objective reads single tokens; 0 where none does
    """

    responses: int
    baseline: bool = False
    auxiliary: bool = False
    longest: int = 0

    @property
    def count(self) -> int:
        """N: branches per group."""
        return self.responses + self.baseline + self.auxiliary

    @property
    def baseline_slot(self) -> int:
        return self.responses

    @property
    def auxiliary_slot(self) -> int:
        return self.responses + self.baseline


class PromptRows(NamedTuple):
    """The prompts of the same groups alone, packed, for a value network with its own trunk (DRO-V)."""

    tokens: np.ndarray  # [B, Q] int32
    positions: np.ndarray  # [B, Q] int32
    visible_until: np.ndarray  # [B, Q] int32
    prompt_ends: np.ndarray  # [B, G] int32, position of the last prompt token in the prompt row


class Rows(NamedTuple):
    """Packed rows. int32 unless said.

    Key j is visible to query i iff  j <= i < visible_until[j].  A padding token sees itself only
    (visible_until[j] = j + 1, segment 0). The t-th scored token `target_ids[r, t]` is predicted by the hidden state at
    `predictors[r, t]` and its log-prob is added to branch slot `response_slots[r, t]` = g * N + n of the row's groups;
    the first token of every response is predicted by the last prompt token. Padding has target_weights 0.
    `response_tokens[b, g, k, t]` is where the t-th scored token of a response stands among the scored entries of its
    group's R // B rows, laid end to end; -1 behind its last.

    In layout `merged` a scored token may be of several responses, and is scored once: entry e adds the log-prob of
    scored token `entries[r, e]` to slot `response_slots[r, e]`. Scored tokens are numbered without gaps, and each has
    an entry, so those behind the last one of the entries are padding.
    """

    tokens: np.ndarray  # [R, T]
    positions: np.ndarray  # [R, T] restart after the trunk for every branch
    segment_ids: np.ndarray  # [R, T] 0 is padding; 1, 2, ... number the tree nodes of the row depth first
    visible_until: np.ndarray  # [R, T]
    target_ids: np.ndarray  # [R, S]
    predictors: np.ndarray  # [R, S]
    response_slots: np.ndarray  # [R, E]
    target_weights: np.ndarray  # [R, E] float32
    prompt_ends: np.ndarray  # [B, G] position of the last prompt token (in the group's first row)
    response_ends: np.ndarray  # [B, G, N] position of each branch's last token (in layout `pairs`, in its own row)
    target: np.ndarray  # [B, G, K] float32
    valid: np.ndarray  # [B, G, K] bool
    weight: np.ndarray  # [B, G] float32
    example_id: np.ndarray  # [B, G] -1 is padding
    reference_logp: np.ndarray | None = None  # [B, G, N] float32, nats; None when the reference is live or absent
    prompts: PromptRows | None = None
    margin: np.ndarray | None = None  # [B, G] float32, as in `Responses`; None unless RowShape.carries names it
    target_probability: np.ndarray | None = None  # [B, G] float32, the same
    token_weight: np.ndarray | None = None  # [R, E] float32, from the data; None unless RowShape.carries names it
    token_segment: np.ndarray | None = None  # [R, E], the same
    response_tokens: np.ndarray | None = None  # [B, G, K, L]; None unless single tokens are asked for
    entries: np.ndarray | None = None  # [R, E] of S; None where entry t is scored token t

    @property
    def scored(self) -> Any:
        """[R, S] bool: the scored tokens, as an array of the kind that the rows have. What is False is padding, or read
        and not scored."""
        counted = self.target_weights != 0
        if self.entries is None:
            return counted
        used = (counted * (self.entries + 1)).max(axis=1)
        return np.arange(self.target_ids.shape[1])[None] < used[:, None]


@dataclasses.dataclass(frozen=True)
class RowShape:
    """The static shape of a run: one compilation. Lengths in tokens.

    layout         "pairs" | "packed_pairs" | "shared" | "shared_packed" | "merged"
    rows           B, rows of groups per step
    row_length     T
    scored_length  S
    groups         G, prompts per row at most (1 in layouts pairs and shared)
    prompt_length  Q, length of a prompt row; 0 means no prompt rows are built
    carries        which optional arrays the rows hold: of margin, target_probability, token_weight, token_segment
    entries        E in layout `merged`; unread elsewhere
    merge_from     tokens from which on records that begin alike are packed as one unit, beyond those that all have; 0:
                   none are. In layout `merged` alone, see `prefjax.rows.units`
    """

    layout: str
    rows: int
    row_length: int
    scored_length: int
    groups: int
    branches: Branches
    prompt_length: int = 0
    carries: tuple[str, ...] = ()
    entries: int = 0
    merge_from: int = 0


LAYOUTS = ("pairs", "packed_pairs", "shared", "shared_packed", "merged")
TOKEN_DTYPES = {"token_weight": np.float32, "token_segment": np.int32}  # of TOKEN_LABELS
