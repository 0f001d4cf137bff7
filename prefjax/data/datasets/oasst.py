"""OpenAssistant conversations, trees of messages whose replies were ranked by people."""

from prefjax.data.dataset_entry import Dataset, File, Reading, Row, Variant, hub_file, hub_page
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


def _variant(name: str, file: File) -> Variant:
    """All trees, or those whose first message is in the language of this name."""

    def record(row: Row) -> Row | None:
        return {"prompt": _message(row["prompt"])} if name in ("all", row["prompt"].get("lang")) else None

    return Reading(("prompt",), record, "rankings", name).variant({"train": file})


def _dataset(name: str, title: str, file: str) -> Dataset:
    repository = f"OpenAssistant/{name}"
    return Dataset(
        name=name,
        title=title,
        homepage=hub_page(repository),
        licence=_LICENCE,
        paper=_PAPER,
        variants=tuple(_variant(variant, hub_file(repository, file)) for variant in ("all", "en")),
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
