"""What happened to every record of a stage: counts by reason, with the first places to look at."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

EXAMPLES = 3  # findings shown per reason
_DETAIL = 300  # characters shown of a detail

REASONS: Mapping[str, str] = {
    # the file
    "malformed_json": "the line is not valid JSON in UTF-8",
    "line_too_long": "the line has more than 16 MiB",
    "too_deep": "lists and objects are nested too deeply",
    "ragged_row": "a row of a table has more or fewer cells than its header",
    # the shape of a row
    "missing_field": "a field that this shape needs is absent or null",
    "ambiguous_shape": "the row has the fields of several shapes",
    "wrong_type": "the field is of another type",
    "unsupported_part": "a message has a part that is no text, as an image",
    "unclear_thought": "a message tells two thoughts, or one that is not to be scored ends where nobody can tell",
    "bad_tools": "tools, or a call of one, are not of the form that chat templates take",
    "bad_arguments": "chat_template_kwargs are no object of arguments by name",
    "length_mismatch": "lists that go together differ in length",
    "bad_label": "a label is neither true nor false, or a target is not a label",
    "not_finite": "a number is NaN, infinite, or beyond float32",
    "bad_weight": "a weight is negative",
    "bad_probability": "a probability is outside [0, 1]",
    "bad_span": "a span of a response is not a part of it, or overlaps another",
    "bad_role": "a response does not begin with the assistant's turn",
    "no_boundary": "no prompt can be told from the responses without guessing",
    # trees
    "broken_tree": "a message of a tree has an id that came before, or another parent than the one it replies to",
    "no_branching": "no point of a tree has judged alternatives",
    "lone_reply": "the only answer or step at a point of a tree, or one of several that nothing judges: context alone",
    "unjudged_reply": "an answer or step without a judgement beside judged ones: context alone",
    "judged_question": "a judgement of a turn that is not the assistant's",
    "unread_judgement": "a second judgement of an answer or step: of rank, score, reward and label the first is read",
    "withdrawn_message": "a message of a tree that is deleted or failed its review, left out with all replies to it",
    # what a row says
    "empty_prompt": "the prompt has no text",
    "repeated_prompt": "the prompt came before: each is answered once",
    "empty_response": "a response, or one of its messages, has no text",
    "identical_responses": "all responses are the same, so they teach no preference",
    "tie": "equal scores, so nothing is preferred",
    # what an objective needs
    "wrong_kind": "the objective, or a data method, needs another kind of record",
    "undesirable": "labelled 0: not to be imitated",
    # mixing
    "not_drawn": "left out so that every source has its share",
    # data methods
    "few_responses": "fewer responses than a method needs",
    "no_pair": "no two responses fit the rule of a method",
    "unconnected": "the comparisons fall into groups that were never compared with each other: no common scale",
    "not_selected": "left out by a selection",
    "outside_window": "a number is outside the window of a filter",
    # encoding
    "special_text": "the text spells one of the tokenizer's special tokens",
    "template_error": "the chat template refuses the conversation",
    "unstable_template": "the chat template renders the prompt differently once a response follows, so that where the "
    "response begins cannot be told",
    "call_not_shown": "the chat template leaves a call of a tool out",
    "unlocated_span": "a response with spans is not found as it is in what the chat template renders",
    "beyond_vocabulary": "a token of the tokenizer that the model has no embedding for",
    "prompt_too_long": "the prompt exceeds max_prompt_length",
    "response_too_long": "a response exceeds max_response_length",
    "sequence_too_long": "prompt and longest response exceed max_length",
    # counted only
    "unread_column": "columns that nothing reads",
    "mapped_role": "a message calls its role otherwise: read as data.format.roles says",
    "ignored_key": "keys of messages that no chat template is given",
    "joined_parts": "a message of several text parts, joined",
    "dropped_nulls": "keys without a value inside tools, calls or chat_template_kwargs, left out",
    "number_as_text": "a number or a label written as text",
    "decimal": "a decimal number, rounded to floating point",
    "json_as_text": "a list, or messages, written as JSON text",
    "messages_by_column": "messages given as a list of roles beside a list of contents",
    "consecutive_roles": "two messages in a row of one role",
    "several_messages": "a response goes on over several turns; of a chat only the assistant's are scored",
    "blank_message": "a prompt message has no text",
    "prompt_repeated": "a response starts with the prompt (removed from chat messages, left in plain text)",
    "duplicate_responses": "some responses of a ranking are the same",
    "all_scores_equal": "a ranking that prefers nothing",
    "contradicting_scores": "the rejected response has the higher score",
    "pair_of_ranking": "a ranking under a rule that makes pairs: which responses became them",
    "tied_pair": "two responses of a ranking with equal scores: no pair made of them",
    "same_text_pair": "two responses of a ranking with equal text: no pair made of them",
    "tied_best": "several responses share the top score; the first one is taken",
    "flipped": "chosen and rejected exchanged, or a label inverted, by a method",
    "tools_not_shown": "the chat template renders the same without the tools",
    "turn_not_shown": "the chat template shows no word of a turn of the prompt",
    "unread_argument": "the chat template does not read an argument of the record",
    "decoded_arguments": "a call's arguments as JSON text, which the chat template wants as an object: decoded",
    "encoded_arguments": "a call's arguments as an object, which the chat template wants as JSON text: encoded",
    "thought_in_text": "the chat template reads no thought apart: put before the text, in data.encoding.thought_marks",
    "thought_from_text": "a thought in a message's text, given to the chat template apart, as it reads it",
    "thought_not_shown": "the chat template leaves the thought of a response's last turn out",
    "answered_prompt": "the prompt ends in an assistant's turn, and the response is another one: data.encoding.prefill "
    "would let it go on there",
    "unread_answer": "the assistant's turns at the end of a prompt to sample from, left out",
    "prefilled": "the response goes on in the assistant's turn that the prompt ends in",
    "header_moved": "the chat template adds no header when asked to: moved from the response to the prompt",
    "header_cut": "the header that asks for a response, as one that opens a thought, goes on where the response does "
    "not: the prompt ends before",
    "cut_after_turn": "the chat template goes on after the end of the last turn, as with the next header: cut",
    "added_text": "the chat template puts words before the response's own, as an empty thought: scored",
    "text_ends_turn": "words end a turn and no token does: EOS follows them",
    "changed_turn": "an assistant's turn changes once the conversation goes on, as thoughts do: read, not scored",
    "trimmed_prompt": "the prompt was cut from the left",
    "trimmed_response": "a response was cut from the right and has no EOS",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing found in one record: a key of REASONS, the place as "file:line", and the name of the field there."""

    reason: str
    source: str
    field: str = ""
    detail: str = ""

    def __post_init__(self):
        if self.reason not in REASONS:
            raise ValueError(f"unknown reason {self.reason!r}; add it to REASONS")
        # Details quote what was found; manifests and terminals must bear it, whatever that is.
        plain = "".join(c if c.isprintable() else repr(c)[1:-1] for c in self.detail[:_DETAIL])
        object.__setattr__(self, "detail", plain + "..." * (len(self.detail) > _DETAIL))

    def __str__(self) -> str:
        where = f"{self.source}:{self.field}" if self.field else self.source
        return f"{where}: {self.detail}" if self.detail else where


