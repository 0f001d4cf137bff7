"""The methods by name, sequences of them as text, and their application with an account of every record."""

import ast
import dataclasses
import hashlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prefjax.data.formats import Columns
from prefjax.data.methods import (
    completion,
    conditioning,
    geometry,
    join,
    noise,
    pairing,
    relabelling,
    sampling,
    selection,
)
from prefjax.data.methods.stream import Outcomes
from prefjax.data.readers import find_files
from prefjax.data.records import Record
from prefjax.data.report import Report, collect

REQUIRED = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Method:
    """One entry of the registry.

    apply             (records, **options) -> outcomes, see `stream`
    shapes            makes pairs, or judges what an objective needs of them: it comes before `transforms.adapt`
    record_columns    the options that name columns with one value for each record
    response_columns  the options that name columns with a list, one value for each response
    files             the options that name files
    streams           looks at one record at a time; otherwise it needs all of them in memory
    """

    apply: Callable[..., Outcomes]
    shapes: bool = False
    record_columns: tuple[str, ...] = ()
    response_columns: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    streams: bool = True

    @property
    def name(self) -> str:
        return self.apply.__name__

    @property
    def options(self) -> dict[str, Any]:
        """Name -> default; REQUIRED where it must be given."""
        parameters = inspect.signature(self.apply).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options with their values. Raises ValueError naming an option that is foreign, missing, or mistyped."""
        options = self.options
        for option in given:
            if option not in options:
                raise ValueError(f"{self.name} takes no option {option!r}; it takes {', '.join(options)}")
        missing = [name for name, default in options.items() if default is REQUIRED and name not in given]
        if missing:
            raise ValueError(f"{self.name} needs the option {missing[0]!r}")
        hints = typing.get_type_hints(self.apply)
        return {
            name: _typed(hints[name], given.get(name, default), f"{self.name}({name}=...)")
            for name, default in options.items()
        }


_METHODS = (
    Method(noise.flip_labels),
    Method(noise.bradley_terry_labels, response_columns=("reward",)),
    Method(sampling.rso, shapes=True, response_columns=("reward",)),
    Method(pairing.pairs, shapes=True),
    Method(pairing.reward_positions, shapes=True, response_columns=("reward",)),
    Method(pairing.best_against_few, shapes=True, response_columns=("reward",)),
    Method(pairing.delta_pairs, shapes=True, response_columns=("model",)),
    Method(pairing.pass_fail, shapes=True, response_columns=("passed",)),
    Method(pairing.conditioned_pairs, shapes=True, response_columns=("instruction",)),
    Method(conditioning.reward_augmented, shapes=True, response_columns=("reward",)),
    Method(selection.subset, streams=False),
    Method(selection.fold, streams=False),
    Method(selection.easiest, record_columns=("by",), streams=False),
    Method(selection.margin_window, response_columns=("reward",)),
    Method(selection.score_window, response_columns=("reward",)),
    Method(selection.variance_window, shapes=True, response_columns=("reward",)),
    Method(selection.column_window, record_columns=("column",)),
    Method(relabelling.route, record_columns=("gain", "people", "model"), streams=False),
    Method(relabelling.self_label, shapes=True, response_columns=("policy", "reference"), streams=False),
    Method(relabelling.bradley_terry_targets, shapes=True, response_columns=("reward",)),
    Method(geometry.diverse_subset, record_columns=("embedding", "quality"), streams=False),
    Method(geometry.aepo, shapes=True, response_columns=("embedding",)),
    Method(completion.complete_comparisons, shapes=True, response_columns=("wins",)),
    Method(join.join, files=("file",)),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _METHODS}


@dataclasses.dataclass(frozen=True)
class Step:
    """One method with all its options."""

    method: Method
    options: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {"method": self.method.name, "options": dict(self.options)}

    def fingerprint(self) -> list[Any]:
        """JSON-able: what decides the outcome besides the records. A file counts by its content, not its name."""
        options = {name: value for name, value in self.options.items() if name not in self.method.files}
        contents = []
        for name in self.method.files:
            for path in find_files(self.options[name]):
                with path.open("rb") as file:
                    contents.append(hashlib.file_digest(file, "sha256").hexdigest())
        return [self.method.name, options, contents]


def parse_methods(text: str) -> tuple[Step, ...]:
    """ "flip_labels(rate=0.2) | subset(share=0.5, seed=1)": a sequence, applied from left to right; "" is none.

    Raises:
        ValueError: no such method; an option that is foreign, missing or mistyped; not of this form.
    """
    if not text.strip():
        return ()
    form = "write name(option=value, ...), several with | between them"
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"methods {text!r}: {error.msg}; {form}") from None
    calls: list[ast.expr] = []
    while isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.BitOr):
        calls.insert(0, tree.right)
        tree = tree.left
    calls.insert(0, tree)
    return tuple(_step(call, form) for call in calls)


def _step(call: ast.expr, form: str) -> Step:
    written = ast.unparse(call)
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError(f"methods: {written!r} is not of the form name(option=value, ...); {form}")
    name = call.func.id
    if name not in METHODS:
        raise ValueError(f"no data method {name!r}; docs/data_methods.md describes {', '.join(METHODS)}")
    options = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError(f"methods: {written!r}: name every option")
        try:
            options[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:
            message = f"methods: {keyword.arg}={ast.unparse(keyword.value)} is no number, text in quotes, or list"
            raise ValueError(message) from None
    return Step(METHODS[name], METHODS[name].check(options))


def columns_of(steps: Sequence[Step]) -> Columns:
    """The columns that a sequence reads of the records' own file: those that no `join` before brings in."""
    joined: set[str] = set()
    wanted: dict[str, list[str]] = {"record": [], "response": []}
    for step in steps:
        for kind, names in (("record", step.method.record_columns), ("response", step.method.response_columns)):
            own = (step.options[name] for name in names)
            wanted[kind] += [column for column in own if column is not None and column not in joined]
        if step.method.apply is join.join:
            joined |= set(step.options["columns"])
    return Columns(**{kind: tuple(dict.fromkeys(names)) for kind, names in wanted.items()})


