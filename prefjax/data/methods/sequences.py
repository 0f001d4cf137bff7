"""Sequences of data methods as text, and their application with an account of every record."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prefjax.data.account import Account, flow
from prefjax.data.formats import Columns
from prefjax.data.methods import METHODS, Method
from prefjax.data.methods.join import join
from prefjax.data.readers import find_files
from prefjax.data.records import Record


@dataclasses.dataclass(frozen=True)
class Step:
    """One method with all its options."""

    method: Method
    options: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {"method": self.method.name, "options": dict(self.options)}

    @functools.cached_property
    def contents(self) -> tuple[str, ...]:
        """sha256 of every file that the options name, in order, as it was when first asked for."""
        digests = []
        for name in self.method.files:
            for path in find_files(self.options[name]):
                with path.open("rb") as file:
                    digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return tuple(digests)

    def fingerprint(self) -> list[Any]:
        """JSON-able: what decides the outcome besides the records. A file counts by its content, not its name."""
        options = {name: value for name, value in self.options.items() if name not in self.method.files}
        return [self.method.name, options, self.contents]

    def options_at(self, place: int, stream: int) -> dict[str, Any]:
        """The options, with a seed that is this step's own: (seed, source, place, name).

        Two steps that drew the same numbers would undo or repeat each other: `flip_labels | flip_labels` of one seed
        would flip every label twice.
        """
        options = dict(self.options)
        if "seed" in options:
            name = int.from_bytes(hashlib.sha256(self.method.name.encode()).digest()[:4], "big")
            options["seed"] = (options["seed"], stream, place, name)
        return options


def parse_methods(text: str) -> tuple[Step, ...]:
    """ "flip_labels(rate=0.2) | subset(share=0.5, seed=1)": a sequence, applied from left to right; "" is none.

    Raises:
        ValueError: as `FunctionRegistry.parse`.
    """
    return tuple(Step(method, options) for method, options in METHODS.parse(text))


def columns_of(steps: Sequence[Step]) -> Columns:
    """The columns that a sequence reads of the records' own file: those that no `join` before brings in."""
    joined: set[str] = set()
    wanted: dict[str, list[str]] = {"record": [], "response": []}
    for step in steps:
        for kind, names in (("record", step.method.record_columns), ("response", step.method.response_columns)):
            own = (step.options[name] for name in names)
            wanted[kind] += [column for column in own if column is not None and column not in joined]
        if step.method.apply is join:
            joined |= set(step.options["columns"])
    return Columns(**{kind: tuple(dict.fromkeys(names)) for kind, names in wanted.items()})


def split_steps(steps: Sequence[Step]) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """The steps before and after records are adapted to an objective: up to the last one that shapes them, and the
    rest."""
    last = max((index for index, step in enumerate(steps) if step.method.shapes), default=-1)
    return tuple(steps[: last + 1]), tuple(steps[last + 1 :])


def apply_methods(
    records: Iterable[Record], steps: Sequence[Step], account: Account, *, stream: int = 0, first: int = 1
) -> Iterator[Record]:
    """Applies a sequence, each method to what the one before makes as it makes it. A method that compares records
    (`Method.streams` False) holds all that come to it; the others hold one.

    Args:
        account: gets a stage "<place> <method>" for each step, counted as records are taken: read it after the last.
        stream: the source's number in a mixture, whose sources draw independently.
        first: the place of the first step, for the stages' names and the steps' draws.
    """
    made = iter(records)
    for place, step in enumerate(steps, first):
        outcomes = step.method.apply(made, **step.options_at(place, stream))
        made = flow(account, f"{place} {step.method.name}", outcomes, lambda outcome: outcome)
    return made


def provenance(steps: Sequence[Step], account: Account) -> list[dict[str, Any]]:
    """For a manifest: every step with its options, the contents of its files, and its counts in, out, and by reason."""
    facts = []
    for place, step in enumerate(steps, 1):
        stage = account[f"{place} {step.method.name}"]
        contents = {"sha256": list(step.contents)} if step.contents else {}
        counts = {"in": stage.read, "kept": stage.kept, "out": stage.outputs}
        reasons = {"dropped": dict(stage.dropped), "found": dict(stage.found)}
        facts.append(step.as_dict() | contents | counts | reasons)
    return facts
