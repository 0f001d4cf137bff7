"""Statistical rejection sampling: preference pairs of the optimal policy from many scored samples of another."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64

from prefjax.data.account import Notice, Refused
from prefjax.data.methods import method
from prefjax.data.methods.stream import Outcome, Outcomes, Seed, each, generator, rewards, take_kind
from prefjax.data.records import Record
from prefjax.options import Count, Positive


def rejection_sample(reward: Float64[np.ndarray, "n"], count: int, beta: float, rng: np.random.Generator) -> list[int]:
    """Indices of `count` candidates, in the order of acceptance (arXiv 2309.06657, Algorithm 1).

    Passes over the candidates that are left; in each, candidate i is accepted when u < exp((reward_i - max) / beta),
    u uniform on [0, 1) and max the best reward left at the pass's start, and the pass ends with the last one needed.
    Accepted ones leave. beta -> 0 gives the best `count` by reward, beta -> infinity the first `count`: as a pass ends
    with the last one needed, earlier candidates are favoured, and their order must not follow the reward.

    Args:
        reward: any unit, which beta shares; beta is that of the KL-regularised objective.
    Raises:
        ValueError: fewer candidates than `count`, count < 1, beta <= 0, or a reward that is NaN or infinite.
    """
    if not np.isfinite(reward).all():
        raise ValueError(f"rewards must be finite, got {reward[~np.isfinite(reward)][0]}: leave such candidates out")
    if beta <= 0:
        raise ValueError(f"beta={beta} must be above 0; take a small one to keep the best by reward")
    if not 1 <= count <= len(reward):
        raise ValueError(f"{count} of {len(reward)} candidates cannot be accepted")
    accepted: list[int] = []
    left = np.arange(len(reward))
    while len(accepted) < count:
        with np.errstate(under="ignore", over="ignore"):
            probability = np.exp((reward[left] - reward[left].max()) / beta)
        hit = rng.random(len(left)) < probability
        accepted += left[hit][: count - len(accepted)].tolist()
        left = left[~hit]
    return accepted


@method(shapes=True, response_columns=("reward",))
def rso(
    records: Iterable[Record],
    *,
    count: Count = 8,
    beta: Positive = 0.5,
    pairing: Literal["first_round", "tournament", "none"] = "first_round",
    reward: str | None = None,
    seed: Seed = 0,
) -> Outcomes:
    """Rejection sampling (RSO): of every prompt's samples accept `count` by reward, then pair and rank these.

    Source: arXiv 2309.06657, Algorithm 1; pairing in section 5.2; beta 0.5 and 8 of 64 samples as there.
    Takes: rankings, whose scores (or the response column `reward`) are the samples' rewards.
    Makes: pairs, the higher reward chosen; with pairing "none", a ranking of those accepted.

    pairing
        first_round  neighbours in the order of acceptance: count / 2 pairs; the last of an odd count is left over
        tournament   winners meet again until one is left: count - 1 pairs; of an odd number the last one has a bye
    Equal texts are one candidate, and candidates are shuffled, so that the file's order, which may be that of the
    reward, does not matter. Two equal rewards make no pair, which is counted; in a tournament the first goes on.

    Raises:
        ValueError: count < 2 where pairs are made.
    """
    if pairing != "none" and count < 2:
        raise ValueError(f"rso needs at least two responses for a pair, got {count=}")
    rng = generator(seed)

    def step(record: Record) -> Outcome:
        take_kind(record, "ranked")
        reward_of = rewards(record, reward)
        # Texts are the keys of the algorithm's candidates.
        distinct = [k for k, text in enumerate(record.responses) if text not in record.responses[:k]]
        if len(distinct) < count:
            detail = f"{len(distinct)} distinct samples, {count} to accept"
            raise Refused("few_responses", "completions", detail)
        candidates = rng.permutation(distinct)
        accepted = candidates[rejection_sample(reward_of[candidates], count, beta, rng)].tolist()
        if pairing == "none":
            return (rescored(record, reward_of).select(tuple(accepted), tuple(reward_of[accepted].tolist()), "ranked"),)
        return _play(rescored(record, reward_of), accepted, reward_of, once=pairing == "first_round")

    return each(records, step)


def rescored(record: Record, reward: Float64[np.ndarray, "K"]) -> Record:
    """The record with these rewards as its scores, and as the targets of a ranking."""
    scores = tuple(reward.tolist())
    targets = scores if record.kind == "ranked" else record.targets
    return dataclasses.replace(record, scores=scores, targets=targets)


def _play(record: Record, players: Sequence[int], reward: Float64[np.ndarray, "K"], once: bool) -> Outcome:
    made: list[Record | Notice] = []
    while len(players) > 1:
        winners = []
        for first, second in itertools.zip_longest(players[::2], players[1::2]):
            if second is None or reward[first] == reward[second]:
                winners.append(first)
                if second is not None:
                    where = f"completions[{first}], [{second}]"
                    made.append(Notice("tied_pair", record.source, where, f"both {reward[first]:g}"))
                continue
            winner, loser = (first, second) if reward[first] > reward[second] else (second, first)
            winners.append(winner)
            made.append(record.select((winner, loser), (1.0, 0.0), "pair"))
        players = winners
        if once:
            break
    if not any(isinstance(item, Record) for item in made):
        raise Refused("tie", "scores", "all accepted samples have equal rewards")
    return tuple(made)
