"""EvalBiasBench, 80 pairs that tempt a judge by one of six biases."""

from prefjax.data.dataset_entry import Dataset, File, Split, Variant, labelled
from prefjax.data.datasets import DATASETS

_BIASES = {
    "length": "length bias",
    "concreteness": "concreteness",
    "empty_reference": "empty reference",
    "content_continuation": "content_continuation",
    "nested_instruction": "nested_instruction",
    "familiar_knowledge": "familiar knowledge preference bias",
}
_FILE = File(
    "data/evalbiasbench/biasbench.json",
    "https://raw.githubusercontent.com/ncsoft/offsetbias/0bd16e4ac935315999ed23480c69673b675884b0/"
    "data/evalbiasbench/biasbench.json",
    "json",
)


def _variant(name: str, where: dict[str, tuple[str, ...]]) -> Variant:
    return labelled("response1", "response2")._replace(name=name).variant({"test": Split((_FILE,), where)})


DATASETS.add(
    Dataset(
        name="evalbiasbench",
        title="EvalBiasBench, 80 pairs that tempt a judge by one of six biases",
        homepage="https://github.com/ncsoft/offsetbias",
        licence="BSD-3-Clause",
        paper="arXiv 2407.06551",
        variants=(
            _variant("all", {}),
            *(_variant(name, {"bias": (bias,)}) for name, bias in _BIASES.items()),
        ),
        note="For evaluation.",
    ),
    __name__,
)
