"""From prompts to a file of responses: sampled in chunks, scored, and continued exactly where a killed command was."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from prefjax.data.encoding import decode_response
from prefjax.data.jsonl import SUFFIXES, write_rows
from prefjax.data.prompts import Prompt, plain_text
from prefjax.data.records import is_blank
from prefjax.data.tokenizers import Tokenizer
from prefjax.models import SamplingOptions
from prefjax.options import differences
from prefjax.policies.rollouts import Response, Sampler, sample_responses
from prefjax.policies.scorers import Candidates, Scorer, checked
from prefjax.state_files import read_object, write_whole
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
            candidates = Candidates(prompt.text, tuple(texts[k] for k in shown), logps, lengths)
            kept.append((prompt, candidates, [own[k].ended for k in shown]))
    scores = None if scorer is None else checked(scorer, [candidates for _, candidates, _ in kept])
    rows = []
    for at, (prompt, (text, completions, logps, lengths), finished) in enumerate(kept):
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
    returns.

    What is finished lies in `path`.partial, one line a chunk of prompts. The same call goes on after them, chunk by
    chunk as before, so the file becomes byte for byte what an undisturbed call writes.

    Args:
      identity: JSON-able facts on which the responses depend besides `config`: model, prompts, scorer.
      about: further facts for the manifest: command, versions, what became of the prompts.

    Raises:
      ValueError: `path` has another suffix, or belongs to a call with another identity; names what differs.
    """
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: the suffix must be one of {', '.join(SUFFIXES)}")
    if not prompts:
        raise ValueError("there are no prompts to answer")
    identity = json.loads(json.dumps({**identity, "generation": dataclasses.asdict(config)}))
    manifest_path, partial = (path.with_name(path.name + end) for end in (".manifest.json", ".partial"))
    if path.exists() and not manifest_path.exists():
        raise ValueError(f"{path} exists and has no manifest: it is another's, give a new --output")
    if path.exists():
        manifest = read_object(manifest_path)
        _require_same(path, manifest["identity"], identity)
        return manifest
    path.parent.mkdir(parents=True, exist_ok=True)
    size = max(1, _BATCHES * config.batch // config.samples)
    with tqdm(total=len(prompts) * config.samples, desc="sampling", unit="response", disable=None) as bar:
        chunks = _begin(partial, identity)
        bar.update(min(len(chunks) * size, len(prompts)) * config.samples)
        with partial.open("a") as file:
            for start in range(len(chunks) * size, len(prompts), size):
                part = prompts[start : start + size]
                responses = respond(policy, part, config, first=start, bar=bar)
                rows, counts = rows_of(policy.tokenizer, part, responses, scorer, best=config.best)
                # Through JSON, so that a chunk is the same whether it was made now or read.
                chunks.append(json.loads(line := json.dumps({"rows": rows, "counts": counts})))
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
    counts = dict(sum((Counter(chunk["counts"]) for chunk in chunks), Counter()))
    rows = [row for chunk in chunks for row in chunk["rows"]]
    manifest = {"identity": identity, "rows": len(rows), "counts": counts, **about}
    write_whole(manifest_path, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    write_rows(path, rows)
    partial.unlink()
    return manifest


def _begin(partial: Path, identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chunks that are there, without a last line that was cut off; the file is left ready for the next."""
    lines = partial.read_text().splitlines(keepends=True) if partial.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if whole:
        _require_same(partial, json.loads(whole[0]), identity)
    else:
        whole = [json.dumps(identity) + "\n"]
    if whole != lines:
        partial.write_text("".join(whole))
    return [json.loads(line) for line in whole[1:]]


def _require_same(path: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [f"{name}: {old!r} there, {new!r} now" for name, old, new in differences(there, now)]
    if changed:
        raise ValueError(f"{path} was made otherwise ({'; '.join(changed)}): give a new --output, or remove it")
