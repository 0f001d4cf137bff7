"""The day that a chat template is told which reads the clock: kept with prepared trees, and told again."""

import contextlib
from pathlib import Path

from prefjax.data.tokenizers import Tokenizer
from prefjax.rows.store import PreparedTrees
from prefjax.state_files import read_object


def first_day(tokenizer: Tokenizer, directory: Path) -> str:
    """The first day on which a folder's trees of this tokenizer were prepared; the tokenizer's own, if there are none.

    So the splits of a run are told one day, and trees that are damaged become what they were.
    """
    days = []
    for path in directory.glob("*/manifest.json") if tokenizer.date else ():
        with contextlib.suppress(ValueError, OSError):  # a damaged one says nothing
            told = read_object(path).get("tokenizer", {})
            days += [told["date"]] if told.get("fingerprint") == tokenizer.fingerprint and told.get("date") else []
    return min(days, default=tokenizer.date)


def as_prepared(tokenizer: Tokenizer, trees: PreparedTrees) -> Tokenizer:
    """The tokenizer, with a chat template that is told the day that it was told when the trees were prepared."""
    return tokenizer.on_day(trees.manifest["tokenizer"].get("date") or tokenizer.date)
