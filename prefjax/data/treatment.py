"""What becomes of every source's records before they are encoded, as a stream: read, held out, treated by data methods,
adapted to an objective, mixed. Whoever goes through it holds one record at a time, and what methods hold."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

from prefjax.data.account import Account
from prefjax.data.formats import Columns, RecordFormat
from prefjax.data.methods.sequences import Step, apply_methods, columns_of, split_steps
from prefjax.data.records import Record
from prefjax.data.sources import OpenSource, Source, draw_shares, keep_drawn
from prefjax.data.transforms import stream_adapted
from prefjax.requirements import Requirements

_PARTS = 10_000  # resolution of the held-out share


@dataclasses.dataclass(frozen=True)
class Treatment:
    """The same for all sources.

    split         "train" or "eval"
    holdout       share of the prompts that makes the eval split; None: the sources hold one split only
    rankings      see `transforms.adapt`, and so `pair_targets`
    steps         data methods
    mixture_seed  which records a mixture with shares takes
    columns       to keep in `Record.columns`, besides those that methods read
    """

    record_format: RecordFormat
    requires: Requirements
    split: str
    holdout: float | None = None
    rankings: str | None = None
    pair_targets: str = "labels"
    steps: tuple[Step, ...] = ()
    mixture_seed: int = 0
    columns: tuple[str, ...] = ()

    @property
    def read_columns(self) -> Columns:
        by_steps = columns_of(self.steps)
        return dataclasses.replace(by_steps, record=tuple(dict.fromkeys((*by_steps.record, *self.columns))))


@dataclasses.dataclass
class Passage:
    """What was counted of one source: its account, and its records before and after holding out."""

    account: Account = dataclasses.field(default_factory=Account)
    read: int = 0
    kept: int = 0


class TreatedRecords:
    """(number of the source, record) of all sources in turn. Every loop reads the sources again, and counts anew.

    passages  what the last loop counted, by source: whole once it is through
    """

    def __init__(self, sources: Sequence[Source], opened: Sequence[OpenSource], how: Treatment, *, progress: bool):
        self._sources, self._opened, self._how, self._progress = sources, opened, how, progress
        self._drawn = None
        self.passages: list[Passage] = []

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        if self._sources[0].share is not None and self._drawn is None:
            counts = [sum(1 for _ in self._treated(number, Passage())) for number in range(len(self._sources))]
            self._drawn = draw_shares(counts, self._sources, self._how.mixture_seed)
        self.passages = [Passage() for _ in self._sources]
        for number, passage in enumerate(self.passages):
            records = self._treated(number, passage)
            if self._drawn is not None:
                records = keep_drawn(records, self._drawn[number], passage.account)
            for record in records:
                yield number, record

    def _treated(self, number: int, passage: Passage) -> Iterator[Record]:
        how, account = self._how, passage.account
        before, after = split_steps(how.steps)
        options = {} if how.requires.imitates else dict(rankings=how.rankings, pair_targets=how.pair_targets)
        records = self._own_side(number, passage)
        records = apply_methods(records, before, account, stream=number)
        records = stream_adapted(records, how.requires, account, **options)
        return apply_methods(records, after, account, stream=number, first=len(before) + 1)

    def _own_side(self, number: int, passage: Passage) -> Iterator[Record]:
        """The records of the split, which are counted before and after."""
        how = self._how
        records = self._opened[number].stream(
            passage.account, how.record_format, more=how.read_columns, progress=self._progress
        )

        def side() -> Iterator[Record]:
            for record in records:
                passage.read += 1
                if how.holdout is None or is_held_out(record, how.holdout) == (how.split == "eval"):
                    passage.kept += 1
                    yield record

        return side()

    def division(self) -> str:
        """How the splits were divided, in words."""
        read, kept = (sum(getattr(passage, name) for passage in self.passages) for name in ("read", "kept"))
        if self._how.holdout is None:
            return f"split {self._how.split}: all {read} records"
        return (
            f"split {self._how.split}: {kept} of {read} records; a share of {self._how.holdout:g} of the prompts, "
            "chosen by their hash, makes the eval split"
        )


def is_held_out(record: Record, share: float) -> bool:
    """By a hash of the prompt, so that all records of one prompt fall on one side, whatever else the file holds; and by
    that of the root of a tree, whose responses stand in the prompts of its other records."""
    text = record.prompt if record.root is None else record.root
    digest = hashlib.sha256(repr(text).encode()).digest()
    return int.from_bytes(digest[:8], "big") % _PARTS < share * _PARTS
