"""The accepted shapes of a row, and how each becomes a Record.

    pair           {chosen, rejected}             + optional score_chosen, score_rejected
    unpaired       {completion, label | reward}   label: true or false; with both, the reward becomes the score
    ranked         {completions, scores}          higher is better
    demonstration  {completion}

All have a `prompt`, except that a pair may leave it out and give the whole conversation twice; all may have a
`weight`, and what records of a tree have, `begun`, `ends` and `root`: a row that holds a tree becomes several records,
see `tree_rows`. A pair may have a margin and a probability, and responses weighted spans, in the columns that
`RecordFormat` names. Text is a string or a list of messages as `messages` reads them, and a row of messages may have
`tools` and `chat_template_kwargs`, a list and an object or their JSON text: they are given to the chat template. Where
only some texts are messages, a string prompt is the user's turn and a string response the assistant's. Of ShareGPT's
columns, `conversations` is the prompt beside responses; alone, as `messages` is, it is a demonstration from the first
of the assistant's turns on. Other columns are not read, and that is counted.
Numbers, labels, lists and messages may be spelled otherwise, as `spellings` declares; docs/shapes.md shows all of it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prefjax.data.account import Finding, Notice, Refused, Rejection
from prefjax.data.boundaries import join
from prefjax.data.chat_templates import arguments_text
from prefjax.data.function_calls import tools_text
from prefjax.data.messages import MessageReader, unicode
from prefjax.data.records import TIES, Record, Text, inspect
from prefjax.data.spans import Spans, read_spans
from prefjax.data.spellings import Respelled, nearest
from prefjax.data.tree_rows import GOING_ON, TREE_WEIGHTS, going_on, read_tree
from prefjax.data.tree_shapes import TREE_COLUMNS, TreeRules, is_tree
from prefjax.options import FLOAT32, check_ranges, option
from prefjax.requirements import PAIR_NUMBERS


@dataclasses.dataclass(frozen=True)
class RecordFormat:
    """How rows are read. A column that is None is not read."""

    ties: str = option("drop", "pairs whose two scores are equal; counted either way", choices=TIES)
    boundaries: tuple[str, ...] = option(
        ("\n\nAssistant:",),
        "texts after which a response may begin: a pair of plain text without a prompt is split after the last one "
        "inside the common prefix",
    )
    roles: tuple[str, ...] = option(
        (
            *("human=user", "prompter=user", "gpt=assistant", "model=assistant", "bot=assistant", "chatbot=assistant"),
            "ai=assistant",
        ),
        "what messages may call a role, and which it is; each is counted",
    )
    tree_weights: str = option(
        "each",
        'of the records that a tree becomes. "each": every one weighs what the tree does; "divided": they weigh that '
        "together. The `weight` of a step, or of a message with alternatives, multiplies it",
        choices=TREE_WEIGHTS,
    )
    nested_nulls: str = option(
        "drop",
        "keys without a value inside tools, calls of them and chat_template_kwargs, which Parquet, Feather and the hub "
        "add where rows differ in keys. Those inside of JSON text always stay",
        choices=("drop", "keep"),
    )
    auxiliary_field: str | None = option(None, "the column of the regulariser target (SLiC's y_ref)")
    margin_field: str | None = option(None, "the column of a pair's margin, a number")
    target_probability_field: str | None = option(None, "the column of P(chosen is better), a number in [0, 1]")
    true_labels: tuple[str, ...] = option(
        ("true", "t", "yes", "y", "1"), "words and numbers that mean true as a `label`, in any case; true itself does"
    )
    false_labels: tuple[str, ...] = option(("false", "f", "no", "n", "0"), "those that mean false")
    spans_field: str | None = option(
        None,
        "the column of weighted spans: one list for each response (of a pair: chosen, rejected) of [start, end, "
        "weight], characters of the response's own text; null for a response: all of it, with weight 1",
    )

    def __post_init__(self):
        check_ranges(self, "data.format")
        if not all(self.boundaries):
            raise ValueError(f"data.format.boundaries={self.boundaries!r}: a text there is empty")
        if not all(all(one.partition("=")[::2]) for one in self.roles):
            raise ValueError(f"data.format.roles={self.roles!r}: write each as 'human=user'")
        if both := set(map(str.casefold, self.true_labels)) & set(map(str.casefold, self.false_labels)):
            raise ValueError(f"data.format.true_labels and false_labels both have {', '.join(sorted(both))}")
        known = set(_KNOWN_COLUMNS)
        for name, column in self.columns.items():
            if column in known:
                raise ValueError(f"data.format.{name}_field {column!r} has another meaning already")
            known |= {column} - {None}

    @property
    def columns(self) -> dict[str, str | None]:
        """The columns that it names, by what they hold."""
        return {name: getattr(self, f"{name}_field") for name in ("auxiliary", "spans", *PAIR_NUMBERS)}


@dataclasses.dataclass(frozen=True)
class Columns:
    """Further columns that data methods read, kept in `Record.columns` and `Record.response_columns` as they are.

    record    those with one value for each record
    response  those with a list, one value for each response (of a pair: chosen, rejected)
    """

    record: tuple[str, ...] = ()
    response: tuple[str, ...] = ()

    def __post_init__(self):
        for name in (*self.record, *self.response):
            if name in _KNOWN_COLUMNS:
                raise ValueError(f"column {name!r} has another meaning already; a method reads scores if none is named")
            if name in self.record and name in self.response:
                raise ValueError(f"column {name!r} is read as one value for each record and for each response")


def columns_read(record_format: RecordFormat, more: Columns) -> set[str]:
    """All columns that a row may have and `parse` reads."""
    return _KNOWN_COLUMNS | {*record_format.columns.values()} - {None} | {*more.record, *more.response}


@dataclasses.dataclass(frozen=True)
class _Judged:
    """The responses of a row by field name, and what the row says about them."""

    kind: str
    responses: Mapping[str, Text]
    targets: tuple[float, ...]
    scores: tuple[float, ...] | None


def parse(
    row: Any, source: str, record_format: RecordFormat | None = None, more: Columns | None = None
) -> Iterator[Record | Finding]:
    """One row of a file -> everything found in it and, unless something rejects it, its Record.

    Args:
        row: the decoded row, normally a mapping of column names to values; null counts as absent.
        source: "file:line".
        record_format: None means `RecordFormat()`.
        more: further columns to keep where the row has them; None means none.
    """
    record_format, more = record_format or _PLAIN, more or Columns()
    if is_tree(row):
        words = record_format.true_labels, record_format.false_labels
        divide = record_format.tree_weights == "divided"
        rules = TreeRules(_reader_of(record_format).roles, *words, more.record, more.response, divide)
        read = functools.partial(_parse_flat, record_format=record_format, more=more)
        yield from read_tree(row, source, rules, read)
    else:
        yield from _parse_flat(row, source, record_format, more)


def _parse_flat(row: Any, source: str, record_format: RecordFormat, more: Columns) -> Iterator[Record | Finding]:
    """A row that is no tree."""
    try:
        record, notices = _read(row, source, record_format, more)
    except Refused as refused:
        yield refused.at(source)
        return
    except RecursionError:
        yield Rejection("too_deep", source)
        return
    findings = [*inspect(record, record_format.ties), *notices]
    yield from findings
    if not any(isinstance(finding, Rejection) for finding in findings):
        yield record


def _read(row: Any, source: str, record_format: RecordFormat, more: Columns) -> tuple[Record, list[Notice]]:
    if not isinstance(row, Mapping):
        raise Refused("wrong_type", "", f"a row must be an object, got {type(row).__name__}")
    respelled, reader = _respelled(row, record_format, more), _reader_of(record_format)
    columns = _by_own_names(respelled, reader)
    read_responses, own_columns = _shape_of(columns)
    own_texts = [name for name in _TEXTS if name in own_columns]
    columns = reader.texts(columns, ["prompt", "root", *own_texts, record_format.auxiliary_field])
    judged = read_responses(columns)

    texts, auxiliary = dict(judged.responses), record_format.auxiliary_field
    if auxiliary is not None:
        texts[auxiliary] = _get(columns, auxiliary)
    prompt = columns.get("prompt")
    prompt, texts, repeated = join(prompt, texts, record_format.boundaries)
    weight = _number(columns, "weight") if "weight" in columns else 1.0
    if weight < 0:
        raise Refused("bad_weight", "weight", f"{weight:g}")

    numbers = _numbers(columns, record_format) if judged.kind == "pair" else {}
    given = {} if isinstance(prompt, str) else _given(columns, reader)

    found = respelled.found | reader.found
    notices = [Notice(reason, source, *where) for reason, where in found.items()]
    if repeated:
        notices.append(Notice("prompt_repeated", source, repeated[0]))
    goes_on = [f for f, text in texts.items() for b in record_format.boundaries if isinstance(text, str) and b in text]
    if goes_on:
        notices.append(Notice("several_messages", source, goes_on[0]))
    responses = tuple(texts[field] for field in judged.responses)
    spans, marked = None, record_format.spans_field
    if marked in columns:
        spans = tuple(map(functools.partial(_spans, marked), _each(columns, marked, judged), responses))
    read = (
        own_columns
        | {"prompt", "weight", *GOING_ON, auxiliary, marked, *(name for name, text in given.items() if text)}
        | {record_format.columns[name] for name in numbers}
    )
    unread = columns.keys() - read - {*more.record, *more.response}
    if unread:
        absent = sorted((own_columns | _COMMON) - columns.keys())
        near = {name: nearest(name, absent) for name in sorted(map(str, unread))}
        said = [f"{name} (did you mean {meant}?)" if meant else name for name, meant in near.items()]
        notices.append(Notice("unread_column", source, "", ", ".join(said)))
    record = Record(
        prompt=prompt,
        responses=responses,
        targets=judged.targets,
        kind=judged.kind,
        scores=judged.scores,
        auxiliary=texts.get(auxiliary),
        weight=weight,
        **given,
        **going_on(columns, prompt, len(responses)),
        source=source,
        **numbers,
        spans=spans,
        columns={name: columns[name] for name in more.record if name in columns},
        response_columns={name: _each(columns, name, judged) for name in more.response if name in columns},
    )
    return record, notices


def _reader_of(record_format: RecordFormat) -> MessageReader:
    roles = dict(one.partition("=")[::2] for one in record_format.roles)
    return MessageReader(roles, record_format.nested_nulls == "keep")


def _by_own_names(columns: dict[str, Any], reader: MessageReader) -> dict[str, Any]:
    """A row with a whole conversation as one with a prompt: of those beside responses, or up to the first answer."""
    name = next((name for name in _CHATS if name in columns), None)
    beside = any(shape in columns for shape in _SHAPES)
    if name is None or "prompt" in columns or beside and name != "conversations":
        return columns
    rest = {other: value for other, value in columns.items() if other != name}
    if beside:
        return {**rest, "prompt": columns[name]}
    turns = reader.text(columns[name], name)
    first = None if isinstance(turns, str) else next((at for at, t in enumerate(turns) if t.role == "assistant"), None)
    if first is None:
        raise Refused("no_boundary", name, "it has no turn of the assistant's to imitate")
    return {**rest, "prompt": turns[:first], "completion": turns[first:]}


def _respelled(row: Mapping[Any, Any], record_format: RecordFormat, more: Columns) -> Respelled:
    """The row's columns that are not null, as the functions below read them."""
    columns = Respelled({name: value for name, value in row.items() if value is not None})
    own = record_format.columns
    columns.lists(("completions", "scores", "ends", own["spans"], *more.response))
    columns.numbers((*_NUMBERS, *(own[name] for name in PAIR_NUMBERS)))
    columns.texts(("prompt", "root", *_TEXTS, *_CHATS, own["auxiliary"]))
    columns.label(record_format.true_labels, record_format.false_labels)
    return columns


