"""UltraMedical-Preference, medical questions judged by GPT-4."""

from prefjax.data.dataset_entry import Dataset, Row, conversations, hub_page, hub_pairs, user
from prefjax.data.datasets import DATASETS

_REPOSITORY = "TsinghuaC3I/UltraMedical-Preference"


def _record(row: Row) -> Row:
    """Chats with or without the prompt in front; a prompt column is only needed for the latter."""
    whole = row["chosen"][:1] and row["chosen"][0]["role"] != "assistant"
    return conversations(row) if whole else {"prompt": user(row["prompt"]), **conversations(row)}


DATASETS.add(
    Dataset(
        name="ultramedical",
        title="UltraMedical-Preference, medical questions judged by GPT-4",
        homepage=hub_page(_REPOSITORY),
        licence="MIT",
        paper="arXiv 2406.03949",
        variants=(hub_pairs(_REPOSITORY, "train", record=_record, columns=("prompt", "chosen", "rejected")),),
    ),
    __name__,
)
