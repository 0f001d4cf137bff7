"""Records -> token trees: where the prompt ends, where a response ends, and what happens to one that is too long.

The boundary is fixed in token space. The prompt is tokenised once and serves all K responses. A response is tokenised
alone, as the text that goes on from the prompt (through a chat template: what the template renders after the prompt);
prompt and response are never tokenised together and cut apart again, because tokens may cross the boundary. Of a chat
response of several turns only the assistant's are scored. A step, which others follow, has neither EOS nor end of turn.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from prefjax.data.account import Account, Finding, Notice, Refused, Rejection, collect
from prefjax.data.chats import ChatRules, EncodedChat, encode_chat, open_prompt
from prefjax.data.progress import progress_bar
from prefjax.data.records import Message, Record, Text
from prefjax.data.spans import token_labels
from prefjax.data.tokenizers import Tokenizer
from prefjax.options import check_ranges, option
from prefjax.rows.trees import TokenTree

NOTHING: Mapping[str, str] = {}  # is given to a chat template besides the turns
TRUNCATIONS = ("drop", "trim_prompt_left", "trim_responses", "trim_both")


@dataclasses.dataclass(frozen=True)
class EncodingPolicy:
    """Length limits in tokens, BOS and EOS included, and what happens to a record that exceeds them.

    Nothing is trimmed away entirely: a record is dropped where a prompt would lose everything but BOS and the header
    of the assistant's turn.
    """

    max_length: int | None = option(
        None,
        "of the prompt with the longest response (each is a sequence of its own to the model); None: no limit",
        at_least=1,
    )
    max_prompt_length: int | None = option(None, "of the prompt; None: no limit", at_least=1)
    max_response_length: int | None = option(
        None, "of each response, the auxiliary response too; None: no limit", at_least=1
    )
    truncation: str = option(
        "drop",
        'of what is too long. "drop": the record is dropped. "trim_prompt_left": the prompt loses tokens after BOS '
        "until it keeps its own bound, and max_length with the longest response; responses too long drop the record. "
        '"trim_responses": each response loses its end, and so its EOS, beyond its own bound, and beyond max_length '
        'with the prompt; prompts too long drop the record. "trim_both": responses are trimmed to max_response_length, '
        "then the prompt to what they leave",
        choices=TRUNCATIONS,
    )
    special_text: str = option(
        "reject",
        'of a record whose text spells a special token ("</s>"). "reject": it is dropped. "parse": the token is taken, '
        "as plain text that has been through a chat template wants",
        choices=("reject", "parse"),
    )
    thoughts: str = option(
        "scored",
        'of the assistant\'s turns, told apart (`reasoning_content`) or in the text. "unscored": the model reads them, '
        "and what it says after them alone is scored",
        choices=("scored", "unscored"),
    )
    thought_marks: tuple[str, ...] = option(
        ("<think>", "</think>"),
        "texts before and after a thought in a turn's text; one told apart is put between them where the chat template "
        "reads none",
    )
    prefill: bool = option(
        False,
        "whether a response goes on in the turn of the assistant's that a prompt ends in; else it is another turn, and "
        "counted",
    )

    def __post_init__(self):
        check_ranges(self, "data.encoding")
        needs = {
            "drop": (),
            "trim_prompt_left": ("max_prompt_length", "max_length"),
            "trim_responses": ("max_response_length", "max_length"),
            # Without a bound of their own, long responses would push the whole prompt out of max_length.
            "trim_both": ("max_response_length",),
        }[self.truncation]
        if needs and all(getattr(self, name) is None for name in needs):
            raise ValueError(f"truncation={self.truncation!r} needs {' or '.join(needs)}")
        if isinstance(self.thought_marks, str) or len(self.thought_marks) != 2 or not all(self.thought_marks):
            raise ValueError(
                f"data.encoding.thought_marks must be two texts, as ('<think>', '</think>'), got {self.thought_marks!r}"
            )
        if self.truncation == "trim_both" and self.max_prompt_length is None and self.max_length is None:
            raise ValueError("truncation='trim_both' needs max_prompt_length or max_length, to trim prompts to")

    def without_limits(self) -> "EncodingPolicy":
        """The policy by which nothing is too long, and no text rejected for a token that it spells."""
        no_limits = dict(max_length=None, max_prompt_length=None, max_response_length=None, truncation="drop")
        return dataclasses.replace(self, **no_limits, special_text="parse")

    @property
    def of_chats(self) -> ChatRules:
        return ChatRules(self.thoughts == "unscored", self.thought_marks, self.prefill)


def encode(record: Record, tokenizer: Tokenizer, policy: EncodingPolicy = EncodingPolicy()) -> TokenTree | Rejection:
    """One record as a token tree (baseline None, example_id -1), or why it cannot be one.

    Raises:
        ValueError: the record is a chat and the tokenizer has no chat template.
    """
    results = list(_encode(record, tokenizer, policy))
    return next(result for result in results if not isinstance(result, Notice))


def encode_all(
    records: Iterable[Record], tokenizer: Tokenizer, policy: EncodingPolicy = EncodingPolicy(), *, progress: bool = True
) -> tuple[list[TokenTree], Account]:
    """All records as token trees, numbered by example_id = 0, 1, ... in order, and an account with the stage "encode".

    Trees may hold different numbers of responses. Raises as `encode`.
    """
    bar = progress_bar(records, desc="encode", unit=" records", shown=progress)
    trees, account = collect("encode", encoded(bar, tokenizer, policy), lambda outcome: outcome)
    return [dataclasses.replace(tree, example_id=row) for row, tree in enumerate(trees)], account


def encoded(
    records: Iterable[Record], tokenizer: Tokenizer, policy: EncodingPolicy
) -> Iterator[tuple[TokenTree | Finding, ...]]:
    """What becomes of each record: the tree of `encode`, or why not, and what is to be counted. Raises as `encode`."""
    for record in records:
        yield tuple(_encode(record, tokenizer, policy))


def encode_prompt(
    prompt: Text, tokenizer: Tokenizer, policy: EncodingPolicy = EncodingPolicy(), *, given: Mapping[str, str] = NOTHING
) -> list[int]:
    """Ids of a prompt up to where the response begins, with exactly one BOS in front if the tokenizer has one.

    A chat ends with the header of the assistant's turn. A BOS that the template renders is not doubled.

    Args:
        given: `Record.given` of a chat.
    """
    return _begin(_opened(prompt, tokenizer, policy, given)[0], tokenizer)


def response_ending(
    prompt: Text, tokenizer: Tokenizer, policy: EncodingPolicy = EncodingPolicy(), *, given: Mapping[str, str] = NOTHING
) -> str:
    """What the chat template puts after a response's own text besides special tokens, which decoding leaves out."""
    ids = tokenizer.encode(_opened(prompt, tokenizer, policy, given)[1], continues=True)
    return tokenizer.decode([i for i in ids if i not in tokenizer.special_ids]).strip()


