"""Options as fields of frozen dataclasses: each with its default, meaning and range, made from plain mappings.

@dataclasses.dataclass(frozen=True)
class WindowConfig:
    size: int = option(4096, "trees packed together", at_least=1)

    def __post_init__(self):
        check_ranges(self, "window")
"""

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from numbers import Real
from typing import Annotated, Any, NamedTuple

REQUIRED = dataclasses.MISSING
Bound = float | int | None
LARGEST = (2 - 2**-23) * 2.0**127  # of float32, which every number becomes


@dataclasses.dataclass(frozen=True)
class Range:
    """What a value may be: one of `choices`, or a number of float32 within the bounds; with neither, anything."""

    choices: tuple[Any, ...] = ()
    at_least: Bound = None
    above: Bound = None
    at_most: Bound = None
    below: Bound = None

    def bounds(self) -> list[str]:
        words = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return [f"{word} {bound}" for word, bound in words.items() if bound is not None]

    def __contains__(self, value: Any) -> bool:
        if value in self.choices:
            return True
        if (self.at_least, self.above, self.at_most, self.below) == (None,) * 4:
            return not self.choices
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        number: Any = value  # an integer may be larger than any float
        low = (self.at_least is None or number >= self.at_least) and (self.above is None or number > self.above)
        high = (self.at_most is None or number <= self.at_most) and (self.below is None or number < self.below)
        return -LARGEST <= number <= LARGEST and low and high

    def __str__(self) -> str:
        """In words, as "none, full, dots" or "-1, or at least 1"; empty where anything goes."""
        return ", or ".join(filter(None, (", ".join(map(str, self.choices)), " and ".join(self.bounds()))))


FLOAT32 = Range(at_least=-LARGEST, at_most=LARGEST)
# Options of functions in registries have their range in the annotation: `beta: Positive = 0.1`.
Finite = Annotated[float, FLOAT32]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
Part = Annotated[float, Range(above=0, at_most=1)]
BelowHalf = Annotated[float, Range(at_least=0, below=0.5)]
BelowOne = Annotated[float, Range(at_least=0, below=1)]
Count = Annotated[int, Range(at_least=1)]
Several = Annotated[int, Range(at_least=2)]
Index = Annotated[int, Range(at_least=0)]


class Option(NamedTuple):
    """A field as documentation and flags need it.

    kind      its type, without None
    item      of a tuple, the type of what is in it; else None
    optional  whether None is a value
    default   REQUIRED where there is none
    decides   whether a run's result depends on it
    """

    name: str
    kind: Any
    item: Any
    optional: bool
    default: Any
    meaning: str
    range: Range
    decides: bool = True


def option(
    default: Any,
    meaning: str,
    *,
    choices: Collection[Any] = (),
    at_least: Bound = None,
    above: Bound = None,
    at_most: Bound = None,
    below: Bound = None,
    decides: bool = True,
) -> Any:
    """A field of a dataclass of options.

    Args:
      default: or REQUIRED.
      meaning: what it does, what special values do, units, and the paper it is from.
      choices: values that are allowed whatever the bounds say; without bounds, the only ones. Of a tuple: its elements.
      decides: False where a run's result does not depend on it, or where a hash of what it names is compared: it may
        change when a run is continued.
    """
    allowed = Range(tuple(choices), at_least, above, at_most, below)
    return dataclasses.field(default=default, metadata={"meaning": meaning, "range": allowed, "decides": decides})


def check_ranges(config: Any, path: str) -> None:
    """Checks every field of a dataclass of options; its `__post_init__` calls this first.

    Args:
      path: where the dataclass stands among the options of a stage, as "data.encoding"; "" for the stage itself.

    Raises:
      ValueError: names the field, its value and the range.
    """
    cls: type = type(config)
    for field in options_of(cls):
        value = getattr(config, field.name)
        if value is None and field.optional:
            continue
        if field.kind is tuple and not (isinstance(value, tuple) and all(type(one) is field.item for one in value)):
            plural = "texts" if field.item is str else f"{field.item.__name__} values"
            raise ValueError(f"{f'{path}.' if path else ''}{field.name}={value!r} must be a tuple of {plural}")
        if any(one not in field.range for one in (value if isinstance(value, tuple) else (value,))):
            advice = (
                "set it to" if field.range.bounds() else "choose one of" if field.kind is not tuple else "choose of"
            )
            raise ValueError(f"{f'{path}.' if path else ''}{field.name}={value!r}: {advice} {field.range}")


