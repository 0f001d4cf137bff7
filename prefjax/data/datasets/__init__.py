"""Named preference datasets: a registry of short entries, and the TFDS builder that all of them share."""

import difflib
from collections.abc import Mapping

from prefjax.data.datasets import machines, people
from prefjax.data.datasets.entry import Dataset, Variant

DATASETS: Mapping[str, Dataset] = {dataset.name: dataset for dataset in (*people.DATASETS, *machines.DATASETS)}


def find(name: str) -> tuple[Dataset, Variant]:
    """ "hh_rlhf/harmless-base" -> the entry and its variant; a dataset of one variant needs no slash.

    Raises:
        ValueError: there is no such name; says which are near, or which variants there are.
    """
    root, _, rest = name.partition("/")
    dataset = DATASETS.get(root)
    if dataset is None:
        near = difflib.get_close_matches(root, DATASETS, cutoff=0.5) or DATASETS
        raise ValueError(
            f"no dataset named {root!r}; near it: {', '.join(near)} (docs/datasets.md lists all). "
            "A file would end with .jsonl, .jsonl.gz or .parquet"
        )
    if not rest and len(dataset.variants) == 1:
        return dataset, dataset.variants[0]
    if variant := dataset.variant(rest):
        return dataset, variant
    names = [variant.name for variant in dataset.variants]
    near = difflib.get_close_matches(rest, names, cutoff=0.5) or names
    choice = f"{name!r} is no dataset" if rest else f"{root} has several variants"
    raise ValueError(f"{choice}: choose {', '.join(f'{root}/{name}' for name in near)}")
