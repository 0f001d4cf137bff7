"""Search Arena, votes on answers of models that search the web."""

from collections.abc import Iterator

from prefjax.data.dataset_entry import Dataset, Row, Split, Variant, hub_file, hub_page, pair
from prefjax.data.datasets import DATASETS

_REPOSITORY = "lmarena-ai/search-arena-24k"


def _records(rows: Iterator[Row]) -> Iterator[Row]:
    for row in rows:
        a, b = row["messages_a"], row["messages_b"]
        if row["winner"] is not None and len(a) == len(b) == 2:
            preference = {"model_a": 1, "model_b": -1}.get(row["winner"], 0)
            yield pair(a[:1], a[1]["content"], b[1]["content"], preference)


DATASETS.add(
    Dataset(
        name="search_arena",
        title="Search Arena, votes on answers of models that search the web",
        homepage=hub_page(_REPOSITORY),
        licence="prompts CC-BY-4.0, responses under their providers' terms",
        paper="arXiv 2506.05334",
        variants=(
            Variant(
                "pairs",
                {
                    "test": Split(
                        (
                            hub_file(
                                _REPOSITORY,
                                "data/search-arena-chat-24k.parquet",
                                format="parquet",
                                revision="fac8dcf86146c8773ef020095c5694c9b2bc98d7",
                            ),
                        ),
                    )
                },
                ("messages_a", "messages_b", "winner"),
                _records,
            ),
        ),
        note=(
            "Battles of one turn: in a longer one, the two sides hold different conversations before the vote. About "
            "half of the conversations have no vote and are left out. The source calls its only split test."
        ),
    ),
    __name__,
)
