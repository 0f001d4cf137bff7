"""What `data.train` names: files, named datasets, the hub, and mixtures of them with shares."""

import dataclasses
import glob
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from prefjax.data.account import Account, Finding, Rejection, flow
from prefjax.data.datasets import DATASETS, find
from prefjax.data.formats import Columns, RecordFormat
from prefjax.data.progress import progress_bar
from prefjax.data.readers import SUFFIXES, find_files, parse_rows, read_rows, stream_records
from prefjax.data.records import Record

HUB = "hf:"
_FIRST = 1000  # rows that say which columns there are
_SHARE = re.compile(r"(\d+\.?\d*|\.\d+)\s+(\S.*)")


@dataclasses.dataclass(frozen=True)
class Source:
    """One place that records come from.

    name   a file or glob; "<dataset>[/<variant>]:<split>" of the registry, where the split may be sliced as TFDS slices
           (train[:10%]); "hf:<owner>/<dataset>[/<config>]:<split>"
    share  of the records of the mixture; None: all records it has
    """

    name: str
    share: float | None = None


def parse_sources(text: str) -> tuple[Source, ...]:
    """ "a" or "a + b": all records of each; "0.7 a + 0.3 b": as many as have these shares.

    The shares are numbers in any unit, all or none of them given; the plus stands between spaces.

    Raises:
        ValueError: a source is empty or named twice, or only some have a share, or a share is 0.
    """
    if Path(text).is_file():  # whatever its name looks like
        return (Source(text),)
    sources = []
    for part in text.split(" + "):
        found = None if Path(part.strip()).is_file() else _SHARE.fullmatch(part.strip())
        sources.append(Source(found[2], float(found[1])) if found else Source(part.strip()))
    names = [source.name for source in sources]
    if not all(names):
        raise ValueError(f"{text!r}: a source is missing beside a plus")
    if len(set(names)) < len(names):
        raise ValueError(f"{text!r}: a source is named twice, so its records would count twice")
    shares = [source.share for source in sources]
    if shares.count(None) == len(shares):
        return tuple(sources)
    if None in shares or len(shares) == 1:
        raise ValueError(f"{text!r}: give a share to every one of several sources, as in '0.7 a + 0.3 b', or to none")
    if not all(shares):
        raise ValueError(f"{text!r}: a share must be above 0")
    return tuple(Source(source.name, source.share / math.fsum(shares)) for source in sources)


class OpenSource:
    """A source whose rows are at hand: on disk, built, or fetched from the hub.

    Args:
        name: see `Source`.
        data_dir: TFDS's folder for named datasets; "" means its own.
        manual_dir: folder with the files of named datasets, fetched by hand; "" downloads them.
    Raises:
        FileNotFoundError: no such file, here or in manual_dir.
        ValueError: no such dataset or split; says which are near.
        ImportError: "hf:" without the library.
    """

    def __init__(self, name: str, *, data_dir: str = "", manual_dir: str = ""):
        self.name = name
        self.files: list[Path] = []
        self.contents: dict[Path, bytes] = {}  # sha256 of the files, once the fingerprint is known
        self._rows: Iterable[Any] = ()  # where there are no files
        if name.startswith(HUB):
            self._rows = _hub_rows(name)
        elif _is_named(name):
            self._rows = _NamedRows(name, data_dir, manual_dir)
        else:
            self.files = find_files(name)

    def fingerprint(self) -> bytes:
        """sha256 over the content, whatever the place is called."""
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                self.contents[path] = hashlib.file_digest(file, "sha256").digest()
            digest.update(self.contents[path])
        for row in self._rows:
            digest.update(hashlib.sha256(json.dumps(row, sort_keys=True, default=str).encode()).digest())
        return digest.digest()

    def rows(self, *, progress: bool = True) -> Iterator[tuple[str, Any]]:
        """Its rows as ("<source>:<row>", decoded row or Rejection), under the names that records have."""
        for path in self.files:
            yield from read_rows(path, progress=progress)
        bar = progress_bar(self._rows, desc=self.name, unit=" rows", shown=progress and not self.files)
        yield from ((f"{self.name}:{number}", row) for number, row in enumerate(bar, 1))

    def read(
        self, record_format: RecordFormat, *, more: Columns | None = None, progress: bool = True
    ) -> tuple[list[Record], Account]:
        """All that `stream` reads, and its account."""
        account = Account()
        return list(self.stream(account, record_format, more=more, progress=progress)), account

    def stream(
        self, account: Account, record_format: RecordFormat, *, more: Columns | None = None, progress: bool = True
    ) -> Iterator[Record]:
        """Its records, named "<source>:<row>" from row 1 on, as they are asked for; `account` gets the stage "read"."""
        if self.files:
            return stream_records(self.files, account, record_format, more=more, progress=progress)
        return parse_rows(self.rows(progress=progress), account, record_format, more)


def open_sources(sources: Sequence[Source], *, data_dir: str = "", manual_dir: str = "") -> list[OpenSource]:
    """All of them; arguments and errors as `OpenSource`, and no file may be in two."""
    opened = [OpenSource(source.name, data_dir=data_dir, manual_dir=manual_dir) for source in sources]
    find_files([path for source in opened for path in source.files])
    return opened


