"""KTO mix 15k, single responses with labels."""

from prefjax.data.dataset_entry import Dataset, HubParquet, Row, Split, Variant, each, hub_page
from prefjax.data.datasets import DATASETS

_REPOSITORY = "argilla/kto-mix-15k"


def _record(row: Row) -> Row:
    return {"prompt": row["completion"][:-1], "completion": row["completion"][-1:], "label": row["label"]}


DATASETS.add(
    Dataset(
        name="kto_mix",
        title="KTO mix 15k, single responses with labels",
        homepage=hub_page(_REPOSITORY),
        licence="MIT",
        paper="",
        variants=(
            Variant(
                "unpaired",
                {"train": Split((HubParquet(_REPOSITORY, "train"),))},
                ("completion", "label"),
                each(_record),
            ),
        ),
    ),
    __name__,
)
