"""A token tree: one prompt and the responses that share it, as token ids."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTree:
    """One prompt (trunk) with K responses (branches). Token ids are int32 NumPy arrays.

    prompt      [P] P >= 1, exactly one BOS (when the tokenizer has one); the same array serves all K responses.
    responses   K arrays [L_k], L_k >= 1; EOS is the last id where the response really ends (not when truncated). A
                token that the model reads but that is not scored, as those of a user's turn between two of the
                assistant's, is held as ~id, a negative number: see `token_ids` and `is_scored`.
    targets     [K] float32: 1/0 label, reward or score; (1, 0) for a pair, chosen first.
    baseline    [L] KTO's mismatched response (a response to another prompt), or None.
    auxiliary   [L] a regulariser target under the same prompt (SLiC's y_ref), or None.
    weight      per-prompt loss weight.
    margin      `Responses.margin` of a pair, or None.
    target_probability  `Responses.target_probability` of a pair, or None.
    token_weight   K float32 arrays [L_k], `Responses.token_weight` of every response token, or None.
    token_segment  K int32 arrays [L_k], `Responses.token_segment` of every response token, or None.
    example_id  row of the record in its prepared dataset; stable across runs, keys the reference cache.
    """

    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]
    targets: np.ndarray
    baseline: np.ndarray | None = None
    auxiliary: np.ndarray | None = None
    weight: float = 1.0
    margin: float | None = None
    target_probability: float | None = None
    token_weight: tuple[np.ndarray, ...] | None = None
    token_segment: tuple[np.ndarray, ...] | None = None
    example_id: int = -1

    @property
    def branches(self) -> tuple[np.ndarray, ...]:
        """Everything that hangs below the prompt, in the order of `Branches`: responses, baseline, auxiliary."""
        extras = (branch for branch in (self.baseline, self.auxiliary) if branch is not None)
        return (*self.responses, *extras)


def token_ids(branch: np.ndarray) -> np.ndarray:
    """The ids of a branch's tokens, whether they are scored or not."""
    return np.where(branch < 0, ~branch, branch)


def is_scored(branch: np.ndarray) -> np.ndarray:
    """[L] bool: which of a branch's tokens are scored."""
    return branch >= 0