class Rejection(Finding):
    """A finding for which the record is dropped."""


class Notice(Finding):
    """A finding that is counted only; the record is kept."""


class Refused(Exception):
    """Ends the work on a row or a record from any depth. `args` are (reason, field, detail) of the Rejection."""

    def __init__(self, reason: str, field: str = "", detail: str = ""):
        super().__init__(reason, field, detail)

    def at(self, source: str) -> Rejection:
        """The finding, given the place."""
        reason, field, detail = self.args
        return Rejection(reason, source, field, detail)


@dataclasses.dataclass
class Stage:
    """Counts of one stage.

    read      records that came in
    kept      records that were not dropped (a record may become several outputs, as a ranking becomes pairs)
    outputs   records that went out
    dropped   reason -> records dropped for it; a record with several rejections is charged to the first one, so these
              numbers sum to read - kept
    found     reason -> how often it was found, in kept and dropped records alike, so overlaps count for every reason
    examples  reason -> the first few findings, as text
    """

    read: int = 0
    kept: int = 0
    outputs: int = 0
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    found: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Stage":
        """The stage that `as_dict` said."""
        return cls(**{**values, **{name: collections.Counter(values[name]) for name in ("dropped", "found")}})

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON manifest."""
        return {**vars(self), "dropped": dict(self.dropped), "found": dict(self.found)}

    def add(self, findings: list[Finding], outputs: int) -> None:
        """Book one incoming record."""
        rejection = next((finding for finding in findings if isinstance(finding, Rejection)), None)
        if (rejection is None) != (outputs > 0):
            raise AssertionError(f"a record must go out or be rejected with a reason: {findings}, {outputs} outputs")
        self.read += 1
        self.outputs += outputs
        if rejection is None:
            self.kept += 1
        else:
            self.dropped[rejection.reason] += 1
        for finding in findings:
            self.found[finding.reason] += 1
            shown = self.examples.setdefault(finding.reason, [])
            repeats = finding.detail and shown and shown[-1].endswith(finding.detail)
            if len(shown) < EXAMPLES and not repeats:
                shown.append(str(finding))

    def __add__(self, other: "Stage") -> "Stage":
        return Stage(
            read=self.read + other.read,
            kept=self.kept + other.kept,
            outputs=self.outputs + other.outputs,
            dropped=self.dropped + other.dropped,
            found=self.found + other.found,
            examples={
                reason: (self.examples.get(reason, []) + other.examples.get(reason, []))[:EXAMPLES]
                for reason in (*self.examples, *other.examples)
            },
        )


@dataclasses.dataclass
class Account:
    """The stages records went through, by name and in order. `a + b` adds stages of one name up; str() is a table."""

    stages: dict[str, Stage] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Account":
        """The account that `as_dict` said."""
        return cls({name: Stage.of(stage) for name, stage in values.items()})

    def __getitem__(self, stage: str) -> Stage:
        return self.stages[stage]

    def __add__(self, other: "Account") -> "Account":
        names = [*self.stages, *(name for name in other.stages if name not in self.stages)]
        return Account({name: self.stages.get(name, Stage()) + other.stages.get(name, Stage()) for name in names})

    def main_loss(self) -> str:
        """What dropped most records and where first, to go on a line that says so; empty where nothing did."""
        dropped = sum((stage.dropped for stage in self.stages.values()), collections.Counter[str]())
        for reason, count in dropped.most_common(1):
            where = next(stage.examples[reason][0] for stage in self.stages.values() if reason in stage.examples)
            return f"; {count} were dropped ({REASONS[reason]}), first {where}"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON manifest."""
        return {name: stage.as_dict() for name, stage in self.stages.items()}

    def __str__(self) -> str:
        return "\n\n".join(_table(name, stage) for name, stage in self.stages.items())


