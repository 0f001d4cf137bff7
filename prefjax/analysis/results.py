"""What a finished run hands to its report, as plain text and NumPy arrays, and the numbers drawn from it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from prefjax.analysis import statistics
from prefjax.analysis.curves import last


@dataclasses.dataclass(frozen=True)
class Gold:
    """True rewards of the samples, where the data has them (the synthetic world does, people's preferences do not).

    reference, policy  [N] of the starting model's and the trained model's samples
    floor              the reward of malformed text, to report its share; None when there is no such value
    ceiling            mean over the prompts of the highest reward there is; None when unknown
    """

    reference: Float[np.ndarray, "N"]
    policy: Float[np.ndarray, "N"]
    floor: float | None = None
    ceiling: float | None = None


@dataclasses.dataclass(frozen=True)
class Samples:
    """One response of the starting model and one of the trained model to each of N held-out prompts.

    reference, policy                  the responses as text
    policy_logp, policy_reference_logp [N] log pi(y|x) and log ref(y|x) of the trained model's responses, nats, summed
    unfinished                         how many of the trained model's responses hit the token limit
    """

    prompts: Sequence[str]
    reference: Sequence[str]
    policy: Sequence[str]
    policy_logp: Float[np.ndarray, "N"]
    policy_reference_logp: Float[np.ndarray, "N"]
    gold: Gold | None = None
    unfinished: int = 0

    def __post_init__(self):
        fields = ("reference", "policy", "policy_logp", "policy_reference_logp")
        lengths = {name: len(getattr(self, name)) for name in fields}
        if self.gold is not None:
            lengths |= {"gold.reference": len(self.gold.reference), "gold.policy": len(self.gold.policy)}
        for name, length in lengths.items():
            if length != len(self.prompts):
                raise ValueError(f"samples.{name} has {length} entries for {len(self.prompts)} prompts")
        if not self.prompts:
            raise ValueError("samples.prompts is empty; leave samples=None when nothing was sampled")


@dataclasses.dataclass(frozen=True)
class Rewards:
    """What a reward model gives to held-out responses; both None where its head only compares, or nothing is known.

    predicted  [N] rewards
    gold       [N] true ones of the same responses, where the data has them
    """

    predicted: Float[np.ndarray, "N"] | None = None
    gold: Float[np.ndarray, "N"] | None = None

    @property
    def correlation(self) -> float | None:
        """Pearson's, of predicted and gold rewards; None where either does not vary or is not there."""
        if self.gold is None or not np.ptp(self.gold) or not np.ptp(self.predicted):
            return None
        return float(np.corrcoef(self.predicted, self.gold)[0, 1])


@dataclasses.dataclass(frozen=True)
class RunResults:
    """Everything `write_report` shows.

    objective       its name in the registry
    start           what training started from and is compared with, e.g. "SFT"
    data            one line that says which data
    command         the command that repeats the run
    config, machine name -> value, shown as they are
    seconds         part of the run -> wall time
    metrics         lines of the preference stage's metrics file (`read_metrics`)
    heldout_pairs   number of pairs behind the evaluation's reward_accuracy; 0 when there are none
    samples         None when nothing was sampled
    accounts        split -> what became of its records, and their lengths, as text
    rewards         of a run that trained a reward model, which samples nothing; None of a policy
    """

    objective: str
    start: str
    data: str
    command: str
    config: Mapping[str, Any]
    machine: Mapping[str, Any]
    seconds: Mapping[str, float]
    metrics: Sequence[Mapping[str, Any]]
    heldout_pairs: int = 0
    samples: Samples | None = None
    rewards: Rewards | None = None
    accounts: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Summary:
    """The headline numbers; None where the run has nothing to measure them on.

    garbled    share of the samples at the gold floor, starting model and trained model
    win_rate   trained against starting model, gold reward, same prompts, ties half
    kl         KL(trained || starting model) of whole responses, nats
    accuracy   held-out reward accuracy at the last evaluation, ties half
    gold_correlation  of a reward model's rewards with gold ones, Pearson's
    """

    gold_start: statistics.Mean | None = None
    gold_trained: statistics.Mean | None = None
    gold_ceiling: float | None = None
    garbled_start: float | None = None
    garbled_trained: float | None = None
    win_rate: statistics.Share | None = None
    kl: statistics.Mean | None = None
    accuracy: statistics.Share | None = None
    gold_correlation: float | None = None


def summarize(results: RunResults) -> Summary:
    """The headline numbers of a run."""
    numbers: dict[str, Any] = {}
    accuracy = last(results.metrics, "reward_accuracy", "eval")
    if accuracy is not None and results.heldout_pairs:
        numbers["accuracy"] = statistics.share(accuracy, results.heldout_pairs)
    if results.rewards is not None:
        numbers["gold_correlation"] = results.rewards.correlation
    samples = results.samples
    if samples is not None:
        numbers["kl"] = statistics.kl_estimate(samples.policy_logp, samples.policy_reference_logp)
        if samples.gold is not None:
            numbers |= _gold_numbers(samples.gold)
    return Summary(**numbers)


def _gold_numbers(gold: Gold) -> dict[str, Any]:
    numbers = dict(
        gold_start=statistics.mean(gold.reference),
        gold_trained=statistics.mean(gold.policy),
        gold_ceiling=gold.ceiling,
        win_rate=statistics.win_rate(gold.policy, gold.reference),
    )
    if gold.floor is not None:
        numbers["garbled_start"] = float(np.mean(gold.reference <= gold.floor))
        numbers["garbled_trained"] = float(np.mean(gold.policy <= gold.floor))
    return numbers
