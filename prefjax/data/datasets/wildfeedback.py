"""WildFeedback, preferences taken from what users said next."""

from prefjax.data.dataset_entry import Dataset, Split, Variant, each, hub_file, hub_page, sharegpt_pair
from prefjax.data.datasets import DATASETS

_REPOSITORY = "microsoft/WildFeedback"
DATASETS.add(
    Dataset(
        name="wildfeedback",
        title="WildFeedback, preferences taken from what users said next",
        homepage=hub_page(_REPOSITORY),
        licence="ODC-BY",
        paper="arXiv 2408.15549",
        variants=(
            Variant(
                "pairs",
                {
                    "train": Split(
                        (
                            hub_file(
                                _REPOSITORY,
                                "wildfeedback.json",
                                format="json",
                                revision="8b1a3e530b949d6aacfad6ba8912e209a05bc846",
                            ),
                        )
                    )
                },
                ("conversations", "chosen", "rejected"),
                each(sharegpt_pair),
            ),
        ),
    ),
    __name__,
)
