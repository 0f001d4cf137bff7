"""Orca DPO pairs, a stronger against a weaker model."""

from prefjax.data.dataset_entry import Dataset, Row, Split, Variant, each, hub_file, hub_page, user
from prefjax.data.datasets import DATASETS

_REPOSITORY = "Intel/orca_dpo_pairs"


def _record(row: Row) -> Row:
    prompt = user(row["question"], row["system"])
    return {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}


DATASETS.add(
    Dataset(
        name="orca_dpo_pairs",
        title="Orca DPO pairs, a stronger against a weaker model",
        homepage=hub_page(_REPOSITORY),
        licence="Apache-2.0",
        paper="arXiv 2306.02707",
        variants=(
            Variant(
                "pairs",
                {"train": Split((hub_file(_REPOSITORY, "orca_rlhf.jsonl", format="jsonl"),))},
                ("system", "question", "chosen", "rejected"),
                each(_record),
            ),
        ),
    ),
    __name__,
)
