"""What rounds ask their policies, and how good the answers to held-out prompts are: scores, gold rewards, the KL."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from prefjax.analysis.statistics import mean
from prefjax.data.account import Account
from prefjax.data.config import SYNTHETIC
from prefjax.data.prompts import Prompt, answered, encode_prompts, read_prompts
from prefjax.data.records import Record, plain_text
from prefjax.data.synthetic import World
from prefjax.data.treatment import is_held_out
from prefjax.models.huggingface import is_checkpoint
from prefjax.policies.annotate import SAMPLED, RecordScorer
from prefjax.policies.generate import GenerationConfig, respond, response_text
from prefjax.policies.held_out import sampled_kl
from prefjax.policies.rollouts import Response
from prefjax.training.parameters import Policy


def asked(
    given: str, policy: Policy, start: str, *, held_out: float = 0.0
) -> tuple[list[Prompt], dict[str, str], Account]:
    """Encoded prompts in order, the sha256 of each source, and what became of every row.

    Args:
      given: as `data.train`; of the synthetic world all prompts of its training split.
      start: the policy before the first round. Where it is a Hugging Face folder whose tokenizer has a chat template, a
        prompt of text is a user's turn, in all rounds.
      held_out: the share of the prompts that training holds out: only those. 1: all that there are, of the synthetic
        world those of its held-out split.
    """
    data = policy.data
    if given == SYNTHETIC:
        texts = World().prompts("eval" if held_out else "train")
        read = [Prompt(text, f"{SYNTHETIC}:{number}") for number, text in enumerate(texts, 1)]
        sources, account = {SYNTHETIC: hashlib.sha256(json.dumps(texts).encode()).hexdigest()}, Account()
    else:
        folders = dict(data_dir=data.tfds_dir, manual_dir=data.manual_dir)
        read, file = read_prompts(given, prefill=data.encoding.prefill, **folders)
        sources, account = dict(file.sources), file.account
    chat = policy.tokenizer.has_chat_template and is_checkpoint(start)
    limit = data.encoding.max_prompt_length
    prompts, encoded = encode_prompts(read, policy.tokenizer, data.encoding, chat=chat, max_length=limit)
    if held_out and given != SYNTHETIC:
        prompts = [prompt for prompt in prompts if is_held_out(answered(prompt.text, (".",), (0.0,)), held_out)]
    return prompts, sources, account + encoded


def measure(
    policy: Policy,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    *,
    score: RecordScorer,
    start: Any = None,
    gold: bool = False,
) -> dict[str, Any]:
    """Means over held-out prompts of the mean over each one's responses, with their standard errors: `score`, `length`
    (tokens, with the one that ends it), `gold` and `kl` (from `start`, nats, of whole responses) where asked for; and
    how many responses there are, of which so many are `unfinished` and so many prompts `unscored`.

    Args:
      start: parameters of the policy before the first round; None: this is it.
      gold: whether the prompts are of the synthetic world.

    Raises:
      ValueError: there are no prompts, or no answers can be scored.
    """
    if not prompts:
        raise ValueError("no prompt is held out: raise data.holdout, give data.eval, or set rounds.measured=0")
    responses = respond(policy, prompts, config)
    flat = [(prompt, response) for prompt, own in zip(prompts, responses, strict=True) for response in own]
    spoken = [response_text(policy.tokenizer, *pair) for pair in flat]
    texts = [spoken[first : first + config.samples] for first in range(0, len(flat), config.samples)]
    scored, account = score([_record(*one) for one in zip(prompts, texts, responses, strict=True)])
    if not scored:
        raise ValueError(f"no answer to the held-out prompts can be scored{account.main_loss()}\n\n{account}")
    values = {
        "score": _mean([own for _, own in scored]),
        "length": _mean([[len(one.tokens) for one in own] for own in responses]),
        "responses": len(flat),
        "unfinished": sum(not response.ended for _, response in flat),
        "unscored": len(prompts) - len(scored),
    }
    if gold:
        reward = World().gold_reward
        worth = [reward(plain_text(prompt.text), text) for (prompt, _), text in zip(flat, spoken, strict=True)]
        values["gold"] = _mean(np.reshape(worth, (len(prompts), -1)))
    if start is not None:
        away = sampled_kl(policy, start, [prompt for prompt, _ in flat], [response for _, response in flat])
        values["kl"] = _mean(away.reshape(len(prompts), -1))
    return values


def _record(prompt: Prompt, texts: Sequence[str], responses: Sequence[Response]) -> Record:
    """What a scorer of records sees of the answers to a prompt."""
    own = [
        tuple(float(one.logps.sum(dtype=np.float64)) for one in responses),
        tuple(len(one.tokens) for one in responses),
    ]
    record = answered(prompt.text, texts, [0.0] * len(texts), prompt.source)
    return dataclasses.replace(record, response_columns=dict(zip(SAMPLED.response, own, strict=True)), **prompt.given)


def _mean(values: Iterable[Any]) -> dict[str, Any]:
    """Of the means of each prompt's numbers."""
    return dataclasses.asdict(mean(np.array([np.mean(own) for own in values])))
