"""Records -> rows of the shapes that `formats` reads, and JSONL files of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefjax.data.records import NUMBERS, Record, Text
from prefjax.data.synthetic import write_jsonl


def to_row(record: Record, *, auxiliary_field: str = "auxiliary") -> dict[str, Any]:
    """The row that `formats.parse` reads back as this record, up to its source.

    Args:
        auxiliary_field: the column of the auxiliary response, where there is one. Margin, probability and spans go into
            columns of their names; all four must be named in `RecordFormat` to be read back.
    Raises:
        ValueError: targets that no row says: those of a pair but 1 and 0.
    """
    row: dict[str, Any] = {"prompt": _plain(record.prompt)}
    texts = [_plain(response) for response in record.responses]
    if record.kind == "pair":
        if record.targets != (1.0, 0.0):
            raise ValueError(f"{record.source}: a pair with targets {record.targets} has no row: give them as scores")
        row |= {"chosen": texts[0], "rejected": texts[1]}
        if record.scores is not None:
            row |= dict(zip(("score_chosen", "score_rejected"), record.scores, strict=True))
    elif record.kind == "ranked":
        row |= {"completions": texts, "scores": list(record.targets)}
    else:
        row["completion"] = texts[0]
        if record.kind == "unpaired" and record.targets != record.scores:
            row["label"] = record.targets == (1.0,)
        if record.scores is not None:
            row["reward"] = record.scores[0]
    if record.auxiliary is not None:
        row[auxiliary_field] = _plain(record.auxiliary)
    if record.weight != 1:
        row["weight"] = record.weight
    row |= {name: value for name in NUMBERS if (value := getattr(record, name)) is not None}
    if record.spans is not None:
        row["spans"] = [own if own is None else [list(span) for span in own] for own in record.spans]
    row |= record.columns
    return row | {name: list(values) for name, values in record.response_columns.items()}


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Writes one row a line (JSONL, UTF-8), replacing the file, and returns how many; raises as `to_row`."""
    return write_jsonl(path, map(to_row, records))


def _plain(text: Text) -> Any:
    return text if isinstance(text, str) else [{"role": turn.role, "content": turn.content} for turn in text]
