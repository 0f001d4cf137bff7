"""HelpSteer2, ratings of five attributes from 0 to 4, and preferences from -3 to 3."""

import itertools
import re
from collections.abc import Iterator

from prefjax.data.dataset_entry import Dataset, Reading, Row, Split, Variant, hub_file, hub_page, pair
from prefjax.data.datasets import DATASETS

_REPOSITORY = "nvidia/HelpSteer2"
_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


def _prompt(prompt: str) -> list[Row]:
    """Prompts of several turns mark every turn but the first, which is the user's, by <extra_id_1>."""
    first, *parts = _TURN.split(prompt)
    turns = zip(("User", *parts[::2]), (first, *parts[1::2]), strict=True)
    return [{"role": who.lower(), "content": said} for who, said in turns]


def _ratings(attribute: str) -> Variant:
    def records(rows: Iterator[Row]) -> Iterator[Row]:
        for prompt, rated in itertools.groupby(rows, key=lambda row: row["prompt"]):
            rated = list(rated)
            yield {
                "prompt": _prompt(prompt),
                "completions": [row["response"] for row in rated],
                "scores": [row[attribute] for row in rated],
            }

    splits = {s: Split((hub_file(_REPOSITORY, f"{s}.jsonl.gz"),)) for s in ("train", "validation")}
    return Variant("rankings", splits, ("prompt", "response", attribute), records, attribute)


def _preference(row: Row) -> Row:
    prompt = _prompt(row["prompt"])
    return pair(prompt, row["response_1"], row["response_2"], -row["preference_strength"])


_PREFERENCE = hub_file(_REPOSITORY, "preference/preference.jsonl.gz")
DATASETS.add(
    Dataset(
        name="helpsteer2",
        title="HelpSteer2, ratings of five attributes from 0 to 4, and preferences from -3 to 3",
        homepage=hub_page(_REPOSITORY),
        licence="CC-BY-4.0",
        paper="arXiv 2406.08673, 2410.01257",
        variants=(
            Reading(
                ("prompt", "response_1", "response_2", "preference_strength"), _preference, name="preference"
            ).variant(
                {
                    "train": Split((_PREFERENCE,), {"split": ("train",)}),
                    "validation": Split((_PREFERENCE,), {"split": ("val",)}),
                }
            ),
            *map(_ratings, _ATTRIBUTES),
        ),
        note="Rows of one prompt follow each other and become one ranking.",
    ),
    __name__,
)
