"""Records -> token trees: where the prompt ends, where a response ends, and what happens to one that is too long.

The boundary is fixed in token space. The prompt is tokenised once and serves all K responses. A response is tokenised
alone, as the text that goes on from the prompt (through a chat template: what the template renders after the prompt);
prompt and response are never tokenised together and cut apart again, because tokens may cross the boundary. Of a chat
response of several turns only the assistant's are scored.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from prefjax.data.records import Message, Record, Text
from prefjax.data.report import Finding, Notice, Rejection, Report, collect
from prefjax.data.spans import token_marks
from prefjax.data.tokenizers import TemplateError, Tokenizer
from prefjax.data.trees import TokenTree

TRUNCATIONS = ("drop", "trim_prompt_left", "trim_responses", "trim_both")
SPECIAL_TEXTS = ("reject", "parse")


@dataclasses.dataclass(frozen=True)
class EncodingPolicy:
    """Length limits in tokens, BOS and EOS included, and what happens to a record that exceeds them.

    max_length           of the prompt with the longest response (each is a sequence of its own to the model)
    max_prompt_length    of the prompt
    max_response_length  of each response, the auxiliary response too
    truncation
        "drop"              the record is dropped
        "trim_prompt_left"  the prompt loses tokens after BOS until it keeps its own bound, and max_length with the
                            longest response; responses too long drop the record
        "trim_responses"    each response loses its end, and so its EOS, beyond its own bound, and beyond max_length
                            with the prompt; prompts too long drop the record
        "trim_both"         responses are trimmed to max_response_length, then the prompt to what they leave
    special_text
        "reject"            a record whose text spells a special token ("</s>") is dropped
        "parse"             the token is taken, as plain text that has been through a chat template wants

    Nothing is trimmed away entirely: a record is dropped where a prompt would lose everything but BOS and the header
    of the assistant's turn.
    """

    max_length: int | None = None
    max_prompt_length: int | None = None
    max_response_length: int | None = None
    truncation: str = "drop"
    special_text: str = "reject"

    def __post_init__(self):
        if self.truncation not in TRUNCATIONS:
            raise ValueError(f"truncation must be one of {TRUNCATIONS}, got {self.truncation!r}")
        if self.special_text not in SPECIAL_TEXTS:
            raise ValueError(f"special_text must be one of {SPECIAL_TEXTS}, got {self.special_text!r}")
        for name in ("max_length", "max_prompt_length", "max_response_length"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"{name} must be at least 1 token, got {limit}")
        needs = {
            "drop": (),
            "trim_prompt_left": ("max_prompt_length", "max_length"),
            "trim_responses": ("max_response_length", "max_length"),
            # Without a bound of their own, long responses would push the whole prompt out of max_length.
            "trim_both": ("max_response_length",),
        }[self.truncation]
        if needs and all(getattr(self, name) is None for name in needs):
            raise ValueError(f"truncation={self.truncation!r} needs {' or '.join(needs)}")
        if self.truncation == "trim_both" and self.max_prompt_length is None and self.max_length is None:
            raise ValueError("truncation='trim_both' needs max_prompt_length or max_length, to trim prompts to")


def encode(record: Record, tokenizer: Tokenizer, policy: EncodingPolicy = EncodingPolicy()) -> TokenTree | Rejection:
    """One record as a token tree (baseline None, example_id -1), or why it cannot be one.

    Raises:
        ValueError: the record is a chat and the tokenizer has no chat template.
    """
    results = list(_encode(record, tokenizer, policy))
    return next(result for result in results if not isinstance(result, Notice))


def encode_all(
    records: Iterable[Record], tokenizer: Tokenizer, policy: EncodingPolicy = EncodingPolicy(), *, progress: bool = True
) -> tuple[list[TokenTree], Report]:
    """All records as token trees, numbered by example_id = 0, 1, ... in order, and a report with the stage "encode".

    Trees may hold different numbers of responses. Raises as `encode`.
    """
    # tqdm's `disable=None` shows the bar on a terminal only.
    bar = tqdm(records, desc="encode", unit=" records", disable=None if progress else True)
    trees, report = collect("encode", bar, lambda record: _encode(record, tokenizer, policy))
    return [dataclasses.replace(tree, example_id=row) for row, tree in enumerate(trees)], report


def encode_prompt(prompt: Text, tokenizer: Tokenizer) -> list[int]:
    """Ids of a prompt up to where the response begins, with exactly one BOS in front if the tokenizer has one.

    A chat ends with the header of the assistant's turn. A BOS that the template renders is not doubled.
    """
    return _begin(prompt if isinstance(prompt, str) else tokenizer.render(prompt, generate=True), tokenizer)


def decode_response(prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer, *, chat: bool) -> str:
    """The text of a response that was sampled after a prompt, special tokens left out.

    Decoded as what the two texts differ by, because some tokenizers drop the space before a first word. Of a chat's
    response white space at both ends is dropped too: it belongs to the template.
    """
    text = lambda ids: tokenizer.decode([i for i in map(int, ids) if i not in tokenizer.special_ids])
    whole, before = text([*prompt, *response]), text(prompt)
    after = whole[len(before) :] if whole.startswith(before) else text(response)
    return after.strip() if chat else after


def end_id(tokenizer: Tokenizer, *, chat: bool) -> int:
    """The id that ends a response, where sampling stops: EOS, or the end of turn of the chat template."""
    if not chat:
        return tokenizer.eos_id
    question, answer = (Message("user", "a"),), (Message("assistant", "b"),)
    whole = tokenizer.render(question + answer, generate=False)
    return _until_end(tokenizer.encode(whole, continues=True), tokenizer)[-1]


def _begin(text: str, tokenizer: Tokenizer) -> list[int]:
    ids = tokenizer.encode(text)
    if tokenizer.bos_id is None:
        return ids
    start = next((at for at, token in enumerate(ids) if token != tokenizer.bos_id), len(ids))
    return [tokenizer.bos_id, *ids[start:]]


def _until_end(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Ids that end with EOS or an end of turn.

    A chat template goes on after the end of turn with the white space that separates it from the next turn; generation
    stops at the end of turn, so that is where a response ends. Where a template marks no end, EOS is the end.
    """
    end = len(ids)
    while end and not tokenizer.decode(ids[end - 1 : end]).strip():
        end -= 1
    return ids[:end] if end and ids[end - 1] in tokenizer.special_ids else [*ids, tokenizer.eos_id]


