"""Preference records with new scores: by a reward model, or any other scorer, in chunks that a killed command keeps."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from prefjax.data.account import Account, Rejection, collect
from prefjax.data.formats import Columns
from prefjax.data.jsonl import to_row
from prefjax.data.progress import progress_bar
from prefjax.data.records import Record
from prefjax.policies.chunks import Chunk, write_chunks
from prefjax.policies.rewards import open_reward_model
from prefjax.policies.scorers import Candidates, Scorer, checked, load_scorer

# Records in, those that have scores with one for each response, and what became of the others.
RecordScorer = Callable[[Sequence[Record]], tuple[list[tuple[Record, tuple[float, ...]]], Account]]
SAMPLED = Columns(response=("logps", "lengths"))  # of a file of samples, which the scorers of log-probs read
_SIZE = 256  # records of a chunk


def load_record_scorer(spec: str, mesh: Mesh) -> RecordScorer:
    """A scorer of `load_scorer` for records. Those that it cannot take are counted: what is too long for a reward
    model, and responses of several turns."""
    kind, _, rest = spec.partition(":")
    if kind == "reward" and rest:
        return open_reward_model(rest).score
    scorer = load_scorer(spec, mesh)
    return lambda records: _by_text(scorer, records)


def _by_text(scorer: Scorer, records: Sequence[Record]) -> tuple[list[tuple[Record, tuple[float, ...]]], Account]:
    def step(record: Record) -> Iterator[tuple[Record, Candidates] | Rejection]:
        texts = [text if isinstance(text, str) else text[0].content for text in record.responses]
        if any(not isinstance(text, str) and len(text) > 1 for text in record.responses):
            yield Rejection("wrong_type", record.source, "completions", "this scorer takes answers of one turn")
            return
        given = [record.response_columns.get(name, ()) for name in SAMPLED.response]
        yield record, Candidates(record.prompt, tuple(texts), *map(tuple, given), record.given)

    read, account = collect("score", records, step)
    scores = checked(scorer, [candidates for _, candidates in read])
    return [(record, tuple(own)) for (record, _), own in zip(read, scores, strict=True)], account


def with_scores(record: Record, scores: tuple[float, ...]) -> Record:
    """The record with these scores in place of those it had; a label stays what it is."""
    if record.kind == "pair" or record.targets in ((0.0,), (1.0,)) and record.kind == "unpaired":
        return dataclasses.replace(record, scores=scores)
    kind = "ranked" if record.kind == "ranked" else "unpaired"
    return dataclasses.replace(record, kind=kind, scores=scores, targets=scores)


def annotate_file(
    records: Sequence[Record],
    score: RecordScorer,
    path: Path,
    *,
    identity: Mapping[str, Any],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes records with new scores to `path`, and what made them to `path`.manifest.json, whose content it returns. A
    killed call is continued by the same one (`chunks.write_chunks`, which says what it raises).

    Args:
      identity: JSON-able facts on which the scores depend: the records' file, the scorer.
      about: further facts for the manifest: command, what became of the records so far.
    """
    with progress_bar(shown=True, total=len(records), desc="scoring", unit="record") as bar:

        def make(start: int) -> Chunk:
            part = records[start : start + _SIZE]
            scored, account = score(part)
            rows = [to_row(with_scores(record, scores)) for record, scores in scored]
            bar.update(len(part))
            return Chunk(rows, Counter(records=len(part), scored=len(rows)), account)

        resumed = lambda done: bar.update(min(done * _SIZE, len(records)))
        starts = range(0, len(records), _SIZE)
        return write_chunks(path, starts, make, identity=identity, about=about, resumed=resumed)
