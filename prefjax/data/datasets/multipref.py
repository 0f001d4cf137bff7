"""MultiPref, two crowd workers and two experts on every pair."""

from prefjax.data.dataset_entry import Dataset, HubParquet, Reading, Row, Variant, hub_page, pair, user
from prefjax.data.datasets import DATASETS

_VOTES = {
    "A-is-clearly-better": 1.0,
    "A-is-slightly-better": 0.5,
    "Tie": 0.0,
    "B-is-slightly-better": -0.5,
    "B-is-clearly-better": -1.0,
}


def _variant(kinds: tuple[str, ...]) -> Variant:
    columns = tuple(f"{kind}_worker_annotations" for kind in kinds)

    def record(row: Row) -> Row:
        votes = [_VOTES[vote["overall_pref"]] for column in columns for vote in row[column]]
        return pair(user(row["text"]), row["completion_a"], row["completion_b"], sum(votes) / len(votes))

    name = kinds[0] if len(kinds) == 1 else "all"
    reads = Reading(("text", "completion_a", "completion_b", *columns), record, name=name)
    return reads.variant({"train": HubParquet("allenai/multipref", "train")})


DATASETS.add(
    Dataset(
        name="multipref",
        title="MultiPref, two crowd workers and two experts on every pair",
        homepage=hub_page("allenai/multipref"),
        licence="ODC-BY",
        paper="arXiv 2410.19133",
        variants=(_variant(("normal", "expert")), _variant(("normal",)), _variant(("expert",))),
        note="The mean of the overall votes, clearly 1 and slightly 0.5, decides; its size is the score of the winner.",
    ),
    __name__,
)
