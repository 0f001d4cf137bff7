"""How many tokens preference data come to: every response apart, prompts shared by a record, whatever is shared by all.

COMMAND   python -m experiments.benchmarks.factors --data='data/*.jsonl.gz' --tokenizer=SmolLM2-135M-Instruct
          --output=results/factors
          --data is anything that config.data.train takes, several separated by commas.
TIME      a minute for the seven files of the table in docs/trees.md
PROTOCOL  Records are read and encoded as the trainer does it, none dropped for its length. Tokens are counted with
          plain tries of all sequences, a set of (node, token): no code of rows, packing or layouts. So the last number
          is the most that merging can save, where a row holds everything.
          Besides a file's own records, three views of it, where it has what they need. "all pairs": every ordered pair
          of each ranking, a record each. "every turn": every answer of a chat's prompt gets the chosen response of the
          next record for an alternative (constructed). "every step": of a ranking by 1 and 0, the lines of the first
          of the best solutions as steps, each beside that line of the next solution (constructed).
COLUMNS   separate: tokens where every response is a sequence of its own with its prompt; per record: separate / tokens
          where a record's prompt stands once; merged: separate / nodes of the trie of all sequences. continues: records
          whose prompt goes on from another record's prompt and response.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from absl import flags

from experiments.benchmarks import sweep
from experiments.command import start_command
from prefjax.analysis import style
from prefjax.data.encoding import EncodingPolicy, encode_all
from prefjax.data.formats import RecordFormat, parse
from prefjax.data.records import Record, Text
from prefjax.data.sources import OpenSource
from prefjax.data.tokenizers import Tokenizer, load_tokenizer
from prefjax.data.transforms import adapt
from prefjax.requirements import Requirements
from prefjax.rows.trees import TokenTree, token_ids

VIEWS = ("records", "all pairs", "every turn", "every step")
COLUMNS = (
    "data: {data} | view: {view} | records: {records:,} | separate: {separate:,} | per record: {per_record:.2f} | "
    "merged: {merged:.2f} | continues: {continues:,}"
)


class Trie:
    """Sequences of ids that share their beginnings; `size` is the number of different beginnings."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, int], int] = {}

    @property
    def size(self) -> int:
        return len(self._after)

    def add(self, ids: Iterable[int], node: int = 0) -> int:
        """The node that a sequence ends at, which goes on from another's end; 0 is the beginning."""
        for token in ids:
            node = self._after.setdefault((node, token), len(self._after) + 1)
        return node


def factors(trees: Sequence[TokenTree]) -> dict[str, Any]:
    """Counts of encoded records."""
    trie, separate, per_record = Trie(), 0, 0
    for tree in trees:
        start, lengths = trie.add(tree.prompt.tolist()), [len(branch) for branch in tree.branches]
        separate += sum(len(tree.prompt) + length for length in lengths)
        per_record += len(tree.prompt) + sum(lengths)
        for branch in tree.branches:
            trie.add(token_ids(branch).tolist(), start)
    return {
        "records": len(trees),
        "separate": separate,
        "shared": per_record,
        "nodes": trie.size,
        "per_record": separate / per_record,
        "merged": separate / trie.size,
        "continues": _continuing(trees),
    }


def _continuing(trees: Sequence[TokenTree]) -> int:
    """Records whose prompt begins with all of another one's prompt and response."""
    whole = {np.concatenate([tree.prompt, token_ids(one)]).tobytes() for tree in trees for one in tree.responses}
    lengths = sorted(set(map(len, whole)))
    prompts = (tree.prompt.tobytes() for tree in trees)
    return sum(any(p[:n] in whole for n in itertools.takewhile(len(p).__ge__, lengths)) for p in prompts)


def views(records: Sequence[Record]) -> Iterator[tuple[str, list[Record]]]:
    """Name -> records, of those views that these records have."""
    yield "records", list(records)
    ranked = [record for record in records if record.kind == "ranked"]
    if any(len(record.responses) > 2 for record in ranked):
        yield "all pairs", adapt(ranked, Requirements(2), rankings="all")[0]
    rows = [*turns([record for record in records if record.kind == "pair" and record.is_chat])]
    if any(sum("alternatives" in turn for turn in row["messages"]) > 1 for row in rows):
        yield "every turn", _read(rows)
    if rows := [*_steps([record for record in ranked if set(record.targets) <= {0.0, 1.0}])]:
        yield "every step", _read(rows)


