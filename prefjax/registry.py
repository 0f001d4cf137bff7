"""Things by name: entries that stand where they are written, and options that are read from a function's signature.

A room that has such things makes one `Registry` of them. To add a thing is to write it, with its facts beside it, in a
module of the registry's package: no list names it a second time.
"""

import ast
import dataclasses
import difflib
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

_LARGEST = (2 - 2**-23) * 2.0**127  # of float32, which numbers become
REQUIRED = inspect.Parameter.empty  # stands for the default of an option that must be given


@runtime_checkable
class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str: ...


@runtime_checkable
class Checked(Named, Protocol):
    """What a registry of functions holds."""

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options with their values; raises ValueError naming one that does not fit."""


E = TypeVar("E", bound=Named)
C = TypeVar("C", bound=Checked)
F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Entry:
    """A function by its own name; its keyword-only parameters are the options a user may give. Subclasses add facts."""

    apply: Callable[..., Any]

    @property
    def name(self) -> str:
        return self.apply.__name__

    @property
    def options(self) -> dict[str, Any]:
        """Name -> default; REQUIRED where it must be given."""
        parameters = inspect.signature(self.apply).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options with their values: an int may stand for a float, a list for a tuple.

        Raises:
            ValueError: names an option that is foreign, missing, or not of the type, or out of the range, that its
                annotation says: `Annotated[float, range]`, where a range knows what is in it, and says itself in words.
        """
        options = self.options
        for option in given:
            if option not in options:
                raise ValueError(f"{self.name} takes no option {option!r}; it takes {', '.join(options)}")
        missing = [name for name, default in options.items() if default is REQUIRED and name not in given]
        if missing:
            raise ValueError(f"{self.name} needs the option {missing[0]!r}")
        hints = typing.get_type_hints(self.apply, include_extras=True)
        return {
            name: _typed(hints[name], given.get(name, default), f"{self.name}({name}=...)")
            for name, default in options.items()
        }


class Registry(Mapping[str, E], Generic[E]):
    """Entries by name: all that the modules of a package add, and what is added from elsewhere.

    The package's modules are imported at the first look, so a new module is found without being listed. Its entries
    come first: by module, in the order of names, and within a module as they are written. Others follow as they came.
    """

    def __init__(self, *, kind: str, package: str, page: str):
        """
        Args:
            kind: what an entry is, for messages: "data method".
            package: full name of the package whose modules hold the entries.
            page: where a person reads what there is, for messages.
        """
        self.kind, self.page = kind, page
        self._package = package
        self._entries: dict[str, tuple[str, E]] = {}  # name -> module, entry
        self._complete = False
        self._ordered: dict[str, E] | None = None  # as they are shown; None: to be put in order

    def add(self, entry: E, module: str) -> E:
        """The entry, now found by its name; `module` is the __name__ of the module that holds it.

        Raises:
            ValueError: the name is taken. In a notebook (`__main__`) the new entry replaces the one that a cell made.
        """
        taken = self._entries.get(entry.name)
        if taken is not None and not taken[0] == module == "__main__":
            raise ValueError(f"two of kind {self.kind!r} are named {entry.name!r}: in {taken[0]} and in {module}")
        self._entries[entry.name] = (module, entry)
        self._ordered = None
        return entry

    def find(self, name: str) -> E:
        """The entry. Raises ValueError for an unknown name, with the names near it, or all where none is."""
        entries = self._all()
        if name not in entries:
            near = difflib.get_close_matches(name, entries, n=5, cutoff=0.5) or entries
            raise ValueError(f"no {self.kind} named {name!r}; near it: {', '.join(near)} ({self.page} lists all)")
        return entries[name]

    def __getitem__(self, name: str) -> E:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, E]:
        if not self._complete:
            for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            self._complete = True
        if self._ordered is None:
            inside = lambda item: item[1][0].startswith(f"{self._package}.")
            place = lambda item: (False, item[1][0]) if inside(item) else (True, "")
            self._ordered = {name: entry for name, (_, entry) in sorted(self._entries.items(), key=place)}
        return self._ordered


