"""Responses of a policy and of another model side by side, and a judge's preference between them, in both orders."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from prefjax.data.progress import progress_bar
from prefjax.data.prompts import Prompt
from prefjax.data.readers import find_files, read_rows
from prefjax.data.records import plain_text
from prefjax.policies.generate import response_text
from prefjax.policies.rollouts import Response
from prefjax.training.parameters import Policy

# (prompt, response a, response b) -> P(a is better), in [0, 1]
Judge = Callable[[Any, str, str], float]


def side_by_side(
    policy: Policy,
    prompts: Sequence[Prompt],
    ours: Sequence[Response],
    others: Sequence[str | None],
    away: Float32[np.ndarray, "n"] | None = None,
) -> list[dict[str, Any]]:
    """A row for every prompt that the other model answered.

    Args:
      away: log pi(y | x) - log ref(y | x) of the policy's responses, nats; the rows' `log_ratio`.
    """
    rows = []
    for number, (prompt, response, other) in enumerate(zip(prompts, ours, others, strict=True)):
        if other is not None:
            row = {"id": prompt.id} if prompt.id is not None else {}
            own = response_text(policy.tokenizer, prompt, response)
            row |= {"prompt": plain_text(prompt.text), "policy": own, "other": other}
            rows.append(row if away is None else row | {"log_ratio": float(away[number])})
    return rows


def judged(rows: Iterable[dict[str, Any]], judge: Judge) -> list[dict[str, Any]]:
    """The rows with `preference` and `swapped`: P(the policy's response is better), shown first and shown second."""
    made = []
    for row in progress_bar(list(rows), shown=True, desc="judging", unit="pair"):
        texts = row["policy"], row["other"]
        first, second = float(judge(row["prompt"], *texts)), 1 - float(judge(row["prompt"], *texts[::-1]))
        made.append(row | {"preference": first, "swapped": second})
    return made


def answers_in(file: str, prompts: Sequence[Prompt]) -> list[str | None]:
    """Another model's answer to each prompt, from a file that `experiments.generate` wrote: of several the best one, or
    the first.

    Raises:
      ValueError: a row lacks prompt or completion, or no prompt is answered.
    """
    answers: dict[str, str] = {}
    for source, row in (item for path in find_files(file) for item in read_rows(path)):
        if not isinstance(row, Mapping) or "prompt" not in row or not {"completion", "completions"} & row.keys():
            raise ValueError(
                f"{source}: needs prompt, and completion or completions, as experiments.generate writes them"
            )
        text = row["completion"] if "completion" in row else row["completions"][row.get("best", 0)]
        answers.setdefault(json.dumps(row["prompt"]), text)
    found = [answers.get(json.dumps(plain_text(prompt.text))) for prompt in prompts]
    if not any(text is not None for text in found):
        raise ValueError(f"{file} answers none of the {len(prompts)} prompts that were sampled")
    return found
