"""CodePrefBench, pairs of programs of which one is more correct, faster, safer, or liked better."""

from collections.abc import Mapping
from typing import Any

from prefjax.data.dataset_entry import Dataset, File, Reading, Row, Split, Variant, user
from prefjax.data.datasets import DATASETS

_PROPERTIES = ("correctness", "efficiency", "security", "human-preference")
_FILES = "https://raw.githubusercontent.com/amazon-science/llm-code-preference/4a70b824dca148ebb8758460398d38b80b71b601"


def _file(name: str) -> File:
    path = f"datasets/eval/{name}-alignment.jsonl"
    return File(path, f"{_FILES}/{path}", "jsonl")


def _record(row: Mapping[str, Any]) -> Row:
    choices, better = row["choices"], row["gt_choice"]
    return {"prompt": user(row["instruction"]), "chosen": choices[better], "rejected": choices[1 - better]}


def _variant(name: str, properties: tuple[str, ...]) -> Variant:
    reads = Reading(("instruction", "choices", "gt_choice"), _record, name=name)
    return reads.variant({"test": Split(tuple(map(_file, properties)))})


DATASETS.add(
    Dataset(
        name="codeprefbench",
        title="CodePrefBench, 1,364 pairs of programs by correctness, efficiency, security and human preference",
        homepage="https://github.com/amazon-science/llm-code-preference",
        licence="CC-BY-NC-4.0",
        paper="arXiv 2410.03837",
        variants=(
            _variant("all", _PROPERTIES),
            *(_variant(name.replace("-", "_"), (name,)) for name in _PROPERTIES),
        ),
        note="For evaluation, and its authors allow research only. They leave comments out of the programs when they "
        "judge all but human preference; here they stay.",
    ),
    __name__,
)
