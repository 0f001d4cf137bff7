"""From prompts to a file of responses: sampled in chunks, scored, and continued exactly where a killed command was."""

import dataclasses
import importlib.metadata
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from prefjax.data.encoding import decode_response
from prefjax.data.progress import progress_bar
from prefjax.data.prompts import Prompt
from prefjax.data.records import is_blank, plain_text
from prefjax.data.tokenizers import Tokenizer
from prefjax.models import SamplingOptions
from prefjax.policies.chunks import Chunk, write_chunks
from prefjax.policies.rollouts import Response, Sampler, sample_responses
from prefjax.policies.scorers import Candidates, Scorer, checked
from prefjax.training.checkpoint import parameter_hash
from prefjax.training.parameters import Policy

_BATCHES = 4  # of a chunk: enough that prompts of similar length meet, few enough that a kill loses little


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """samples  responses per prompt;  best  mark the one with the highest score;  batch  sequences sampled at once."""

    sampling: SamplingOptions = SamplingOptions()
    samples: int = 1
    best: bool = False
    seed: int = 0
    batch: int = 64

    def __post_init__(self):
        for name in ("samples", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")


def respond(
    policy: Policy,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    *,
    first: int = 0,
    bar: tqdm | None = None,
) -> list[list[Response]]:
    """`config.samples` responses to every prompt. `first` is the number of the first prompt, which decides its random
    numbers: prompts sampled apart and together get the same responses."""
    n = config.samples
    flat = sample_responses(
        Sampler(policy.model, policy.params, policy.stop_ids, policy.tokenizer.pad_id, policy.mesh),
        [prompt.tokens for prompt in prompts for _ in range(n)],
        config.sampling,
        seed=config.seed,
        draws=[(first + number, k) for number in range(len(prompts)) for k in range(n)],
        batch=config.batch,
        bar=bar,
    )
    return [flat[start : start + n] for start in range(0, len(flat), n)]


def response_text(tokenizer: Tokenizer, prompt: Prompt, response: Response) -> str:
    """The text of a response, as a completion of its prompt."""
    ids, chat = (prompt.tokens.tolist(), response.tokens.tolist()), not isinstance(prompt.text, str)
    return decode_response(*ids, tokenizer, chat=chat, ending=prompt.ending, prefill=prompt.begun)


def rows_of(
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Response]],
    scorer: Scorer | None,
    *,
    best: bool = False,
) -> tuple[list[dict[str, Any]], Counter]:
    """Rows that `prefjax.data.formats` reads, and counts.

    Without a scorer one row a response, with `completion`; with one, a row a prompt, with `completions` and `scores`.
    `logp` is the sum over a response's tokens, the stop token included, in nats; `length` counts them; `finished` is
    false where the limit cut it off. Blank responses are counted and left out: no record can hold one.
    """
    counts, kept = Counter(prompts=len(prompts)), []
    for prompt, own in zip(prompts, responses, strict=True):
        texts = [response_text(tokenizer, prompt, response) for response in own]
        shown = [k for k, text in enumerate(texts) if not is_blank(text)]
        counts["responses"] += len(own)
        counts["tokens"] += sum(len(response.tokens) for response in own)
        counts["unfinished"] += sum(not response.ended for response in own)
        counts["blank"] += len(own) - len(shown)
        if shown:
            logps = tuple(float(own[k].logps.sum(dtype=np.float64)) for k in shown)
            lengths = tuple(len(own[k].tokens) for k in shown)
            candidates = Candidates(prompt.text, tuple(texts[k] for k in shown), logps, lengths, prompt.given)
            kept.append((prompt, candidates, [own[k].ended for k in shown]))
    scores = None if scorer is None else checked(scorer, [candidates for _, candidates, _ in kept])
    rows = []
    for at, (prompt, (text, completions, logps, lengths, _), finished) in enumerate(kept):
        row = {"id": prompt.id} if prompt.id is not None else {}
        row |= {"from": prompt.source, "prompt": plain_text(text)}
        row |= {name: json.loads(given) for name, given in prompt.given.items() if given}
        if scores is None:
            columns = zip(completions, logps, lengths, finished, strict=True)
            rows += [row | dict(completion=c, logp=p, length=n, finished=f) for c, p, n, f in columns]
            continue
        row |= dict(completions=completions, scores=scores[at], logps=logps, lengths=lengths, finished=finished)
        rows.append(row | ({"best": int(np.argmax(scores[at]))} if best else {}))
    return rows, counts


def generate_file(
    policy: Policy,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    path: Path,
    *,
    identity: Mapping[str, Any],
    about: Mapping[str, Any],
    scorer: Scorer | None = None,
) -> dict[str, Any]:
    """Writes responses to `path` (.jsonl or .jsonl.gz) and what made them to `path`.manifest.json, whose content it
    returns. A killed call is continued by the same one, with the same bytes (`chunks.write_chunks`).

    Args:
      identity: JSON-able facts on which the responses depend besides `config`: `facts_of` and the scorer.
      about: further facts for the manifest: command, versions, what became of the prompts.

    Raises:
      ValueError: there are no prompts, or as `write_chunks`.
    """
    if not prompts:
        raise ValueError("there are no prompts to answer")
    size = max(1, _BATCHES * config.batch // config.samples)
    with progress_bar(shown=True, total=len(prompts) * config.samples, desc="sampling", unit="response") as bar:

        def make(start: int) -> Chunk:
            part = prompts[start : start + size]
            responses = respond(policy, part, config, first=start, bar=bar)
            return Chunk(*rows_of(policy.tokenizer, part, responses, scorer, best=config.best))

        return write_chunks(
            path,
            range(0, len(prompts), size),
            make,
            identity={**identity, "generation": dataclasses.asdict(config)},
            about=about,
            resumed=lambda done: bar.update(min(done * size, len(prompts)) * config.samples),
        )


def facts_of(policy: Policy) -> dict[str, Any]:
    """On what its responses depend besides the prompts and how they are drawn."""
    return {
        "parameters": parameter_hash(policy.params),
        "dtype": policy.model.dtype,
        "tokenizer": policy.tokenizer.fingerprint,
        "date": policy.tokenizer.date,
        "stop_ids": policy.stop_ids,
    }


def machine_of(policy: Policy) -> dict[str, Any]:
    """What responses were drawn with and on."""
    return {
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax")},
        "devices": f"{policy.mesh.size} x {jax.devices()[0].device_kind}",
        "mesh": dict(policy.mesh.shape),
    }
