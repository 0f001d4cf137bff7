"""Records -> rows of the shapes that `formats` reads, and JSONL files of them."""

import gzip
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefjax.data.records import Record, plain_text
from prefjax.requirements import PAIR_NUMBERS

SUFFIXES = (".jsonl", ".jsonl.gz")


def to_row(record: Record) -> dict[str, Any]:
    """The row that `formats.parse` reads back as this record, up to its source.

    The auxiliary response, margin, probability and spans go into columns of their names, which must be named in
    `RecordFormat` to be read back.

    Raises:
        ValueError: targets that no row says: those of a pair but 1 and 0.
    """
    row: dict[str, Any] = {"prompt": plain_text(record.prompt), **_responses(record)}
    if record.tools:
        row["tools"] = json.loads(record.tools)
    if record.chat_template_kwargs:
        row["chat_template_kwargs"] = json.loads(record.chat_template_kwargs)
    row |= {"begun": True} if record.begun else {}
    row |= {} if record.ends is None else {"ends": list(record.ends)}
    row |= {} if record.root is None else {"root": plain_text(record.root)}
    if record.kind == "pair":
        if record.targets != (1.0, 0.0):
            raise ValueError(f"{record.source}: a pair with targets {record.targets} has no row: give them as scores")
        if record.scores is not None:
            row |= dict(zip(("score_chosen", "score_rejected"), record.scores, strict=True))
    elif record.kind == "ranked":
        row["scores"] = list(record.targets)
    else:
        if record.kind == "unpaired" and record.targets != record.scores:
            row["label"] = record.targets == (1.0,)
        if record.scores is not None:
            row["reward"] = record.scores[0]
    if record.auxiliary is not None:
        row["auxiliary"] = plain_text(record.auxiliary)
    if record.weight != 1:
        row["weight"] = record.weight
    row |= {name: value for name in PAIR_NUMBERS if (value := getattr(record, name)) is not None}
    if record.spans is not None:
        row["spans"] = [own if own is None else [list(span) for span in own] for own in record.spans]
    row |= record.columns
    return row | {name: list(values) for name, values in record.response_columns.items()}


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Writes a file as `write_rows` does, and returns how many records; raises as that and as `to_row`."""
    return write_rows(path, map(to_row, records))


def score_row(record: Record, columns: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a score file, as the data method `join` reads it: the record's prompt and responses, and columns."""
    scores = {"scores": list(record.scores or record.targets)} if record.kind == "ranked" else {}
    return {"prompt": plain_text(record.prompt), **_responses(record), **scores, **columns}


def _responses(record: Record) -> dict[str, Any]:
    texts = [plain_text(response) for response in record.responses]
    if record.kind == "pair":
        return {"chosen": texts[0], "rejected": texts[1]}
    return {"completions": texts} if record.kind == "ranked" else {"completion": texts[0]}


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object a line (UTF-8), gzipped where the name ends in .gz, and returns how many.

    The file appears, or replaces the one that was there, once it is whole; equal rows make equal bytes.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: the suffix must be {' or '.join(SUFFIXES)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    count = 0
    with partial.open("wb") as raw:
        # Neither a name nor a time inside: they would make equal rows different files.
        packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    partial.rename(path)
    return count
