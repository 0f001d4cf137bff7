"""Stanford Human Preferences, comments on 18 subreddits."""

from prefjax.data.dataset_entry import Dataset, Reading, Row, Split, Variant, hub_file, hub_page, user
from prefjax.data.datasets import DATASETS

_REPOSITORY = "stanfordnlp/SHP"
_SUBREDDITS = (
    *("askacademia", "askanthropology", "askbaking", "askcarguys", "askculinary", "askdocs", "askengineers"),
    *("askhistorians", "askhr", "askphilosophy", "askphysics", "askscience", "asksciencefiction", "asksocialscience"),
    *("askvet", "changemyview", "explainlikeimfive", "legaladvice"),
)


def _record(row: Row) -> Row:
    chosen, rejected = "AB" if row["labels"] == 1 else "BA"
    return {
        "prompt": user(row["history"]),
        "chosen": row[f"human_ref_{chosen}"],
        "rejected": row[f"human_ref_{rejected}"],
        "score_chosen": row[f"score_{chosen}"],
        "score_rejected": row[f"score_{rejected}"],
    }


def _variant(name: str, subreddits: tuple[str, ...]) -> Variant:
    splits = {
        split: Split(
            tuple(hub_file(_REPOSITORY, f"{subreddit}/{split}.json", format="jsonl") for subreddit in subreddits)
        )
        for split in ("train", "validation", "test")
    }
    columns = ("history", "human_ref_A", "human_ref_B", "score_A", "score_B", "labels")
    return Reading(columns, _record, name=name).variant(splits)


DATASETS.add(
    Dataset(
        name="shp",
        title="Stanford Human Preferences, comments on 18 subreddits",
        homepage=hub_page(_REPOSITORY),
        licence="see the source (Reddit's terms)",
        paper="arXiv 2110.08420",
        variants=(_variant("all", _SUBREDDITS), *(_variant(name, (name,)) for name in _SUBREDDITS)),
        note="Scores are the votes a comment got; both comments are people's.",
    ),
    __name__,
)
