"""Capybara-DPO 7k, dialogues of several turns."""

from prefjax.data.dataset_entry import Dataset, Row, conversations, hub_page, hub_pairs
from prefjax.data.datasets import DATASETS

_REPOSITORY = "argilla/distilabel-capybara-dpo-7k-binarized"


def _record(row: Row) -> Row:
    return {**conversations(row), "score_chosen": row["rating_chosen"], "score_rejected": row["rating_rejected"]}


DATASETS.add(
    Dataset(
        name="capybara_dpo",
        title="Capybara-DPO 7k, dialogues of several turns",
        homepage=hub_page(_REPOSITORY),
        licence="Apache-2.0",
        paper="",
        variants=(
            hub_pairs(
                _REPOSITORY,
                "train",
                record=_record,
                columns=("chosen", "rejected", "rating_chosen", "rating_rejected"),
            ),
        ),
    ),
    __name__,
)
