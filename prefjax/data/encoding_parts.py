"""Records -> token trees on disk, part by part, by one process or several, with the same bytes for any number of them.

Parts are of a fixed number of records, so what is encoded together does not depend on who encodes it.
"""

import collections
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prefjax.data.account import Account, flow
from prefjax.data.encoding import EncodingPolicy, encoded
from prefjax.data.progress import progress_bar
from prefjax.data.records import Record
from prefjax.data.tokenizers import Tokenizer
from prefjax.data.worker_processes import WorkerProcesses
from prefjax.rows.parts import read_facts, write_part
from prefjax.rows.trees import TokenTree

PART = 4096  # records; what is in memory is a few parts


@dataclasses.dataclass(frozen=True)
class PartEncoder:
    """Encodes parts into a folder; picklable.

    Calling it with (number of the part, records) writes the part and returns its facts:
        source  number of the source
        records how many came in
        date    what the chat template was told
        stage   "encode" of the account, as `Stage.as_dict`
        last    how often every id ends a response: (id, count)
        trees, bytes   as `write_part` adds them
    """

    tokenizer: Tokenizer
    policy: EncodingPolicy
    folder: Path

    def __call__(self, number: int, source: int, records: list[Record]) -> dict[str, Any]:
        account, last = Account(), collections.Counter()
        facts: dict[str, Any] = {"source": source, "records": len(records), "date": self.tokenizer.date}

        def trees() -> Iterator[TokenTree]:
            outcomes = encoded(records, self.tokenizer, self.policy)
            for tree in flow(account, "encode", outcomes, lambda outcome: outcome):
                last.update(int(ids[-1]) for ids in tree.responses)
                yield tree
            facts["stage"] = account["encode"].as_dict()
            facts["last"] = list(last.items())

        return write_part(self.folder, number, trees(), facts)

    def made(self, number: int) -> dict[str, Any] | None:
        """The facts of a part that an earlier start made, where it would be made the same again."""
        facts = read_facts(self.folder, number)
        return facts if facts and facts["date"] == self.tokenizer.date else None


def encode_parts(
    records: Iterable[tuple[int, Record]], encoder: PartEncoder, *, workers: int, progress: bool
) -> Iterator[dict[str, Any]]:
    """The facts of every part, in order. Parts that an earlier start left in the folder are not encoded again.

    Args:
        records: (number of the source, record), the sources in turn.
        workers: processes; 0: as many as there are cores, where there is more than one part.
    """
    batches = _batches(records)
    first = list(itertools.islice(batches, 2))
    count = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    count = 1 if len(first) < 2 else count
    with progress_bar(desc="encode", unit=" records", shown=progress) as bar:
        encode = _in_turn if count == 1 else _side_by_side
        for facts in encode(enumerate(itertools.chain(first, batches)), encoder, count):
            bar.update(facts["records"])
            yield facts


def _batches(records: Iterable[tuple[int, Record]]) -> Iterator[tuple[int, list[Record]]]:
    """(number of the source, records of a part): a part holds those of one source."""
    for source, own in itertools.groupby(records, key=lambda item: item[0]):
        while batch := [record for _, record in itertools.islice(own, PART)]:
            yield source, batch


Batches = Iterable[tuple[int, tuple[int, list[Record]]]]


def _in_turn(batches: Batches, encoder: PartEncoder, count: int) -> Iterator[dict[str, Any]]:
    for number, (source, records) in batches:
        yield encoder.made(number) or encoder(number, source, records)


def _side_by_side(batches: Batches, encoder: PartEncoder, count: int) -> Iterator[dict[str, Any]]:
    """As many parts as there are processes are on the way, and one more that is ready for the first to be free."""
    with ThreadPoolExecutor(count) as threads, WorkerProcesses(encoder, count) as call:
        underway: collections.deque[Future[dict[str, Any]]] = collections.deque()
        for number, (source, records) in batches:
            if facts := encoder.made(number):
                underway.append(Future())
                underway[-1].set_result(facts)
            else:
                underway.append(threads.submit(call, number, source, records))
            while len(underway) > count:
                yield underway.popleft().result()
        while underway:
            yield underway.popleft().result()
