"""Who says which response is better: people or a model by routing, or the policy itself."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from prefjax.data.account import Notice, Refused, Rejection
from prefjax.data.methods import method
from prefjax.data.methods.stream import (
    Outcome,
    Outcomes,
    each,
    exchange,
    measured,
    number,
    response_numbers,
    rewards,
    take_kind,
)
from prefjax.data.records import Record
from prefjax.data.synthetic import preference_probability
from prefjax.options import BelowHalf, Positive, Share


@method(record_columns=("gain", "people", "model"), streams=False)
def route(
    records: Iterable[Record],
    *,
    gain: str,
    people: str,
    model: str,
    share: Share,
) -> Outcomes:
    """Hybrid preferences: people's labels where they are predicted to help most, a model's elsewhere.

    Source: arXiv 2410.19133 (and its code's top-k routing: the largest predicted gains within the budget).
    Takes: pairs; the columns `people` and `model` hold either's preference, above 0 for the response given as chosen,
        below 0 for the other, 0 for a tie; `gain` the predicted gain of asking people.
    Makes: the same pairs in order, relabelled; ties of the label that counts are rejected.

    The floor(share * n) pairs of the largest gain take people's label; of equal gains the first ones. Fitting the gain
    (a regression of reward-model quality on counts of tagged instances) is left to you.
    """

    def measure(record: Record) -> tuple[float, float, float]:
        take_kind(record, "pair")
        return number(record, gain), number(record, people), number(record, model)

    usable, values, lost = measured(records, measure)
    table = np.array(values, np.float64).reshape(-1, 3)
    budget = math.floor(share * len(usable) + 1e-9)
    routed = set(np.argsort(-table[:, 0], kind="stable")[:budget].tolist())
    for index, record in enumerate(usable):
        to_people = index in routed
        preference = table[index, 1 if to_people else 2]
        yield _relabelled(record, float(preference), people if to_people else model)
    yield from lost


@method(shapes=True, response_columns=("policy", "reference"), streams=False)
def self_label(
    records: Iterable[Record],
    *,
    policy: str,
    reference: str,
    beta: Positive = 0.1,
    smoothing: BelowHalf = 0.1,
    least_confident: Share = 0.1,
) -> Outcomes:
    """Direct preference judgement (SPA, Selfie): the policy's implicit reward labels its pairs, softly where unsure.

    Source: arXiv 2406.04412, equations 7 and 8; smoothing 0.1 for the least confident 10 % as there.
    Takes: pairs; the response columns hold log-probs of the whole response, nats: `policy` of the policy that judges,
        `reference` of the initial (SFT) policy, whichever iteration it is.
    Makes: pairs, the higher beta (log policy - log reference) chosen, with target_probability 1, or 1 - smoothing for
        the least confident; for `soft_ce`, or any pairwise objective that does not read it.

    P(chosen is better) = sigmoid(beta |difference|) is the confidence; the floor(least_confident * n) pairs of the
    lowest are smoothed, of equal ones the first. A pair without a difference is rejected. The paper finds the least
    confident ones in every batch anew, from the model in training and with logits extrapolated away from the
    reference; here the judge is fixed and the share is of all pairs, so this is its first step only.
    """

    def measure(record: Record) -> float:
        take_kind(record, "pair")
        ratio = response_numbers(record, policy) - response_numbers(record, reference)
        if ratio[0] == ratio[1]:
            raise Refused("tie", policy, "equal log-ratios")
        return float(beta * (ratio[0] - ratio[1]))

    usable, logits, lost = measured(records, measure)
    unsure = np.argsort(np.abs(np.array(logits, np.float64)), kind="stable")
    unsure = set(unsure[: math.floor(least_confident * len(usable) + 1e-9)].tolist())
    for index, record in enumerate(usable):
        label, *notice = _relabelled(record, logits[index], policy)
        probability = 1 - smoothing if index in unsure else 1.0
        yield dataclasses.replace(label, margin=None, target_probability=probability), *notice
    yield from lost


@method(shapes=True, response_columns=("reward",))
def bradley_terry_targets(
    records: Iterable[Record], *, temperature: Positive = 1.0, reward: str | None = None
) -> Outcomes:
    """Graded labels from rewards: target_probability = sigmoid((r_w - r_l) / temperature) and margin = r_w - r_l.

    Source: arXiv 2305.18290, equation 1, with a temperature; for `soft_ce` and `margin_dpo`.
    Takes: pairs with two scores, or the response column `reward`.
    Makes: the same pairs; a rejected response of higher reward gives a negative margin and P below 1/2.

    Rewards, margin and temperature have one unit.
    """

    def step(record: Record) -> Outcome:
        take_kind(record, "pair")
        first, second = rewards(record, reward)
        margin = float(first - second)
        probability = preference_probability(margin, temperature)
        return (dataclasses.replace(record, margin=margin, target_probability=probability),)

    return each(records, step)


def _relabelled(record: Record, preference: float, field: str) -> Outcome:
    if preference == 0:
        return (Rejection("tie", record.source, field),)
    if preference > 0:
        return (record,)
    return exchange(record), Notice("flipped", record.source, field)
