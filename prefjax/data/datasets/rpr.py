"""Reasonable Preference Reversal, pairs whose preference turns with the context."""

from collections.abc import Iterator

from prefjax.data.dataset_entry import Dataset, HubParquet, Row, Split, Variant, hub_page, pair, user
from prefjax.data.datasets import DATASETS

_REPOSITORY = "microsoft/rpr"


def _variant(context: str) -> Variant:
    def records(rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            for side, preference in (("x", 1), ("y", -1)):
                prompt = user(f"{row['prompt']}\n\n{row[f'{context}_{side}']}")
                made = pair(prompt, row["response_a"], row["response_b"], preference)
                yield {name: made[name] for name in ("prompt", "chosen", "rejected")}

    columns = ("prompt", "response_a", "response_b", f"{context}_x", f"{context}_y")
    splits = {split: Split((HubParquet(_REPOSITORY, split),)) for split in ("train", "test")}
    return Variant("pairs", splits, columns, records, context)


DATASETS.add(
    Dataset(
        name="rpr",
        title="Reasonable Preference Reversal, pairs whose preference turns with the context",
        homepage=hub_page(_REPOSITORY),
        licence="CDLA-Permissive-2.0",
        paper="arXiv 2407.14916",
        variants=(_variant("criteria"),),
        note="Two records a row: the criterion follows the prompt after a blank line; a wins under x, b under y.",
    ),
    __name__,
)
