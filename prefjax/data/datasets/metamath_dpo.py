"""MetaMath-DPO, grade-school problems with one calculation falsified."""

from prefjax.data.dataset_entry import Dataset, Row, hub_page, hub_pairs
from prefjax.data.datasets import DATASETS

_REPOSITORY = "abacusai/MetaMath_DPO_FewShot"


def _record(row: Row) -> Row:
    return {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}


DATASETS.add(
    Dataset(
        name="metamath_dpo",
        title="MetaMath-DPO, grade-school problems with one calculation falsified",
        homepage=hub_page(_REPOSITORY),
        licence="Apache-2.0",
        paper="arXiv 2402.13228",
        variants=(hub_pairs(_REPOSITORY, "train", "eval", record=_record, columns=("prompt", "chosen", "rejected")),),
        note="Plain text with worked examples in the prompt.",
    ),
    __name__,
)
