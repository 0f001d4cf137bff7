"""Prompts that say what is asked of the response: an instruction as a system message, a reward as a goal."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from prefjax.data.account import Refused
from prefjax.data.methods import method
from prefjax.data.methods.stream import Outcome, Outcomes, each, rewards, take_kind
from prefjax.data.records import Message, Record

_GAP = "\n\n"


def with_instruction(record: Record, text: str) -> Record:
    """The record with `text` as a system message before the prompt, joined to one that is there; plain text begins
    with it."""
    prompt = record.prompt
    if isinstance(prompt, str):
        return dataclasses.replace(record, prompt=text + _GAP + prompt)
    if prompt and prompt[0].role == "system":
        return dataclasses.replace(record, prompt=(Message("system", text + _GAP + prompt[0].content), *prompt[1:]))
    return dataclasses.replace(record, prompt=(Message("system", text), *prompt))


def without_contradiction(pair: Record, reward: str | None = None) -> Record:
    """The pair without scores, and without the response column `reward`, that prefer its rejected response: under the
    prompt's new goal they do not hold."""
    own = dict(pair.response_columns)
    if reward is not None and own[reward][0] < own[reward][1]:
        del own[reward]
    contradicts = pair.scores is not None and pair.scores[0] < pair.scores[1]
    return dataclasses.replace(pair, scores=None if contradicts else pair.scores, response_columns=own)


@method(shapes=True, response_columns=("reward",))
def reward_augmented(
    records: Iterable[Record],
    *,
    template: str = "Write a response that a judge rates {score}.",
    reward: str | None = None,
) -> Outcomes:
    """Reward-augmented data: each pair twice, once for each score as the goal; the response with that score is chosen.

    Source: arXiv 2410.08067 (and its code, the branch with a system message; DPO, beta 0.01).
    Takes: pairs with two scores, or the response column `reward`.
    Makes: two pairs, under the goal score_chosen as they are, under the goal score_rejected exchanged and without the
        scores, which say the opposite.

    `template` is the instruction, {score} in it the goal with all its digits. Pairs whose rejected response has the
    higher score are left out, as in the code, and so are equal scores, which would ask for both orders at once. (The
    code's branch without system messages does not exchange the second pair; that contradicts the paper and is not done
    here.)

    Raises:
        ValueError: the template has no {score}.
    """
    if "{score}" not in template:
        raise ValueError(f"template {template!r} must contain {{score}}, the place of the goal")

    def step(record: Record) -> Outcome:
        take_kind(record, "pair")
        first, second = rewards(record, reward)
        if first <= second:
            reason = "tie" if first == second else "contradicting_scores"
            raise Refused(reason, reward or "score_chosen", f"chosen {first:g}, rejected {second:g}")
        goal = lambda score: template.replace("{score}", np.format_float_positional(score, trim="-"))
        exchanged = without_contradiction(record.select((1, 0), (1.0, 0.0), "pair"), reward)
        return (
            with_instruction(record.select((0, 1), (1.0, 0.0), "pair"), goal(first)),
            with_instruction(exchanged, goal(second)),
        )

    return each(records, step)