def decode_response(
    prompt: Sequence[int],
    response: Sequence[int],
    tokenizer: Tokenizer,
    *,
    chat: bool,
    ending: str = "",
    prefill: bool = False,
) -> str:
    """The text of a response that was sampled after a prompt, special tokens left out.

    Decoded as what the two texts differ by, because some tokenizers drop the space before a first word. Of a chat's
    response white space at both ends, and `ending`, which the template puts there, is dropped too; where the response
    goes on in a turn that the prompt began (`prefill`), at its end alone.
    """
    text = lambda ids: tokenizer.decode([i for i in map(int, ids) if i not in tokenizer.special_ids])
    whole, before = text([*prompt, *response]), text(prompt)
    after = whole[len(before) :] if whole.startswith(before) else text(response)
    if not chat:
        return after
    after = (after if prefill else after.lstrip()).rstrip()
    return after.removesuffix(ending).rstrip()


def beyond_vocabulary(ids: Iterable[int], tokenizer: Tokenizer) -> str:
    """The first token that the model has no embedding for, in words; empty where there is none. Not scored is ~id."""
    ids, size = list(ids), tokenizer.vocab_size
    if not ids or max(max(ids), ~min(ids)) < size:
        return ""
    missing = next(i for i in (~i if i < 0 else i for i in ids) if i >= size)
    return f"{tokenizer.decode([missing])} is id {missing} of {size}"