def _encode(record: Record, tokenizer: Tokenizer, policy: EncodingPolicy) -> Iterator[TokenTree | Finding]:
    texts = {record.field(k): response for k, response in enumerate(record.responses)}
    if record.auxiliary is not None:
        texts["auxiliary"] = record.auxiliary

    for field, text in {"prompt": record.prompt, **texts}.items():
        contents = [text] if isinstance(text, str) else [part for turn in text for part in (turn.content, turn.fields)]
        contents += [record.tools] if field == "prompt" else []
        special = next(filter(None, map(tokenizer.special_in, contents)), None)
        if special is not None:
            reject = policy.special_text == "reject"
            yield (Rejection if reject else Notice)("special_text", record.source, field, special)
            if reject:
                return

    if record.is_chat:
        try:
            before = tokenizer.render(record.prompt, generate=True, tools=record.tools)
            branches = {field: _turns(record, turns, before, tokenizer) for field, turns in texts.items()}
            if record.tools and before == tokenizer.render(record.prompt, generate=True):
                yield Notice("tools_not_shown", record.source, "tools")
        except TemplateError as error:
            yield Rejection("template_error", record.source, "prompt", str(error))
            return
        except _Unstable:
            detail = "give a chat_template that only appends, or chat_template='plain'"
            yield Rejection("unstable_template", record.source, "prompt", detail)
            return
    else:
        before = record.prompt
        encoded = {field: tokenizer.encode(text, continues=True) for field, text in texts.items()}
        branches = {field: _until_end(ids, tokenizer) for field, ids in encoded.items()}
    prompt = _begin(before, tokenizer)

    for field, ids in {"prompt": prompt, **branches}.items():
        if tokenizer.special_ids.issuperset(token for token in ids if token >= 0):
            reason = "empty_prompt" if field == "prompt" else "empty_response"
            yield Rejection(reason, record.source, field, "nothing but special tokens once encoded")
            return
    try:
        kept_prompt, kept = _fit(prompt, branches, lambda: _least_prompt(record.prompt, tokenizer), tokenizer, policy)
    except _TooLong as too_long:
        reason, field, detail = too_long.args
        yield Rejection(reason, record.source, field, detail)
        return
    if len(kept_prompt) < len(prompt):
        yield Notice("trimmed_prompt", record.source, "prompt", f"{len(prompt)} to {len(kept_prompt)} tokens")
    for field, ids in kept.items():
        if len(ids) < len(branches[field]):
            yield Notice("trimmed_response", record.source, field, f"{len(branches[field])} to {len(ids)} tokens")

    arrays = {field: np.asarray(ids, np.int32) for field, ids in kept.items()}
    auxiliary = arrays.pop("auxiliary", None)
    responses = tuple(arrays.values())
    if len(responses) > 1 and all(np.array_equal(responses[0], response) for response in responses[1:]):
        yield Rejection("identical_responses", record.source, record.field(1), "the same token ids once encoded")
        return
    marks = {}
    if record.spans is not None:
        try:
            marks = _marks(record, before, arrays, tokenizer)
        except _Unlocated as unlocated:
            yield Rejection("unlocated_span", record.source, *unlocated.args)
            return
    yield TokenTree(
        prompt=np.asarray(kept_prompt, np.int32),
        responses=responses,
        targets=np.asarray(record.targets, np.float32),
        auxiliary=auxiliary,
        weight=record.weight,
        margin=record.margin,
        target_probability=record.target_probability,
        **marks,
    )


class _Unlocated(Exception):
    """A response with spans that is not where the chat template put it. `args` are (field, detail) of a Rejection."""


