"""Win rates from preferences between two responses: every prompt once, ties as half, positions swapped."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from prefjax.analysis.evaluation import Estimate, bootstrap

WINNERS = {"policy": 1.0, "tie": 0.5, "other": 0.0}


@dataclasses.dataclass(frozen=True)
class WinRate:
    """How the policy fares against another model under the same prompts.

    win_rate         (wins + ties / 2) / prompts; a prompt is won where the preference for the policy is above 1/2
    preference       the mean preference itself
    wins, ties, losses
    consistent       share of prompts on which the judge came to the same outcome in both orders; None where it saw one
    """

    win_rate: Estimate
    preference: Estimate
    wins: int
    ties: int
    losses: int
    consistent: Estimate | None = None


def win_rates(preferences: Float[np.ndarray, "N"], swapped: Float[np.ndarray, "N"] | None = None) -> WinRate:
    """Intervals are a bootstrap over prompts, which pairs both responses of a prompt.

    Args:
      preferences: P(the policy's response is better) of each prompt, in [0, 1].
      swapped: the same from the judge that saw the responses in the other order. The two are averaged, which cancels a
        preference for a position.

    Raises:
      ValueError: no prompt, or a preference outside [0, 1].
    """
    both = [preferences] if swapped is None else [preferences, swapped]
    if not len(preferences):
        raise ValueError("a win rate needs at least one prompt")
    for values in both:
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"a preference must lie in [0, 1], got {values[~((values >= 0) & (values <= 1))][0]}")
    preference = np.mean(both, axis=0, dtype=np.float64)
    outcome = _outcome(preference)
    consistent = None
    if swapped is not None:
        consistent = _mean((_outcome(preferences) == _outcome(swapped)).astype(np.float64))
    return WinRate(
        win_rate=_mean(outcome),
        preference=_mean(preference),
        wins=int((outcome == 1).sum()),
        ties=int((outcome == 0.5).sum()),
        losses=int((outcome == 0).sum()),
        consistent=consistent,
    )


def _outcome(preference):
    return np.where(preference > 0.5, 1.0, np.where(preference < 0.5, 0.0, 0.5))


def _mean(values) -> Estimate:
    low, high = bootstrap(lambda drawn: values[drawn].mean(), len(values))
    return Estimate(float(values.mean()), low, high, len(values))


def read_judgements(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Float[np.ndarray, "N"]:
    """Preferences by prompt from judgements already made, those of one prompt averaged.

    A row has `id` or `prompt`, and `winner` ("policy", "other" or "tie") or `preference`, P(policy better) in [0, 1].

    Args:
      rows: ("file:line", row).

    Raises:
      ValueError: names the line and what it lacks.
    """
    found: dict[str, list[float]] = {}
    for source, row in rows:
        key = next((row[name] for name in ("id", "prompt") if row.get(name) is not None), None)
        if key is None:
            raise ValueError(f"{source}: a judgement needs id or prompt, so that those of one prompt count once")
        if ("winner" in row) == ("preference" in row):
            raise ValueError(f"{source}: a judgement needs one of winner ({', '.join(WINNERS)}) and preference")
        preference = WINNERS.get(row["winner"]) if "winner" in row else row["preference"]
        if isinstance(preference, bool) or not isinstance(preference, int | float) or not 0 <= preference <= 1:
            raise ValueError(
                f"{source}: winner must be one of {', '.join(WINNERS)}, a preference a number in [0, 1]; "
                f"got {row.get('winner', row.get('preference'))!r}"
            )
        found.setdefault(repr(key), []).append(float(preference))
    return np.array([np.mean(own) for own in found.values()])
