"""One preference record: a prompt and K responses with targets, and what can be wrong with it."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from prefjax.data.account import Finding, Notice, Rejection
from prefjax.data.spans import Spans
from prefjax.options import LARGEST
from prefjax.requirements import PAIR_NUMBERS

KINDS = ("pair", "unpaired", "ranked", "demonstration")
TIES = ("drop", "keep")
THOUGHT = "reasoning_content"  # what was thought before the content was said
CALL_FIELDS = ("tool_calls", "name", "tool_call_id")
MESSAGE_FIELDS = (*CALL_FIELDS, THOUGHT)  # of a message, besides role and content


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a chat.

    fields  what else the template takes of it (`MESSAGE_FIELDS`), a JSON object as text; empty: nothing
    """

    role: str
    content: str
    fields: str = dataclasses.field(default="", repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The message as files hold it and chat templates take it."""
        return {"role": self.role, "content": self.content, **self.more}

    @property
    def more(self) -> dict[str, Any]:
        """`fields` by name."""
        return json.loads(self.fields) if self.fields else {}


Text = str | tuple[Message, ...]  # plain text, or a chat


@dataclasses.dataclass(frozen=True)
class Record:
    """One prompt with K responses, before tokenization. Prompt and responses are all plain text or all chats.

    prompt     the text, or the turns, before the first response token
    responses  K continuations; of a chat, the turns that follow, beginning with the assistant's
    targets    K numbers for `Responses.target`: (1, 0) for a pair (chosen first), 1/0 label, reward, or score
    kind       "pair" (K = 2), "unpaired" (K = 1 with a label or reward), "ranked" (K >= 1 with scores, higher is
               better), "demonstration" (K = 1 with no judgement: it can be imitated only)
    scores     K ratings as the file gives them, or None; transforms can make them the targets
    auxiliary  a regulariser target under the same prompt (SLiC's y_ref), or None
    weight     per-prompt loss weight
    tools      the tools a chat's template is given, a JSON list as text; empty: none
    chat_template_kwargs  what else a chat's template is given, a JSON object as text, before what the run gives; empty:
               nothing
    begun      the responses of a chat go on in the assistant's turn that the prompt ends in, as plain text always does
    ends       K times whether the response ends; None: all do. One that goes on, as a step of a solution, has no EOS
    root       what the tree that the record is of begins with, in whose place it is held out; None: the prompt itself
    source     "file:line", for messages; of a record of a tree "file:line:place"
    margin     what the pair's rewards must differ by (`Responses.margin`), or None
    target_probability  P(the first response is better) of a pair, in [0, 1], or None
    spans      K lists of weighted spans of the responses (`Spans`), or None: nothing is said of their parts
    columns    what data methods read of the row besides, by column name
    response_columns  the same, with one value for each response
    """

    prompt: Text
    responses: tuple[Text, ...]
    targets: tuple[float, ...]
    kind: str
    scores: tuple[float, ...] | None = None
    auxiliary: Text | None = None
    weight: float = 1.0
    tools: str = ""
    chat_template_kwargs: str = ""
    begun: bool = False
    ends: tuple[bool, ...] | None = None
    root: Text | None = None
    source: str = "memory"
    margin: float | None = None
    target_probability: float | None = None
    spans: tuple[Spans, ...] | None = None
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    response_columns: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {self.kind!r}")
        count = len(self.responses)
        if count < 1 or count != {"pair": 2, "ranked": count}.get(self.kind, 1):
            raise ValueError(f"a record of kind {self.kind!r} cannot have {count} responses")
        for name in ("targets", "scores", "spans", "ends"):
            if (values := getattr(self, name)) is not None and len(values) != count:
                raise ValueError(f"{count} responses need as many {name}: {values}")
        if self.begun and (self.is_chat is False or not self.prompt or self.prompt[-1].role != "assistant"):
            raise ValueError("only a chat whose prompt ends in the assistant's turn has begun it")
        for name, values in self.response_columns.items():
            if len(values) != count:
                raise ValueError(f"{count} responses need as many values of {name}: {len(values)}")
        if self.kind != "pair" and any(getattr(self, name) is not None for name in PAIR_NUMBERS):
            raise ValueError(f"only a pair has {' and '.join(PAIR_NUMBERS)}: a record of kind {self.kind!r} has none")
        numbers = (*self.targets, *(self.scores or ()), self.weight, 0.0 if self.margin is None else self.margin)
        if not all(-LARGEST <= number <= LARGEST for number in numbers):
            raise ValueError(f"{self.source}: {numbers} must be finite numbers of float32: leave such a record out")
        if self.target_probability is not None and not 0 <= self.target_probability <= 1:
            raise ValueError(f"target_probability must be in [0, 1], got {self.target_probability}")
        texts = (self.prompt, *self.responses, *(() if self.auxiliary is None else (self.auxiliary,)))
        if len({isinstance(text, str) for text in texts}) > 1:
            raise ValueError("prompt, responses and auxiliary must be all plain text or all chats")

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.prompt, str)

    @property
    def given(self) -> dict[str, str]:
        """What a chat's template is given besides the turns, as `Tokenizer.render` takes it."""
        return {"tools": self.tools, "chat_template_kwargs": self.chat_template_kwargs}

    def is_ended(self, response: int) -> bool:
        """Whether response k ends, which a step that others follow does not."""
        return self.ends is None or self.ends[response]

    def field(self, response: int) -> str:
        """The name the file gives response k."""
        if self.kind == "pair":
            return ("chosen", "rejected")[response]
        return f"completions[{response}]" if self.kind == "ranked" else "completion"

    def select(self, responses: tuple[int, ...], targets: tuple[float, ...], kind: str) -> "Record":
        """The record with some of its responses, in the order given; the source names them as file:line[k,...].

        What was said about the pair it may have been (`PAIR_NUMBERS`) does not hold for the selection.
        """
        pick = lambda own: None if own is None else tuple(own[k] for k in responses)
        return dataclasses.replace(
            self,
            **dict.fromkeys(PAIR_NUMBERS),
            **{name: pick(getattr(self, name)) for name in ("responses", "scores", "ends", "spans")},
            targets=targets,
            response_columns={name: pick(own) for name, own in self.response_columns.items()},
            kind=kind,
            source=f"{self.source}[{','.join(map(str, responses))}]",
        )


def plain_text(text: Text) -> str | list[dict[str, Any]]:
    """A text as JSON holds it: itself, or a list of messages."""
    return text if isinstance(text, str) else [turn.as_dict() for turn in text]


def is_blank(text: Text) -> bool:
    """Whether nothing but white space is there: no text, or no message with text or a call of a tool."""
    if isinstance(text, str):
        return not text.strip()
    return all(not message.content.strip() and '"tool_calls"' not in message.fields for message in text)


def inspect(record: Record, ties: str = "drop") -> Iterator[Finding]:
    """Everything wrong with, or notable about, what a record says: rejections first, in order of gravity.

    Every reason is given at most once. Whether a pair of equal scores is dropped or only counted is `ties`; identical
    responses are always dropped, as their loss has no gradient.
    """
    if ties not in TIES:
        raise ValueError(f"ties must be one of {TIES}, got {ties!r}")
    yield from _rejections(record, ties)
    if record.kind == "ranked":
        yield from _ranking_notices(record)
    if record.kind == "pair" and record.scores is not None and record.scores[0] < record.scores[1]:
        detail = f"chosen {record.scores[0]:g}, rejected {record.scores[1]:g}"
        yield Notice("contradicting_scores", record.source, "score_chosen", detail)
    if record.is_chat:
        yield from _chat_notices(record)


def _rejections(record: Record, ties: str) -> Iterator[Finding]:
    if is_blank(record.prompt):
        yield Rejection("empty_prompt", record.source, "prompt")
    fields = {record.field(k): response for k, response in enumerate(record.responses)}
    if record.auxiliary is not None:
        fields["auxiliary"] = record.auxiliary
    for field, response in fields.items():
        if is_blank(response) or (record.is_chat and any(is_blank((message,)) for message in response)):
            yield Rejection("empty_response", record.source, field)
            break
    if len(record.responses) > 1 and len(set(record.responses)) == 1:
        yield Rejection("identical_responses", record.source, record.field(1))
    if record.kind == "pair" and record.scores is not None and record.scores[0] == record.scores[1]:
        tie = Rejection if ties == "drop" else Notice
        yield tie("tie", record.source, "score_rejected", f"both {record.scores[0]:g}")


def _ranking_notices(record: Record) -> Iterator[Finding]:
    count, distinct = len(record.responses), len(set(record.responses))
    if 1 < distinct < count:
        yield Notice("duplicate_responses", record.source, "completions", f"{count}, {distinct} of them distinct")
    if count > 1 and len(set(record.scores or record.targets)) == 1:
        yield Notice("all_scores_equal", record.source, "scores")


def _chat_notices(record: Record) -> Iterator[Finding]:
    if any(a.role == b.role for a, b in itertools.pairwise(record.prompt)):
        yield Notice("consecutive_roles", record.source, "prompt")
    elif any(
        a.role == b.role
        for response in record.responses
        for a, b in itertools.pairwise(response if record.begun else record.prompt[-1:] + response)
    ):
        yield Notice("consecutive_roles", record.source, "responses")
    if any(len(response) > 1 for response in record.responses):
        yield Notice("several_messages", record.source, "responses")
    if not is_blank(record.prompt) and any(is_blank((message,)) for message in record.prompt):
        yield Notice("blank_message", record.source, "prompt")