def split_steps(steps: Sequence[Step]) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """The steps before and after records are adapted to an objective: up to the last one that shapes them, and the
    rest."""
    last = max((index for index, step in enumerate(steps) if step.method.shapes), default=-1)
    return tuple(steps[: last + 1]), tuple(steps[last + 1 :])


def apply_methods(
    records: Iterable[Record], steps: Sequence[Step], *, stream: int = 0, first: int = 1
) -> tuple[list[Record], Report]:
    """Applies a sequence, each method to all that the one before made.

    Args:
        stream: seeds are (seed, stream) where it is not 0: sources of a mixture draw independently.
        first: the place of the first step, for the stages' names.
    Returns:
        the records, and a report with a stage "<place> <method>" for each step.
    """
    records, report = list(records), Report()
    for place, step in enumerate(steps, first):
        options = dict(step.options)
        if stream and "seed" in options:
            options["seed"] = (options["seed"], stream)
        outcomes = step.method.apply(records, **options)
        records, own = collect(f"{place} {step.method.name}", outcomes, lambda outcome: outcome)
        report += own
    return records, report


def provenance(steps: Sequence[Step], report: Report) -> list[dict[str, Any]]:
    """For a manifest: every step with its options, and its counts in, out, and by reason."""
    facts = []
    for place, step in enumerate(steps, 1):
        stage = report[f"{place} {step.method.name}"]
        counts = {"in": stage.read, "kept": stage.kept, "out": stage.outputs}
        reasons = {"dropped": dict(stage.dropped), "found": dict(stage.found)}
        facts.append(step.as_dict() | counts | reasons)
    return facts


def _typed(hint: Any, value: Any, where: str) -> Any:
    """The value as its annotation says: an int may stand for a float, a list for a tuple."""
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for choice in choices:
        origin = typing.get_origin(choice) or choice
        if origin is typing.Literal and value in typing.get_args(choice):
            return value
        if origin is tuple and isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
            return tuple(value)
        if choice is float and type(value) is int:
            return float(value)
        if choice is types.NoneType and value is None:
            return None
        if isinstance(choice, type) and type(value) is choice:
            return value
    allowed = [_spelled(choice) for choice in choices if not (typing.get_origin(choice) is tuple and int in choices)]
    raise ValueError(f"{where}: {value!r} must be {' or '.join(allowed)}")


def _spelled(choice: Any) -> str:
    if typing.get_origin(choice) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(choice)))
    if typing.get_origin(choice) is tuple:
        return "a list of texts"
    return {float: "a number", int: "an integer", str: "a text in quotes", bool: "True or False"}.get(choice, "None")
