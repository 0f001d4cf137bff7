"""Records -> records by methods of the literature: noise, sampling, pairing, selection, relabelling, geometry.

A method is a pure function of records and options. For every incoming record it yields what became of it, in
whatever order it likes: the records made of it and the findings, so that `account.collect` can account for each.
`sequences` reads texts such as "flip_labels(rate=0.2) | subset(share=0.5)" and applies them.

To add one, write it in a module of this folder under `@method(...)`, with the facts that are fields of `Method`, and a
docstring in the form of the others; then run `python -m docs.write_data_methods`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from prefjax.registry import Entry, FunctionRegistry

F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Method(Entry):
    """A data method: apply is (records, **options) -> outcomes, see `stream`.

    shapes            makes pairs, or judges what an objective needs of them: it comes before `transforms.adapt`
    record_columns    the options that name columns with one value for each record
    response_columns  the options that name columns with a list, one value for each response
    files             the options that name files
    streams           takes one record at a time; otherwise it needs all of them in memory
    """

    shapes: bool = False
    record_columns: tuple[str, ...] = ()
    response_columns: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    streams: bool = True


METHODS: FunctionRegistry[Method] = FunctionRegistry(
    Method, kind="data method", package=__name__, page="docs/data_methods.md"
)


def method(**facts: Any) -> Callable[[F], F]:
    """A decorator that makes a method of a function, with these facts. Whoever calls the function itself has its
    options checked too: `Entry.check` says what it raises."""

    def decorate(function: F) -> F:
        entry = Method(function, **facts)

        @functools.wraps(function)
        def checked(records: Iterable[Any], **options: Any) -> Any:
            return function(records, **entry.check(options))

        METHODS.register(**facts)(checked)
        return cast(F, checked)

    return decorate
