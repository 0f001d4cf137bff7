"""Named preference datasets in the modules of this folder: where each lies, its licence, how rows become records.

To add one, write a module with one `DATASETS.add(Dataset(...), __name__)`, or an entry in `one_variant`, and a
few invented rows of its schema with the records they become into `tests/data/dataset_samples.py`; then run
`python -m docs.write_datasets`.
"""

import difflib

from prefjax.data.dataset_entry import Dataset, Variant
from prefjax.registry import Registry

DATASETS: Registry[Dataset] = Registry(kind="dataset", package=__name__, page="docs/datasets.md")


def find(name: str) -> tuple[Dataset, Variant]:
    """ "hh_rlhf/harmless-base" -> the entry and its variant; a dataset of one variant needs no slash.

    Raises:
        ValueError: there is no such name; says which are near, or which variants there are.
    """
    root, _, rest = name.partition("/")
    try:
        dataset = DATASETS.find(root)
    except ValueError as error:
        raise ValueError(f"{error}. A file would end with one of the suffixes of docs/shapes.md, as .jsonl") from None
    if not rest and len(dataset.variants) == 1:
        return dataset, dataset.variants[0]
    if variant := dataset.variant(rest):
        return dataset, variant
    names = [variant.name for variant in dataset.variants]
    near = difflib.get_close_matches(rest, names, cutoff=0.5) or names
    choice = f"{name!r} is no dataset" if rest else f"{root} has several variants"
    raise ValueError(f"{choice}: choose {', '.join(f'{root}/{name}' for name in near)}")