def open_all(given: str, *, data_dir: str = "", manual_dir: str = "") -> list[OpenSource]:
    """The sources of a reader that takes all their records; `given` as `data.train`, the rest as of `open_sources`.

    Raises:
        ValueError: `given` has shares, or as `parse_sources`.
    """
    sources = parse_sources(given)
    if sources[0].share is not None:
        raise ValueError(f"{given!r}: all records are read here, so leave out the shares")
    return open_sources(sources, data_dir=data_dir, manual_dir=manual_dir)


def columns_in(given: str, *, data_dir: str = "", manual_dir: str = "") -> list[str]:
    """The columns that the first rows of some sources have, in order; arguments as of `OpenSource`, names as in
    `data.train`."""
    found: dict[str, None] = {}
    for source in open_sources(parse_sources(given), data_dir=data_dir, manual_dir=manual_dir):
        for _, row in itertools.islice(source.rows(progress=False), _FIRST):
            found |= dict.fromkeys(map(str, row)) if isinstance(row, Mapping) else {}
    return list(found)


def refuse_copies(sources: Sequence[OpenSource]) -> None:
    """Raises ValueError where two files hold the same bytes, whatever they are called; after their `fingerprint`."""
    seen: dict[bytes, Path] = {}
    for path, content in (item for source in sources for item in source.contents.items()):
        if content in seen and path.stat().st_size:
            raise ValueError(f"{path} is a copy of {seen[content]}, so its records would count twice: leave it out")
        seen[content] = path


def _is_named(name: str) -> bool:
    """A name of the registry, or one that can only be meant as such; everything else is a file or a pattern."""
    if Path(name).exists() or name.endswith(SUFFIXES):
        return False
    return re.split("[/:]", name)[0] in DATASETS or not (glob.has_magic(name) or "." in Path(name).name)


class _NamedRows:
    """The rows of one split of a named dataset, built on first use."""

    def __init__(self, name: str, data_dir: str, manual_dir: str):
        full, _, split = name.partition(":")
        dataset, variant = find(full)
        base = split.split("[")[0]
        if base not in variant.splits:
            choice = ", ".join(f"{full}:{split}" for split in variant.splits)
            raise ValueError(f"{name!r}: {'no such split' if split else 'give a split'}: choose {choice}")
        from prefjax.data.dataset_builder import build  # here: other sources need no TFDS

        built = build(dataset, variant, data_dir=data_dir or None, manual_dir=manual_dir or None)
        self._source = built.as_data_source(split=split)

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self._source)):
            yield json.loads(self._source[index]["record"])


def _hub_rows(name: str) -> Iterable[Any]:
    path, _, split = name.removeprefix(HUB).partition(":")
    owner, *rest = path.split("/")
    if not split or not owner or len(rest) not in (1, 2) or not all(rest):
        raise ValueError(f"{name!r}: write hf:owner/dataset:split, or hf:owner/dataset/config:split")
    try:
        import datasets
    except ImportError as error:
        message = f"{name}: reading from the hub needs the library datasets (pip install -r requirements-hf.txt)"
        raise ImportError(message) from error
    return datasets.load_dataset(f"{owner}/{rest[0]}", rest[1] if len(rest) == 2 else None, split=split)


def take_shares(
    records: Sequence[Sequence[Record]], sources: Sequence[Source], seed: int
) -> tuple[list[list[Record]], list[Account]]:
    """The largest mixture that has the shares without repeating a record; which records it takes, the seed decides.

    A larger mixture of one seed holds the smaller one: each source's records are drawn in an order that depends on the
    seed and the source's name alone. Kept records stay in order.

    Returns:
        the records that are kept, by source, and per source an account with the stage "mix".
    Raises:
        ValueError: a source with a share has no records, so no mixture has it.
    """
    drawn = draw_shares([len(own) for own in records], sources, seed)
    accounts = [Account() for _ in sources]
    kept = [list(keep_drawn(*given)) for given in zip(records, drawn, accounts, strict=True)]
    return kept, accounts


def draw_shares(counts: Sequence[int], sources: Sequence[Source], seed: int) -> list[Bool[np.ndarray, "n"]]:
    """Which records of every source `take_shares` takes, given how many there are; raises as that."""
    if empty := [source.name for source, count in zip(sources, counts, strict=True) if not count]:
        raise ValueError(f"no record of {', '.join(empty)} is left, so no mixture can have its share: leave it out")
    total = min(count / source.share for source, count in zip(sources, counts, strict=True))
    drawn = []
    for source, count in zip(sources, counts, strict=True):
        name = int.from_bytes(hashlib.sha256(source.name.encode()).digest()[:8], "big")
        order = np.random.default_rng([seed, name]).permutation(count)
        # The smallest source is kept whole, whatever the floating-point product says.
        own = np.zeros(count, bool)
        own[order[: max(1, math.floor(total * source.share + 1e-6))]] = True
        drawn.append(own)
    return drawn


def keep_drawn(records: Iterable[Record], drawn: Bool[np.ndarray, "n"], account: Account) -> Iterator[Record]:
    """The records that were drawn, as they are asked for; `account` gets the stage "mix"."""

    def step(numbered: tuple[int, Record]) -> Iterable[Record | Finding]:
        number, record = numbered
        return (record if drawn[number] else Rejection("not_drawn", record.source),)

    return flow(account, "mix", enumerate(records), step)