def _shape_of(columns: Mapping[str, Any]) -> tuple[Callable[[Mapping[str, Any]], _Judged], set[str]]:
    """The reader of the row's responses, and the columns that it reads."""
    shapes = [shape for shape in _SHAPES if shape in columns or shape == "chosen" and "rejected" in columns]
    if len(shapes) > 1:
        raise Refused("ambiguous_shape", "", f"{' and '.join(shapes)}: keep the columns of one shape")
    if not shapes:
        own = [name for name in columns if name not in _KNOWN_COLUMNS]
        near = next((f"the row has {n}: did you mean {name}? " for name in _TEXTS if (n := nearest(name, own))), "")
        there = ", ".join(sorted(map(str, columns))) or "nothing"
        detail = f"{near}a row needs chosen and rejected, or completion, or completions; this one has {there}"
        raise Refused("missing_field", "chosen", detail)
    return _SHAPES[shapes[0]]


def _each(columns: Mapping[str, Any], name: str, judged: _Judged) -> tuple[Any, ...]:
    """One value for each response; of a single one the value may stand without a list."""
    values, count = columns[name], len(judged.responses)
    if count == 1 and not isinstance(values, list | tuple):
        values = (values,)
    if not isinstance(values, list | tuple):
        raise Refused("wrong_type", name, f"must be a list, got {type(values).__name__}")
    if len(values) != count:
        raise Refused("length_mismatch", name, f"{count} responses, {len(values)} values")
    return tuple(values)


