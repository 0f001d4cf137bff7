"""TL;DR comparisons, summaries of Reddit posts."""

from prefjax.data.dataset_entry import Dataset, File, Reading, Row, Split
from prefjax.data.datasets import DATASETS

_FOLDER = "https://openaipublic.blob.core.windows.net/summarize-from-feedback/dataset/comparisons"
_BATCHES = (*range(3, 21), 22)  # the others are about news articles
_PROMPT = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def _record(row: Row) -> Row:
    summaries = [" " + summary["text"].removeprefix(" ") for summary in row["summaries"]]
    return {
        "prompt": _PROMPT.format_map(row["info"]),
        "chosen": summaries[row["choice"]],
        "rejected": summaries[1 - row["choice"]],
    }


def _splits() -> dict[str, Split]:
    files = tuple(File(f"batch{n}.json", f"{_FOLDER}/batch{n}.json", "jsonl") for n in _BATCHES)
    return {"train": Split(files, {"split": ("train",)}), "validation": Split(files, {"split": ("valid1", "valid2")})}


DATASETS.add(
    Dataset(
        name="tldr",
        title="TL;DR comparisons, summaries of Reddit posts",
        homepage="https://github.com/openai/summarize-from-feedback",
        licence="see the source",
        paper="arXiv 2009.01325",
        variants=(Reading(("info", "summaries", "choice"), _record).variant(_splits()),),
        note="Plain text, in the prompt format of the paper's code.",
    ),
    __name__,
)