def _marks(
    record: Record, before: str, kept: Mapping[str, np.ndarray], tokenizer: Tokenizer
) -> dict[str, tuple[np.ndarray, ...]]:
    """token_weights and token_segments of every response: those of its spans. `before`: the rendered prompt."""
    found = []
    for k, (spans, response) in enumerate(zip(record.spans, record.responses, strict=True)):
        field = record.field(k)
        text = rendered = response if isinstance(response, str) else response[0].content
        if not isinstance(response, str):
            whole = tokenizer.render((*record.prompt, response[0]), generate=False, tools=record.tools)
            rendered = whole.removeprefix(before)
        origin = rendered.find(text)
        if origin < 0 and spans is not None:
            raise _Unlocated(field, "the template changes its text: give chat_template='plain', or text without spans")
        offsets = [(a - origin, b - origin) for a, b in tokenizer.offsets(rendered, continues=True)]
        found.append(token_marks(spans, offsets, len(text), len(kept[field])))
    weights, segments = zip(*found, strict=True)
    return {"token_weights": weights, "token_segments": segments}


class _Unstable(Exception):
    """The template does not only append: what it renders of a conversation changes as that goes on."""


def _turns(record: Record, turns: tuple[Message, ...], before: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a chat response up to the end of the assistant's last turn; what is not the assistant's is there as ~id.

    Where a turn of the assistant begins and ends is read off the conversation rendered up to there, with and without
    the header after which it speaks, and every piece is tokenised alone, as when the model spoke turn by turn.
    """
    render = functools.partial(tokenizer.render, tools=record.tools)
    last = max(at for at, turn in enumerate(turns) if turn.role == "assistant")
    turns = turns[: last + 1]
    text, ids = before, []
    for at, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        so_far = (*record.prompt, *turns[:at])
        start = render(so_far, generate=True) if at else before
        end = render((*so_far, turn), generate=False)
        if not (start.startswith(text) and end.startswith(start)):
            raise _Unstable
        ids += [~token for token in tokenizer.encode(start[len(text) :], continues=True)]
        own = tokenizer.encode(end[len(start) :], continues=True)
        spoken = _until_end(own, tokenizer)
        if at < last:
            # What follows the end of a turn separates it from the next; an end that the template lacks is not made up.
            spoken = spoken[: len(own)]
            ids += [*spoken, *(~token for token in own[len(spoken) :])]
        else:
            ids += spoken
        text = end
    return ids


class _TooLong(Exception):
    """A limit that the policy does not trim to. `args` are (reason, field, detail) of a Rejection."""


def _fit(
    prompt: list[int],
    branches: Mapping[str, list[int]],
    least_prompt: Callable[[], int],
    tokenizer: Tokenizer,
    policy: EncodingPolicy,
) -> tuple[list[int], dict[str, list[int]]]:
    """Prompt and branches within the limits, trimmed as the policy says."""
    trims_prompt = policy.truncation in ("trim_prompt_left", "trim_both")
    trims_responses = policy.truncation in ("trim_responses", "trim_both")
    max_length, max_prompt, max_response = (
        math.inf if limit is None else limit
        for limit in (policy.max_length, policy.max_prompt_length, policy.max_response_length)
    )
    if not trims_prompt and len(prompt) > max_prompt:
        raise _TooLong("prompt_too_long", "prompt", f"{len(prompt)} tokens")

    if trims_responses:
        bound = max_response if trims_prompt else min(max_response, max_length - len(prompt))
        if bound < 1:
            raise _TooLong("sequence_too_long", "prompt", f"{len(prompt)} tokens leave no room for a response")
        branches = {field: ids[: min(len(ids), bound)] for field, ids in branches.items()}
    longest_field = max(branches, key=lambda field: len(branches[field]))
    longest = len(branches[longest_field])
    if longest > max_response:
        raise _TooLong("response_too_long", longest_field, f"{longest} tokens")

    bound = min(max_prompt, max_length - longest)
    if trims_prompt and len(prompt) > bound:
        if bound < least_prompt():
            reason = "prompt_too_long" if max_prompt < max_length - longest else "sequence_too_long"
            raise _TooLong(reason, "prompt", f"{bound} of its {len(prompt)} tokens would hold no text")
        front = prompt[: prompt[0] == tokenizer.bos_id]
        prompt = [*front, *prompt[len(prompt) - (bound - len(front)) :]]
    if len(prompt) + longest > max_length:
        raise _TooLong("sequence_too_long", longest_field, f"{len(prompt)} + {longest} tokens")
    return prompt, dict(branches)


def _least_prompt(prompt: Text, tokenizer: Tokenizer) -> int:
    """Tokens a trimmed prompt must keep to hold any text: BOS, the header of the assistant's turn, and one more."""
    header = ""
    if not isinstance(prompt, str):
        text = tokenizer.render(prompt, generate=True)
        header = text.removeprefix(tokenizer.render(prompt, generate=False))
        header = "" if header == text else header
    return (tokenizer.bos_id is not None) + len(tokenizer.encode(header, continues=True)) + 1
