"""UltraFeedback, the best against a random other response, as Zephyr was trained."""

from prefjax.data.dataset_entry import Dataset, Row, Split, Variant, each, hub_file, hub_page
from prefjax.data.datasets import DATASETS

_REPOSITORY = "HuggingFaceH4/ultrafeedback_binarized"


def _record(row: Row) -> Row:
    return {name: row[name] for name in ("chosen", "rejected", "score_chosen", "score_rejected")}


DATASETS.add(
    Dataset(
        name="ultrafeedback_binarized",
        title="UltraFeedback, the best against a random other response, as Zephyr was trained",
        homepage=hub_page(_REPOSITORY),
        licence="MIT",
        paper="arXiv 2310.16944",
        variants=(
            Variant(
                "pairs",
                {
                    split: Split((hub_file(_REPOSITORY, f"data/{part}-00000-of-00001.parquet", format="parquet"),))
                    for split, part in {"train": "train_prefs", "test": "test_prefs"}.items()
                },
                ("chosen", "rejected", "score_chosen", "score_rejected"),
                each(_record),
            ),
        ),
    ),
    __name__,
)
