"""OffsetBias, counter-examples to the biases of judges."""

from prefjax.data.dataset_entry import Dataset, hub_page, hub_pairs, labelled
from prefjax.data.datasets import DATASETS

_REPOSITORY = "NCSOFT/offsetbias"
DATASETS.add(
    Dataset(
        name="offsetbias",
        title="OffsetBias, counter-examples to the biases of judges",
        homepage=hub_page(_REPOSITORY),
        licence="BSD-3-Clause",
        paper="arXiv 2407.06551",
        variants=(
            hub_pairs(
                _REPOSITORY,
                "train",
                record=labelled("output_1", "output_2"),
                columns=("instruction", "output_1", "output_2", "label"),
            ),
        ),
        note="To be mixed with other data: alone it teaches the opposite biases.",
    ),
    __name__,
)