def _spans(field: str, value: Any, response: Text) -> Spans:
    if value is not None and not isinstance(response, str) and len(response) > 1:
        raise Refused("bad_span", field, f"spans are of one message, this response has {len(response)}")
    text = response if isinstance(response, str) else response[0].content
    try:
        return read_spans(value, len(text))
    except ValueError as error:
        raise Refused("bad_span", field, str(error)) from error


def _numbers(columns: Mapping[str, Any], record_format: RecordFormat) -> dict[str, float]:
    """Those of PAIR_NUMBERS that the format names a column for, and this pair has."""
    own = {name: record_format.columns[name] for name in PAIR_NUMBERS}
    numbers = {name: _number(columns, column) for name, column in own.items() if column in columns}
    probability = numbers.get("target_probability", 0)
    if not 0 <= probability <= 1:
        raise Refused("bad_probability", own["target_probability"], f"{probability:g}")
    return numbers


def _pair(columns: Mapping[str, Any]) -> _Judged:
    texts = {field: _get(columns, field) for field in ("chosen", "rejected")}
    names = ("score_chosen", "score_rejected")
    scored = any(name in columns for name in names)
    scores = tuple(_number(columns, name) for name in names) if scored else None
    return _Judged("pair", texts, (1.0, 0.0), scores)