@functools.cache
def options_of(cls: type) -> tuple[Option, ...]:
    """The fields of a dataclass of options in order."""
    options = []
    for field in dataclasses.fields(cls):
        given = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        kind = next(one for one in given if one is not types.NoneType)
        item = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None
        kind = typing.get_origin(kind) or kind
        said = [field.metadata[name] for name in ("meaning", "range", "decides")]
        options.append(Option(field.name, kind, item, types.NoneType in given, field.default, *said))
    return tuple(options)


def walk(cls: type, path: str = "") -> Iterator[tuple[str, Option]]:
    """All fields of a dataclass of options by their full names, depth first; those that are dataclasses themselves too.

    Args:
      path: what stands before every name, with its dot.
    """
    for field in options_of(cls):
        yield path + field.name, field
        if isinstance(field.kind, type) and dataclasses.is_dataclass(field.kind):
            yield from walk(field.kind, f"{path}{field.name}.")


def deciding(config: Any) -> dict[str, Any]:
    """The options of a dataclass that decide a run's result, nested as it is, in the types of JSON."""
    cls: type = type(config)
    kept = {}
    for field in options_of(cls):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            kept[field.name] = deciding(value)
        elif field.decides:
            kept[field.name] = value
    return json.loads(json.dumps(kept))


def defaults_of(cls: type) -> dict[str, Any]:
    """What `deciding` says of a dataclass that is left as it is, without what has no default."""
    kept: dict[str, Any] = {}
    for field in options_of(cls):
        if dataclasses.is_dataclass(field.default):
            kept[field.name] = deciding(field.default)
        elif field.default is REQUIRED and isinstance(field.kind, type) and dataclasses.is_dataclass(field.kind):
            kept[field.name] = defaults_of(field.kind)
        elif field.default is not REQUIRED and field.decides:
            kept[field.name] = json.loads(json.dumps(field.default))
    return kept


def unknown_option(path: str, known: Collection[str]) -> str:
    """A message for an option that does not exist, with the one that is nearest to its full name, if any is."""
    same_name = [other for other in known if other.rpartition(".")[2] == path.rpartition(".")[2]]
    near = same_name or difflib.get_close_matches(path, known, n=1, cutoff=0.7)
    return f"{path} is not an option" + (f": did you mean {' or '.join(near[:3])}?" if near else "")


def build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """A dataclass from a nested mapping, by field names and types; lists become tuples.

    None for a field that cannot be None is as if the field were not there.

    Args:
      path: what the mapping is called in messages.

    Raises:
      ValueError: names the field that is unknown, missing, or of the wrong type, by its full path.
    """
    fields = {field.name: field for field in options_of(cls)}
    for name in values:
        if name not in fields:
            raise ValueError(unknown_option(f"{path}.{name}", [f"{path}.{known}" for known in fields]))
    made = {}
    for name, field in fields.items():
        value = values.get(name)
        if value is not None or name in values and field.optional:
            made[name] = _convert(field, value, f"{path}.{name}")
        elif field.default is REQUIRED:
            raise ValueError(f"{path}.{name} is missing: {field.meaning}")
    return cls(**made)


def _convert(field: Option, value: Any, path: str) -> Any:
    kind = field.kind
    if value is None:
        return None
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if field.optional and all(one is None for one in value.values()):
            return None
        return build(kind, value, path)
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if kind is float and type(value) is int and value in FLOAT32:
        return float(value)
    if kind is Mapping and isinstance(value, Mapping):
        return dict(value)
    if type(value) is not kind:
        raise ValueError(f"{path}={value!r} must be of type {kind.__name__}")
    return value


def stated(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """A nested mapping without what is None, and without mappings in which nothing else is."""
    kept = {name: stated(value) if isinstance(value, Mapping) else value for name, value in (values or {}).items()}
    return {name: value for name, value in kept.items() if value is not None and value != {}}


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with another one laid over it."""
    both = {
        name: merged(values[name], change)
        if isinstance(change, Mapping) and isinstance(values.get(name), Mapping)
        else change
        for name, change in changes.items()
    }
    return {**values, **both}


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, old value, new value) of every leaf in which two nested mappings differ; None where one lacks it."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            yield from differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
    elif old != new:
        yield path, old, new
