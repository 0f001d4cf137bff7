"""HH-RLHF, helpful and harmless dialogues."""

import re

from prefjax.data.dataset_entry import Dataset, Reading, Row, Variant, hub_file, hub_page
from prefjax.data.datasets import DATASETS

_REPOSITORY = "Anthropic/hh-rlhf"
_TURN = re.compile(r"\n\n(Human|Assistant):")


def _messages(transcript: str) -> list[Row]:
    """A transcript "\\n\\nHuman: ...\\n\\nAssistant: ..." as messages; the one space after each colon goes."""
    _, *parts = _TURN.split(transcript)
    turns = zip(parts[::2], parts[1::2], strict=True)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.removeprefix(" ")} for who, said in turns]


def _record(row: Row) -> Row:
    return {side: _messages(row[side]) for side in ("chosen", "rejected")}


def _variant(name: str) -> Variant:
    splits = {split: hub_file(_REPOSITORY, f"{name}/{split}.jsonl.gz") for split in ("train", "test")}
    return Reading(record=_record, name=name).variant(splits)


DATASETS.add(
    Dataset(
        name="hh_rlhf",
        title="HH-RLHF, helpful and harmless dialogues",
        homepage=hub_page(_REPOSITORY),
        licence="MIT",
        paper="arXiv 2204.05862",
        variants=tuple(map(_variant, ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"))),
        note="Offensive and harmful texts by design. The prompt is what both transcripts share.",
    ),
    __name__,
)
