"""HelpSteer3-Preference, general, STEM, code and multilingual, preferences from -3 to 3."""

from prefjax.data.dataset_entry import Dataset, Row, Split, Variant, each, hub_file, hub_page, pair
from prefjax.data.datasets import DATASETS

_REPOSITORY = "nvidia/HelpSteer3"


def _record(row: Row) -> Row:
    return pair(row["context"], row["response1"], row["response2"], -row["overall_preference"])


DATASETS.add(
    Dataset(
        name="helpsteer3",
        title="HelpSteer3-Preference, general, STEM, code and multilingual, preferences from -3 to 3",
        homepage=hub_page(_REPOSITORY),
        licence="CC-BY-4.0",
        paper="arXiv 2505.11475",
        variants=(
            Variant(
                "pairs",
                {
                    s: Split((hub_file(_REPOSITORY, f"preference/{s}.jsonl.gz", format="jsonl"),))
                    for s in ("train", "validation")
                },
                ("context", "response1", "response2", "overall_preference"),
                each(_record),
                "preference",
            ),
        ),
    ),
    __name__,
)
