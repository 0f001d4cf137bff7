"""What becomes of every source's records before they are encoded, as a stream: read, held out, treated by data methods,
adapted to an objective, mixed. Whoever goes through it holds one record at a time, and what methods hold."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from prefjax.data.account import Account
from prefjax.data.config import SYNTHETIC, DataConfig
from prefjax.data.jsonl import write_rows
from prefjax.data.methods.sequences import Step, apply_methods, columns_of, parse_methods, split_steps
from prefjax.data.records import Record
from prefjax.data.sources import OpenSource, Source, draw_shares, keep_drawn, open_sources, parse_sources
from prefjax.data.transforms import stream_adapted
from prefjax.data.world_records import world_records
from prefjax.requirements import Requirements

_PARTS = 10_000  # resolution of the held-out share


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a run asks for of one split, and what that says of the sources.

    directory  where the synthetic world's records are written down, so that they can be looked at
    """

    config: DataConfig
    requires: Requirements
    split: str
    directory: Path

    @functools.cached_property
    def given(self) -> str:
        """What to read."""
        config = self.config
        given = config.eval if self.split == "eval" and config.eval else config.train
        if given != SYNTHETIC:
            return given
        kind, records = world_records(config.world, self.requires, self.split)
        identity = hashlib.sha256(repr((config.world, kind, self.split)).encode()).hexdigest()[:8]
        path = self.directory / f"synthetic-{kind}-{self.split}-{identity}.jsonl"
        if not path.exists():
            write_rows(path, records)
        return str(path)

    @functools.cached_property
    def sources(self) -> tuple[Source, ...]:
        return parse_sources(self.given)

    @functools.cached_property
    def opened(self) -> list[OpenSource]:
        return open_sources(self.sources, data_dir=self.config.tfds_dir, manual_dir=self.config.manual_dir)

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        """Data methods."""
        return parse_methods(self.config.methods) if self.split == "train" else ()

    @property
    def holds_out(self) -> bool:
        """Whether a share of the training prompts makes the eval split; else sources hold one split only."""
        return not self.config.eval and self.config.train != SYNTHETIC


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

    def __init__(self, asked: Asked, *, columns: Sequence[str] = (), progress: bool = True):
        """
        Args:
            columns: to keep in `Record.columns`, besides those that methods read.
        """
        self._asked, self._progress = asked, progress
        by_steps = columns_of(asked.steps)
        self._columns = dataclasses.replace(by_steps, record=tuple(dict.fromkeys((*by_steps.record, *columns))))
        self._drawn = None
        self.passages: list[Passage] = []

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        sources = self._asked.sources
        if sources[0].share is not None and self._drawn is None:
            counts = [sum(1 for _ in self._treated(number, Passage())) for number in range(len(sources))]
            self._drawn = draw_shares(counts, sources, self._asked.config.mixture_seed)
        self.passages = [Passage() for _ in sources]
        for number, passage in enumerate(self.passages):
            records = self._treated(number, passage)
            if self._drawn is not None:
                records = keep_drawn(records, self._drawn[number], passage.account)
            for record in records:
                yield number, record

    def _treated(self, number: int, passage: Passage) -> Iterator[Record]:
        config, requires, account = self._asked.config, self._asked.requires, passage.account
        before, after = split_steps(self._asked.steps)
        options = {} if requires.imitates else dict(rankings=config.rankings, pair_targets=config.pair_targets)
        records = self._own_side(number, passage)
        records = apply_methods(records, before, account, stream=number)
        records = stream_adapted(records, requires, account, **options)
        return apply_methods(records, after, account, stream=number, first=len(before) + 1)

    def _own_side(self, number: int, passage: Passage) -> Iterator[Record]:
        """The records of the split, which are counted before and after."""
        asked, config = self._asked, self._asked.config
        records = asked.opened[number].stream(
            passage.account, config.format, more=self._columns, progress=self._progress
        )

        def side() -> Iterator[Record]:
            for record in records:
                passage.read += 1
                if not asked.holds_out or is_held_out(record, config.holdout) == (asked.split == "eval"):
                    passage.kept += 1
                    yield record

        return side()

    def division(self) -> str:
        """How the splits were divided, in words."""
        read, kept = (sum(getattr(passage, name) for passage in self.passages) for name in ("read", "kept"))
        if not self._asked.holds_out:
            return f"split {self._asked.split}: all {read} records"
        return (
            f"split {self._asked.split}: {kept} of {read} records; a share of {self._asked.config.holdout:g} of the "
            "prompts, chosen by their hash, makes the eval split"
        )


def is_held_out(record: Record, share: float) -> bool:
    """By a hash of the prompt, so that all records of one prompt fall on one side, whatever else the file holds; and by
    that of the root of a tree, whose responses stand in the prompts of its other records."""
    text = record.prompt if record.root is None else record.root
    digest = hashlib.sha256(repr(text).encode()).digest()
    return int.from_bytes(digest[:8], "big") % _PARTS < share * _PARTS
