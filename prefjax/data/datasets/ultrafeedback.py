"""UltraFeedback, four responses rated by GPT-4 overall and in four aspects."""

import math
from typing import Any

from prefjax.data.dataset_entry import Dataset, Reading, Row, Split, Variant, hub_file, hub_page, user
from prefjax.data.datasets import DATASETS

_REPOSITORY = "openbmb/UltraFeedback"
_PARTS = ("evol_instruct", "false_qa", "flan", "sharegpt", "truthful_qa", "ultrachat")
_ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def _rating(value: Any) -> float | None:
    """A number, or the text of one; "N/A", NaN and nothing are no rating."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def _variant(name: str, rating_of) -> Variant:
    def record(row: Row) -> Row:
        rated = [(completion["response"], _rating(rating_of(completion))) for completion in row["completions"]]
        rated = [(response, rating) for response, rating in rated if rating is not None]
        completions, scores = zip(*rated, strict=True) if rated else ((), ())
        return {"prompt": user(row["instruction"]), "completions": list(completions), "scores": list(scores)}

    files = tuple(hub_file(_REPOSITORY, f"{part}.jsonl") for part in _PARTS)
    return Reading(("instruction", "completions"), record, "rankings", name).variant({"train": Split(files)})


def _aspect(aspect: str) -> Variant:
    return _variant(aspect, lambda completion: completion["annotations"].get(aspect, {}).get("Rating"))


DATASETS.add(
    Dataset(
        name="ultrafeedback",
        title="UltraFeedback, four responses rated by GPT-4 overall and in four aspects",
        homepage=hub_page(_REPOSITORY),
        licence="MIT",
        paper="arXiv 2310.01377",
        variants=(
            _variant("overall", lambda completion: completion.get("overall_score")),
            _variant("fine_grained", lambda completion: completion.get("fine-grained_score")),
            *map(_aspect, _ASPECTS),
        ),
        note=(
            "Responses without a rating are left out of their ranking. overall is the critique's score from 1 to 10, "
            "which is known to say 10 for some responses that the critique calls bad; fine_grained is the mean of the "
            "aspects, 1 to 5."
        ),
    ),
    __name__,
)