def end_id(
    prompt: Text, tokenizer: Tokenizer, policy: EncodingPolicy = EncodingPolicy(), *, given: Mapping[str, str] = NOTHING
) -> int:
    """The id that ends a response to this prompt: EOS, or the end of turn of the chat template."""
    ending = _opened(prompt, tokenizer, policy, given)[1]
    return tokenizer.encode(ending, continues=True)[-1] if tokenizer.ends_in(ending) else tokenizer.eos_id


def end_ids(trees: Iterable[TokenTree], tokenizer: Tokenizer) -> list[int]:
    """The ids that end responses of some trees, the commonest first; EOS where none was seen, all being cut off."""
    return ends_among(collections.Counter(int(ids[-1]) for tree in trees for ids in tree.responses), tokenizer)


def ends_among(last: collections.Counter[int], tokenizer: Tokenizer) -> list[int]:
    """`end_ids`, given how often each id is the last of a response."""
    ends = [i for i, _ in last.most_common() if i >= 0 and tokenizer.ends_in(tokenizer.decode([i]))]
    return ends or [tokenizer.eos_id]


def _opened(prompt: Text, tokenizer: Tokenizer, policy: EncodingPolicy, given: Mapping[str, str]) -> tuple[str, str]:
    return (prompt, "") if isinstance(prompt, str) else open_prompt(prompt, tokenizer, policy.of_chats, given)


def _begin(text: str, tokenizer: Tokenizer) -> list[int]:
    ids = tokenizer.encode(text)
    if tokenizer.bos_id is None:
        return ids
    start = next((at for at, token in enumerate(ids) if token != tokenizer.bos_id), len(ids))
    return [tokenizer.bos_id, *ids[start:]]


