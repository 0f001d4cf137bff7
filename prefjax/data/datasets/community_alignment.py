"""Community Alignment, the best of four responses to people of five countries."""

from prefjax.data.dataset_entry import Dataset, Reading, Row, Split, Variant, hub_file, hub_page, user
from prefjax.data.datasets import DATASETS

_REPOSITORY = "facebook/community-alignment-dataset"
_FILE = hub_file(_REPOSITORY, "community_alignment.csv", revision="97343c7f6399fcbea430ed0f37c1768281a78d56")


def _record(row: Row) -> Row | None:
    offered = {f"response_{x}": row[f"first_turn_response_{x}"] for x in "abcd"}
    offered = {name: text.replace("<|end_of_text|>", "") for name, text in offered.items() if text}
    best = row["first_turn_preferred_response"]
    if best is None:
        return None
    scores = [float(name == best) for name in offered]
    return {"prompt": user(row["first_turn_prompt"]), "completions": [*offered.values()], "scores": scores}


def _variant(name: str, where: dict[str, tuple[str, ...]]) -> Variant:
    columns = ("first_turn_prompt", "first_turn_preferred_response", *(f"first_turn_response_{x}" for x in "abcd"))
    return Reading(columns, _record, "rankings", name).variant({"train": Split((_FILE,), where)})


DATASETS.add(
    Dataset(
        name="community_alignment",
        title="Community Alignment, the best of four responses to people of five countries",
        homepage=hub_page(_REPOSITORY),
        licence="CC-BY-4.0",
        paper="arXiv 2507.09650",
        variants=(_variant("all", {}), _variant("en", {"assigned_lang": ("en",)})),
        note=(
            "First turns; the preferred response scores 1 and the others 0, so make pairs by data.rankings='all'. Rows "
            "without a preference are left out. People disagree on one prompt on purpose."
        ),
    ),
    __name__,
)