def _single(columns: Mapping[str, Any]) -> _Judged:
    texts = {"completion": _get(columns, "completion")}
    scores = (_number(columns, "reward"),) if "reward" in columns else None
    if "label" in columns:
        label = columns["label"]
        if not isinstance(label, bool | int | float) or label not in (0, 1):
            raise Refused("bad_label", "label", f"must be true, false, 1 or 0, got {label!r:.40}{_WORDS}")
        return _Judged("unpaired", texts, (float(label),), scores)
    return _Judged("unpaired", texts, scores, scores) if scores else _Judged("demonstration", texts, (1.0,), None)


def _ranked(columns: Mapping[str, Any]) -> _Judged:
    for field in ("completions", "scores"):
        if not isinstance(_get(columns, field), list | tuple):
            raise Refused("wrong_type", field, f"must be a list, got {type(columns[field]).__name__}")
    texts = {f"completions[{k}]": text for k, text in enumerate(columns["completions"])}
    scores = {f"scores[{k}]": score for k, score in enumerate(columns["scores"])}
    if len(texts) != len(scores):
        raise Refused("length_mismatch", "scores", f"{len(texts)} completions, {len(scores)} scores")
    if not texts:
        raise Refused("empty_response", "completions", "the list is empty")
    numbers = tuple(_number(scores, name) for name in scores)
    return _Judged("ranked", {name: _get(texts, name) for name in texts}, numbers, numbers)


# The column that makes a row this shape -> its reader, and all columns that the shape reads besides the common ones.
_SHAPES = {
    "chosen": (_pair, {"chosen", "rejected", "score_chosen", "score_rejected"}),
    "completion": (_single, {"completion", "label", "reward"}),
    "completions": (_ranked, {"completions", "scores"}),
}
_CHATS = ("conversations", "messages")  # whole ones, the first name ShareGPT's
_COMMON = {"prompt", "weight", "tools", "chat_template_kwargs", *GOING_ON}
_KNOWN_COLUMNS = {*_COMMON, *_CHATS, *TREE_COLUMNS}.union(*(columns for _, columns in _SHAPES.values()))
_TEXTS = ("chosen", "rejected", "completion", "completions")
_NUMBERS = ("score_chosen", "score_rejected", "reward", "weight", "scores")
_PLAIN = RecordFormat()
_WORDS = "; name other words in data.format.true_labels and false_labels"


def _get(columns: Mapping[str, Any], field: str) -> Any:
    value = columns.get(field)
    if value is None:
        own = nearest(field, (name for name in columns if name not in _KNOWN_COLUMNS))
        raise Refused("missing_field", field, f"the row has {own}: did you mean {field}?" if own else "")
    return value


def _number(columns: Mapping[str, Any], field: str) -> float:
    value = _get(columns, field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        got = f"the text {value[:40]!r}" if isinstance(value, str) else type(value).__name__
        raise Refused("wrong_type", field, f"must be a number, got {got}")
    if value not in FLOAT32:
        raise Refused("not_finite", field, f"{value}" if isinstance(value, float) else "an integer beyond float32")
    return float(value)


def _given(columns: Mapping[str, Any], reader: MessageReader) -> dict[str, str]:
    """What a chat's template is given besides the turns, as fields of the record."""
    texts = {}
    for name, as_text in (("tools", tools_text), ("chat_template_kwargs", arguments_text)):
        if name not in columns:
            continue
        try:
            texts[name] = unicode(as_text(reader.without_nulls(columns[name], name)), name)
        except ValueError as error:
            raise Refused("bad_arguments", name, str(error)) from error
    return texts