def _table(name: str, stage: Stage) -> str:
    produced = f", made {stage.outputs}" if stage.outputs != stage.kept else ""
    lines = [f"{name}: {stage.read} in, kept {stage.kept}, dropped {stage.read - stage.kept}{produced}"]
    if not stage.found:
        return lines[0]
    width = max(map(len, stage.found))
    lines.append(f"  {'reason':<{width}} {'found':>7} {'dropped':>7}")
    order = sorted(stage.found, key=lambda reason: (-stage.dropped[reason], -stage.found[reason], reason))
    for reason in order:
        dropped = stage.dropped[reason] or "-"
        lines.append(f"  {reason:<{width}} {stage.found[reason]:>7} {dropped:>7}  {REASONS[reason]}")
        lines.extend(f"  {'':<{width}} {'':>15}    {example}" for example in stage.examples[reason])
    return "\n".join(lines)


def flow(
    account: Account, stage: str, inputs: Iterable[In], step: Callable[[In], Iterable[Out | Finding]]
) -> Iterator[Out]:
    """Runs `step` on every input as it comes: what it yields is either an output or a finding. Nothing can go missing
    uncounted, and nothing is kept.

    Args:
        account: gets the stage at once, and its counts as outputs are taken: read it after the last one.
    Raises:
        AssertionError: a step yields neither an output nor a Rejection, or both.
    """
    counts = account.stages[stage] = Stage()

    def outputs() -> Iterator[Out]:
        for item in inputs:
            findings, results = [], []
            for result in step(item):
                (findings if isinstance(result, Finding) else results).append(result)
            counts.add(findings, len(results))
            yield from results

    return outputs()


def collect(
    stage: str, inputs: Iterable[In], step: Callable[[In], Iterable[Out | Finding]]
) -> tuple[list[Out], Account]:
    """All that `flow` lets through, in order, and an account with one stage; raises as that."""
    account = Account()
    return list(flow(account, stage, inputs, step)), account
