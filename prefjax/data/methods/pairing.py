"""Which two of a prompt's responses make a pair: by reward position, by model, by tests passed, by instruction."""

import itertools
from collections.abc import Iterable
from typing import Literal

import numpy as np

from prefjax.data.account import Refused
from prefjax.data.methods import method
from prefjax.data.methods.conditioning import with_instruction, without_contradiction
from prefjax.data.methods.sampling import rescored
from prefjax.data.methods.stream import (
    Outcome,
    Outcomes,
    Seed,
    each,
    generator,
    per_response,
    response_numbers,
    rewards,
    take_kind,
)
from prefjax.data.records import Record
from prefjax.data.transforms import rankings_to_pairs
from prefjax.options import Count, Finite


@method(shapes=True)
def pairs(records: Iterable[Record], *, rule: Literal["best_worst", "adjacent", "all"] = "best_worst") -> Outcomes:
    """Pairs by score: best against worst, neighbours in the order of scores, or every two.

    Source: as `data.rankings`; here for sequences in which a method of pairs follows.
    Takes: rankings; other records go through as they are.
    Makes: pairs, the higher score chosen.
    """
    return each(records, lambda record: rankings_to_pairs(record, rule))


@method(shapes=True, response_columns=("reward",))
def reward_positions(
    records: Iterable[Record],
    *,
    chosen: Literal["max", "min"] | Finite = "max",
    rejected: Literal["max", "min"] | Finite = -2.0,
    reward: str | None = None,
) -> Outcomes:
    """The sweet spot: the samples whose rewards lie nearest to two positions of their distribution.

    Source: arXiv 2502.16825 (the seven positions max, min and mu + k sigma, k = -2 .. 2; rejected at mu - 2 sigma).
    Takes: rankings, whose scores (or the response column `reward`) are the samples' rewards.
    Makes: pairs.

    A position is "max", "min", or a number k for the sample nearest to mu + k sigma, with the mean and the standard
    deviation (divisor n) of the prompt's rewards; the first of several equally near ones. A prompt whose chosen
    sample has no higher reward than the rejected one makes no pair.
    """

    def pick(reward_of: np.ndarray, position: str | float) -> int:
        if isinstance(position, str):
            return int(reward_of.argmax() if position == "max" else reward_of.argmin())
        return int(np.abs(reward_of - (reward_of.mean() + position * reward_of.std())).argmin())

    def step(record: Record) -> Outcome:
        take_kind(record, "ranked")
        reward_of = rewards(record, reward)
        return (_pair(record, reward_of, pick(reward_of, chosen), pick(reward_of, rejected)),)

    return each(records, step)


@method(shapes=True, response_columns=("reward",))
def best_against_few(
    records: Iterable[Record], *, few: Count = 5, reward: str | None = None, seed: Seed = 0
) -> Outcomes:
    """The scalable sweet spot: the best of all samples against the worst of a few random ones.

    Source: arXiv 2502.16825 (its strategy for growing sample counts; of normal rewards the worst of 5 lies at mu - 1.2
        sigma on average, not at the mu - 2 sigma of `reward_positions`).
    Takes: rankings, whose scores (or the response column `reward`) are the samples' rewards.
    Makes: pairs.

    Rejected is the lowest reward among `few` samples drawn without replacement. A prompt where that is the best one
    makes no pair.
    """
    rng = generator(seed)

    def step(record: Record) -> Outcome:
        take_kind(record, "ranked")
        reward_of = rewards(record, reward)
        if len(reward_of) < few:
            detail = f"{len(reward_of)} samples, {few} to draw"
            raise Refused("few_responses", "completions", detail)
        drawn = rng.permutation(len(reward_of))[:few]
        return (_pair(record, reward_of, int(reward_of.argmax()), int(drawn[reward_of[drawn].argmin()])),)

    return each(records, step)


