"""OpenAssistant conversations, trees of messages whose replies were ranked by people."""

from collections.abc import Callable, Iterator

from prefjax.data.dataset_entry import Dataset, Row, Split, Variant, hub_file, hub_page
from prefjax.data.datasets import DATASETS

_LICENCE, _PAPER = "Apache-2.0", "arXiv 2304.07327"
_NOTE = (
    "A row is a tree; every answer ranked beside another becomes a response of a ranking (docs/trees.md). Ranks "
    "of questions are not read, and counted. The trees that were ready for export, without spam and deleted messages."
)


_KEPT = ("message_id", "parent_id", "role", "text", "rank", "deleted", "review_result")


def _message(said: Row) -> Row:
    """A message with its replies, without what no record needs."""
    kept = {key: said[key] for key in _KEPT if said.get(key) is not None}
    return kept | {"replies": [_message(reply) for reply in said["replies"]]}


def _trees(language: str | None) -> Callable[[Iterator[Row]], Iterator[Row]]:
    """The trees whose first message is in a language; None: all."""

    def records(rows: Iterator[Row]) -> Iterator[Row]:
        return ({"prompt": _message(row["prompt"])} for row in rows if language in (None, row["prompt"].get("lang")))

    return records


def _dataset(name: str, title: str, file: str) -> Dataset:
    repository = f"OpenAssistant/{name}"
    splits = {"train": Split((hub_file(repository, file, format="jsonl"),))}
    variants = (("all", None), ("en", "en"))
    return Dataset(
        name=name,
        title=title,
        homepage=hub_page(repository),
        licence=_LICENCE,
        paper=_PAPER,
        variants=tuple(Variant("rankings", splits, ("prompt",), _trees(code), own) for own, code in variants),
        note=_NOTE,
    )


DATASETS.add(
    _dataset("oasst1", "OpenAssistant 1, 10,364 trees of conversations", "2023-04-12_oasst_ready.trees.jsonl.gz"),
    __name__,
)
DATASETS.add(
    _dataset("oasst2", "OpenAssistant 2, 13,854 trees of conversations", "2023-11-05_oasst2_ready.trees.jsonl.gz"),
    __name__,
)