def _until_end(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Ids of plain text that end with EOS, unless white space alone follows a special token that the text spells."""
    end = len(ids)
    while end and not tokenizer.decode(ids[end - 1 : end]).strip():
        end -= 1
    return ids[:end] if end and ids[end - 1] in tokenizer.special_ids else [*ids, tokenizer.eos_id]


def _encode(record: Record, tokenizer: Tokenizer, policy: EncodingPolicy) -> Iterator[TokenTree | Finding]:
    try:
        yield from _encode_or_raise(record, tokenizer, policy)
    except Refused as refused:
        yield refused.at(record.source)


def _encode_or_raise(record: Record, tokenizer: Tokenizer, policy: EncodingPolicy) -> Iterator[TokenTree | Notice]:
    texts = {record.field(k): response for k, response in enumerate(record.responses)}
    if record.auxiliary is not None:
        texts["auxiliary"] = record.auxiliary
    yield from _special_texts(record, texts, tokenizer, policy)
    said, chat = texts, None
    if record.is_chat:
        chat = encode_chat(record, texts, tokenizer, policy.of_chats)
        before, branches, said = chat.prompt, chat.branches, chat.said
        yield from chat.notices
    else:
        before = record.prompt
        branches = {field: tokenizer.encode(text, continues=True) for field, text in texts.items()}
        steps = {record.field(k) for k in range(len(record.responses)) if not record.is_ended(k)}
        branches |= {field: _until_end(ids, tokenizer) for field, ids in branches.items() if field not in steps}
    prompt = _begin(before, tokenizer)
    for field, ids in {"prompt": prompt, **branches}.items():
        if tokenizer.special_ids.issuperset(token for token in ids if token >= 0):
            reason = "empty_prompt" if field == "prompt" else "empty_response"
            raise Refused(reason, field, "nothing but special tokens once encoded")
        if detail := beyond_vocabulary(ids, tokenizer):
            raise Refused("beyond_vocabulary", field, detail)

    kept_prompt, kept = _fit(prompt, branches, lambda: _least_prompt(chat, tokenizer), tokenizer, policy)
    if len(kept_prompt) < len(prompt):
        yield Notice("trimmed_prompt", record.source, "prompt", f"{len(prompt)} to {len(kept_prompt)} tokens")
    for field, ids in kept.items():
        if len(ids) < len(branches[field]):
            yield Notice("trimmed_response", record.source, field, f"{len(branches[field])} to {len(ids)} tokens")
        if all(token < 0 for token in ids):
            raise Refused("response_too_long", field, "what is left of it is read and not scored")

    arrays = {field: np.asarray(ids, np.int32) for field, ids in kept.items()}
    auxiliary = arrays.pop("auxiliary", None)
    responses = tuple(arrays.values())
    if len(responses) > 1 and all(np.array_equal(responses[0], response) for response in responses[1:]):
        raise Refused("identical_responses", record.field(1), "the same token ids once encoded")
    yield TokenTree(
        prompt=np.asarray(kept_prompt, np.int32),
        responses=responses,
        targets=np.asarray(record.targets, np.float32),
        auxiliary=auxiliary,
        weight=record.weight,
        margin=record.margin,
        target_probability=record.target_probability,
        **({} if record.spans is None else _token_labels(record, said, arrays, tokenizer)),
    )


def _special_texts(
    record: Record, texts: Mapping[str, Text], tokenizer: Tokenizer, policy: EncodingPolicy
) -> Iterator[Notice]:
    """Texts that spell a special token, where the policy lets them pass."""
    for field, text in {"prompt": record.prompt, **texts}.items():
        contents = [text] if isinstance(text, str) else _spelled(text, policy)
        contents += [record.tools] if field == "prompt" else []
        special = next(filter(None, map(tokenizer.special_in, contents)), None)
        if special is not None and policy.special_text == "reject":
            raise Refused("special_text", field, special)
        if special is not None:
            yield Notice("special_text", record.source, field, special)


def _spelled(chat: Sequence[Message], policy: EncodingPolicy) -> list[str]:
    """What messages say, but for the marks of the assistant's thoughts, which may be special tokens."""
    parts = []
    for turn in chat:
        content = turn.content
        for mark in policy.thought_marks if turn.role == "assistant" else ():
            content = content.replace(mark, "\n")
        parts += [content, turn.fields]
    return parts


def _token_labels(
    record: Record, said: Mapping[str, str], kept: Mapping[str, np.ndarray], tokenizer: Tokenizer
) -> dict[str, tuple[np.ndarray, ...]]:
    """token_weight and token_segment of every response: those of its spans. `said`: responses as rendered."""
    found = []
    for k, (spans, response) in enumerate(zip(record.spans, record.responses, strict=True)):
        field = record.field(k)
        text, rendered = response if isinstance(response, str) else response[0].content, said[field]
        origin = rendered.find(text)
        if origin < 0 and spans is not None:
            detail = "the template changes its text: give chat_template='plain', or text without spans"
            raise Refused("unlocated_span", field, detail)
        offsets = [(a - origin, b - origin) for a, b in tokenizer.offsets(rendered, continues=True)]
        found.append(token_labels(spans, offsets, len(text), len(kept[field])))
    weights, segments = zip(*found, strict=True)
    return {"token_weight": weights, "token_segment": segments}


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
        raise Refused("prompt_too_long", "prompt", f"{len(prompt)} tokens")

    if trims_responses:
        bound = max_response if trims_prompt else min(max_response, max_length - len(prompt))
        if bound < 1:
            raise Refused("sequence_too_long", "prompt", f"{len(prompt)} tokens leave no room for a response")
        branches = {field: ids[: min(len(ids), bound)] for field, ids in branches.items()}
    longest_field = max(branches, key=lambda field: len(branches[field]))
    longest = len(branches[longest_field])
    if longest > max_response:
        raise Refused("response_too_long", longest_field, f"{longest} tokens")

    bound = min(max_prompt, max_length - longest)
    if trims_prompt and len(prompt) > bound:
        if bound < least_prompt():
            reason = "prompt_too_long" if max_prompt < max_length - longest else "sequence_too_long"
            raise Refused(reason, "prompt", f"{bound} of its {len(prompt)} tokens would hold no text")
        front = prompt[: prompt[0] == tokenizer.bos_id]
        prompt = [*front, *prompt[len(prompt) - (bound - len(front)) :]]
    if len(prompt) + longest > max_length:
        raise Refused("sequence_too_long", longest_field, f"{len(prompt)} + {longest} tokens")
    return prompt, dict(branches)


def _least_prompt(chat: EncodedChat | None, tokenizer: Tokenizer) -> int:
    """Tokens a trimmed prompt must keep to hold any text: BOS, the header of the assistant's turn, and one more."""
    header = ""
    if chat is not None and chat.prompt.startswith(bare := chat.bare()):
        header = chat.prompt[len(bare) :]
    return (tokenizer.bos_id is not None) + len(tokenizer.encode(header, continues=True)) + 1