@method(shapes=True, response_columns=("model",))
def delta_pairs(records: Iterable[Record], *, model: str, strong: str, weak: str) -> Outcomes:
    """Delta learning: a stronger model's response against a weaker one's, whatever anybody scored.

    Source: arXiv 2507.06187 (and its code: the stronger model's responses as chosen, the weaker's as rejected).
    Takes: rankings; the response column `model` names the model of each response.
    Makes: pairs; where a model has several responses, its i-th against the other's i-th.
    """
    if strong == weak:
        raise ValueError(f"strong and weak are both {strong!r}: name two models")

    def step(record: Record) -> Outcome:
        take_kind(record, "ranked")
        models = per_response(record, model)
        own, other = ([k for k, name in enumerate(models) if name == wanted] for wanted in (strong, weak))
        made = [
            record.select((k, j), (1.0, 0.0), "pair")
            for k, j in zip(own, other, strict=False)
            if record.responses[k] != record.responses[j]
        ]
        if not made:
            detail = f"no two different responses by {strong!r} and {weak!r}; there are {sorted(set(map(str, models)))}"
            raise Refused("no_pair", model, detail)
        return tuple(made)

    return each(records, step)


@method(shapes=True, response_columns=("passed",))
def pass_fail(
    records: Iterable[Record], *, to: Literal["pairs", "labels"] = "pairs", passed: str | None = None
) -> Outcomes:
    """Tests passed or failed become preferences (PLUM): passing solutions are preferred to failing ones.

    Source: arXiv 2406.06887 (preference data by execution, for DPO or KTO); running the tests is left to you.
    Takes: rankings with scores 1 (passed) and 0 (failed), or these in the response column `passed`.
    Makes: pairs, every passing solution against every failing one, in order; or with "labels" single responses
        labelled 1 and 0.

    A prompt all of whose solutions pass, or fail, makes no pair, and its labels are kept.
    """

    def step(record: Record) -> Outcome:
        take_kind(record, "ranked")
        outcome = rewards(record, None) if passed is None else response_numbers(record, passed)
        if not set(outcome.tolist()) <= {0.0, 1.0}:
            detail = "tests pass (1) or fail (0)"
            raise Refused("bad_label", passed or "scores", detail)
        if to == "labels":
            return tuple(record.select((k,), (float(label),), "unpaired") for k, label in enumerate(outcome))
        won, lost = (np.flatnonzero(outcome == label).tolist() for label in (1, 0))
        made = [
            record.select((k, j), (1.0, 0.0), "pair")
            for k, j in itertools.product(won, lost)
            if record.responses[k] != record.responses[j]
        ]
        if not made:
            detail = f"{len(won)} pass, {len(lost)} fail"
            raise Refused("no_pair", passed or "scores", detail)
        return tuple(made)

    return each(records, step)


@method(shapes=True, response_columns=("instruction",))
def conditioned_pairs(records: Iterable[Record], *, instruction: str) -> Outcomes:
    """Configurable preferences (CPT): under the instruction a response was written for, it beats every other one.

    Source: arXiv 2506.11702 (preferences conditioned on rubric-derived system prompts; trained by DPO, beta 0.1).
    Takes: pairs and rankings; the response column `instruction` holds the text each response was written for.
    Makes: pairs, one for every ordered two responses with different instructions: the instruction becomes a system
        message (of a plain text, its beginning). Two responses make two pairs with exchanged roles; the one whose
        scores contradict it loses them.
    """

    def step(record: Record) -> Outcome:
        take_kind(record, "pair", "ranked")
        texts = per_response(record, instruction)
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise Refused("wrong_type", instruction, "an instruction is a text that is not empty")
        made = [
            with_instruction(without_contradiction(record.select((k, j), (1.0, 0.0), "pair")), texts[k])
            for k, j in itertools.permutations(range(len(texts)), 2)
            if texts[k] != texts[j] and record.responses[k] != record.responses[j]
        ]
        if not made:
            raise Refused("no_pair", instruction, "no two different responses to different instructions")
        return tuple(made)

    return each(records, step)


def _pair(record: Record, reward_of: np.ndarray, chosen: int, rejected: int) -> Record:
    if reward_of[chosen] <= reward_of[rejected] or record.responses[chosen] == record.responses[rejected]:
        detail = f"chosen {reward_of[chosen]:g}, rejected {reward_of[rejected]:g}"
        raise Refused("no_pair", "scores", detail)
    return rescored(record, reward_of).select((chosen, rejected), (1.0, 0.0), "pair")
