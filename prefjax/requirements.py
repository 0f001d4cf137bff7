"""What an objective asks for: the one value that data, rows and the step read."""

import dataclasses
from typing import Any

PAIR_NUMBERS = ("margin", "target_probability")  # what some objectives read of a pair besides its targets
TOKEN_LABELS = ("token_weight", "token_segment")  # what the data may say of single tokens, by weighted spans
READS = ("nothing", "labels", "probabilities", "rewards", "scores")
# Fields of `Responses` that name a frozen reference, by themselves or through statistics of it.
_OF_REFERENCE = frozenset({"reference_logp", "kl", "token_reference_logp", "token_kl"})


@dataclasses.dataclass(frozen=True)
class Requirements:
    """What has to be there before an objective can be computed.

    group_size     K responses a prompt must have; None: any number of them
    min_responses  with group_size None, the valid responses without which a prompt does not count: 2 where responses
                   are compared, 1 where each is judged alone
    inputs         fields of `Responses` that are read besides logp and valid
    optional       fields that are read where they are there
    reads          what `target` is to it: "nothing"; "labels" (1 desirable, 0 undesirable); "probabilities" (in [0, 1],
                   how often a response wins; labels are such); "rewards" (any number, a quantity on its own that may be
                   normalised over the dataset); or "scores" (any number that compares the responses of one prompt: by
                   order or difference, of `lipo_lambda` and `gpo_score` by its value too, so never normalised)
    imitates       wants of every prompt the one response that is worth imitating, and nothing to compare it with
    """

    group_size: int | None = None
    min_responses: int = 1
    inputs: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    reads: str = "nothing"
    imitates: bool = False

    def __post_init__(self):
        if self.reads not in READS:
            raise ValueError(f"reads={self.reads!r}: choose one of {READS}")

    @property
    def reference(self) -> bool:
        """Whether the policy is compared with a frozen reference, in log-probs or over the vocabulary."""
        return bool(self.inputs & _OF_REFERENCE)

    @property
    def value(self) -> bool:
        """Whether V(x) is read."""
        return "value" in self.inputs

    @property
    def reward_head(self) -> bool:
        """Whether a reward head is read in place of log-probs: a reward model is trained."""
        return "features" in self.inputs

    @property
    def baseline(self) -> bool:
        """Whether every prompt needs a mismatched response, one to another prompt."""
        return "baseline_logp" in self.inputs

    @property
    def single_tokens(self) -> bool:
        """Whether arrays with an entry per token are read."""
        return any(name.startswith("token_") for name in self.inputs)

    @property
    def pair_numbers(self) -> tuple[str, ...]:
        """Which of `PAIR_NUMBERS` are read."""
        return tuple(name for name in PAIR_NUMBERS if name in self.inputs)

    @property
    def token_labels(self) -> tuple[str, ...]:
        """Which of `TOKEN_LABELS` are read."""
        return tuple(name for name in TOKEN_LABELS if name in self.inputs)

    def of_data(self) -> dict[str, Any]:
        """What decides which records become which token trees, JSON-able; objectives that agree in it share them."""
        return {
            "group_size": self.group_size,
            "min_responses": self.min_responses,
            "reads": self.reads,
            "imitates": self.imitates,
            "pair_numbers": self.pair_numbers,
            "spans": bool(self.token_labels),
        }
