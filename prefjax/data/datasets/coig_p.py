"""COIG-P, a million Chinese pairs judged by models."""

from prefjax.data.dataset_entry import Dataset, hub_page, hub_pairs, sharegpt_pair
from prefjax.data.datasets import DATASETS

_REPOSITORY = "m-a-p/COIG-P"
DATASETS.add(
    Dataset(
        name="coig_p",
        title="COIG-P, a million Chinese pairs judged by models",
        homepage=hub_page(_REPOSITORY),
        licence="see the source",
        paper="arXiv 2504.05535",
        variants=(
            hub_pairs(_REPOSITORY, "train", record=sharegpt_pair, columns=("conversations", "chosen", "rejected")),
        ),
    ),
    __name__,
)