class FunctionRegistry(Registry[C]):
    """A registry whose entries are made of functions by a decorator, and written as text with their options."""

    def __init__(self, make: Callable[..., C], *, kind: str, package: str, page: str):
        """
        Args:
            make: (function, **facts) -> entry.
        """
        super().__init__(kind=kind, package=package, page=page)
        self._make = make

    def register(self, **facts: Any) -> Callable[[F], F]:
        """A decorator that makes an entry of a function, with these facts; the function stays as it is."""

        def decorate(function: F) -> F:
            self.add(self._make(function, **facts), function.__module__)
            return function

        return decorate

    def parse(self, text: str) -> list[tuple[C, dict[str, Any]]]:
        """ "flip_labels(rate=0.2) | pairs": entries with all their options, in order; "" is none.

        A name alone has no option given. Values are numbers, texts in quotes, True, False, None, and lists of them.

        Raises:
            ValueError: no such entry; an option that is foreign, missing or mistyped; not of this form.
        """
        if not text.strip():
            return []
        form = "write name(option=value, ...), several with | between them"
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            raise ValueError(f"{self.kind} {text!r}: {error.msg}; {form}") from None
        calls: list[ast.expr] = []
        while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
            calls.insert(0, tree.right)
            tree = tree.left
        read = (self.read(call, form) for call in (tree, *calls))
        return [(entry, entry.check(options)) for entry, options in read]

    def read(self, call: ast.expr, form: str) -> tuple[C, dict[str, Any]]:
        """A name, or a call of one with options: the entry, and the options as they are written, not checked.

        Args:
            form: what to write, for messages.
        Raises:
            ValueError: no such entry, or not of this form.
        """
        where = f"{self.kind} {ast.unparse(call)!r}"
        name = call.func if isinstance(call, ast.Call) else call
        if not isinstance(name, ast.Name) or (isinstance(call, ast.Call) and call.args):
            raise ValueError(f"{where} is not of the form name(option=value, ...); {form}")
        return self.find(name.id), written_options(call, where)


def written_options(call: ast.expr, where: str) -> dict[str, Any]:
    """The options of a call as they are written; of a name alone none. Raises ValueError, `where` in its message."""
    options = {}
    for keyword in call.keywords if isinstance(call, ast.Call) else ():
        if keyword.arg is None:
            raise ValueError(f"{where}: name every option")
        try:
            options[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:
            written = f"{keyword.arg}={ast.unparse(keyword.value)}"
            raise ValueError(f"{where}: {written} is no number, text in quotes, or list") from None
    return options


def _typed(hint: Any, value: Any, where: str) -> Any:
    """The value as its annotation says."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for choice in choices:
        if typing.get_origin(choice) is typing.Annotated and value is not None:
            kind, allowed = typing.get_args(choice)
            if type(value) in (int, kind) and value not in allowed:
                raise ValueError(f"{where}: {value!r} is out of range: set it to {allowed}")
            choice = kind
        if typing.get_origin(choice) is typing.Literal and value in typing.get_args(choice):
            return value
        if typing.get_origin(choice) is tuple and isinstance(value, list | tuple):
            try:
                return tuple(_typed(typing.get_args(choice)[0], item, where) for item in value)
            except ValueError:
                continue
        if choice is float and type(value) in (int, float):
            if not abs(value) <= _LARGEST:
                raise ValueError(f"{where}: {value!r} must be a finite number")
            return float(value)
        if choice is types.NoneType and value is None:
            return None
        if isinstance(choice, type) and type(value) is choice:
            return value
    raise ValueError(f"{where}: {value!r} must be {' or '.join(map(_spelled, choices))}")


def _spelled(choice: Any) -> str:
    if typing.get_origin(choice) is typing.Annotated:
        return _spelled(typing.get_args(choice)[0])
    if typing.get_origin(choice) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(choice)))
    if typing.get_origin(choice) is tuple:
        return {str: "a list of texts", int: "a list of integers"}.get(typing.get_args(choice)[0], "a list of numbers")
    return {float: "a number", int: "an integer", str: "a text in quotes", bool: "True or False"}.get(choice, "None")