def _read(rows: Iterable[dict[str, Any]]) -> list[Record]:
    items = (item for row in rows for item in parse(row, "constructed:1", RecordFormat()))
    return [item for item in items if isinstance(item, Record)]


def turns(records: Sequence[Record], side: int = 0) -> Iterator[dict[str, Any]]:
    """Pairs of chats as dialogues with an alternative at every answer: rows of the shape `messages`.

    Args:
      side: of the next record's responses, 0 the chosen and 1 the rejected one, that is beside answers of the prompt.
    """
    for record, other in zip(records, [*records[1:], *records[:1]], strict=True):
        messages = [turn.as_dict() for turn in record.prompt]
        for turn in messages:
            turn |= {"alternatives": [_last(other.responses[side])]} if turn["role"] == "assistant" else {}
        chosen, rejected = map(_last, record.responses)
        yield {"messages": [*messages, {"role": "assistant", "content": chosen, "alternatives": [rejected]}]}


def _steps(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    for record in records:
        texts = [_last(response).splitlines(keepends=True) for response in record.responses]
        best = record.targets.index(max(record.targets))
        other = texts[(best + 1) % len(texts)]
        steps = [
            {"text": step, "alternatives": [other[at] if at < len(other) else other[-1]]}
            for at, step in enumerate(texts[best])
        ]
        yield {"prompt": _plain(record.prompt), "steps": steps}


def _last(text: Text) -> str:
    return text if isinstance(text, str) else text[-1].content


def _plain(text: Text) -> Any:
    return text if isinstance(text, str) else [turn.as_dict() for turn in text]


def measure(name: str, tokenizer: Tokenizer, wanted: Sequence[str]) -> Iterator[sweep.Row]:
    """The lines of one file or named dataset."""
    records, _ = OpenSource(name).read(RecordFormat(), progress=False)
    for view, own in views(records):
        if view in wanted:
            trees, _ = encode_all(own, tokenizer, EncodingPolicy(special_text="parse"), progress=False)
            yield {"data": Path(name).name.split(".")[0], "view": view, **factors(trees)}


def plot(rows: Sequence[sweep.Row]) -> matplotlib.figure.Figure:
    """Both factors of every line."""
    names = [f"{row['data']}, {row['view']}" for row in rows]
    figure, (axis,) = sweep.panels(9.6, 1.2 + 0.4 * len(rows))
    places = np.arange(len(rows))
    for shift, field, colour in ((-0.18, "per_record", sweep.GREY), (0.18, "merged", sweep.BLUE)):
        axis.barh(places + shift, [row[field] for row in rows], 0.34, color=colour, label=field.replace("_", " "))
    axis.set(xlabel="separate tokens / tokens")
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.legend(**style.LEGEND)
    style.title(axis, "How many times fewer tokens")
    return figure


def define_flags() -> None:
    flags.DEFINE_list("data", None, "What config.data.train takes; globs of files too.", required=True)
    sweep.define_output()
    flags.DEFINE_string("tokenizer", "byte", "byte, or a Hugging Face tokenizer folder.")
    flags.DEFINE_multi_enum("view", list(VIEWS), VIEWS, "Which views; may be repeated.")


def main(_) -> None:
    options, rows = flags.FLAGS, []
    tokenizer = load_tokenizer(options.tokenizer)
    for given in options.data:
        for path in OpenSource(given).files or [given]:
            for row in measure(str(path), tokenizer, options.view):
                rows.append(row)
                print(sweep.table(COLUMNS, [row]).splitlines()[-1], flush=True)
    name = options.tokenizer.rsplit("/", 1)[-1]
    text = f"{name} tokenizer; no record is dropped for its length.\n\n{sweep.table(COLUMNS, rows)}"
    sweep.write(Path(options.output), {"tokenizer": name, "rows": rows}, text, plot(rows))


if __name__ == "__main__":
    define_flags()
    start_command(main)
