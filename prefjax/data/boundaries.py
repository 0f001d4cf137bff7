"""Where the prompt ends: a row's texts in one form, and the prompt of a pair that gives whole conversations only."""

from collections.abc import Mapping, Sequence

from prefjax.data.account import Refused
from prefjax.data.records import Message, Text


def split_messages(chosen: Sequence[Message], rejected: Sequence[Message]) -> int | None:
    """Messages of the implicit prompt of two chats, at least 1, or None.

    The longest common prefix, cut back until both chats go on with the assistant's turn. Cutting back matters when the
    chats are equal, when one is a prefix of the other, or when they part at a user's turn.
    """
    common = common_prefix(chosen, rejected)
    for length in range(min(common, len(chosen) - 1, len(rejected) - 1), 0, -1):
        if chosen[length].role == rejected[length].role == "assistant":
            return length
    return None


def split_text(chosen: str, rejected: str, boundaries: Sequence[str]) -> int | None:
    """Characters of the implicit prompt of two conversations, or None: the longest common prefix, cut back to the end
    of the last boundary inside it. The characters that the responses happen to share stay in the responses."""
    common = chosen[: common_prefix(chosen, rejected)]
    ends = [at + len(boundary) for boundary in boundaries if (at := common.rfind(boundary)) >= 0]
    return max(ends, default=None)


def common_prefix(a: Sequence, b: Sequence) -> int:
    """Length of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:  # a and b agree up to low, and not up to high + 1
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def join(
    prompt: Text | None, texts: Mapping[str, Text], boundaries: Sequence[str]
) -> tuple[Text, dict[str, Text], list[str]]:
    """One form for a row: all plain text or all chat, the prompt alone, and responses that begin after it.

    Args:
        prompt: None when it is implicit.
        texts: the responses by field name; `chosen` and `rejected` at least, when the prompt is implicit.
        boundaries: see `split_text`.
    Returns:
        prompt, responses by field name, and the fields that repeated an explicit prompt (removed in a chat, where
        repeating can mean nothing else; kept in plain text, where it may be meant).
    Raises:
        Refused: the prompt is implicit and cannot be found, or a chat response is not the assistant's.
    """
    if all(isinstance(text, str) for text in ("" if prompt is None else prompt, *texts.values())):
        if prompt is None:
            prompt = _implicit_prompt(texts, boundaries)
            return prompt, {field: text.removeprefix(prompt) for field, text in texts.items()}, []
        return prompt, dict(texts), [field for field, text in texts.items() if prompt and text.startswith(prompt)]
    implicit = prompt is None
    if implicit:
        prompt = _implicit_prompt(texts, boundaries)
    elif isinstance(prompt, str):
        prompt = (Message("user", prompt),)
    responses, repeated = {}, []
    for field, text in texts.items():
        turns = (Message("assistant", text),) if isinstance(text, str) else text
        if prompt and turns[: len(prompt)] == prompt:
            turns = turns[len(prompt) :]
            repeated.append(field)
        if turns and turns[0].role != "assistant":
            detail = f"begins with {turns[0].role!r}; give what follows the prompt, or leave out the prompt column"
            raise Refused("bad_role", field, detail)
        responses[field] = turns
    return prompt, responses, [] if implicit else repeated


def _implicit_prompt(texts: Mapping[str, Text], boundaries: Sequence[str]) -> Text:
    if "chosen" not in texts:
        raise Refused("missing_field", "prompt", "only a pair may leave it out")
    chosen, rejected = texts["chosen"], texts["rejected"]
    chats = [field for field, text in texts.items() if not isinstance(text, str)]
    if chats and not {"chosen", "rejected"} <= set(chats):
        raise Refused("wrong_type", chats[0], "without a prompt column, the texts must be all text or all messages")
    if isinstance(chosen, str):
        length = split_text(chosen, rejected, boundaries)
        detail = f"add a prompt column, or declare the text before a response; none of {list(boundaries)} is common"
    else:
        length = split_messages(chosen, rejected)
        detail = "the two chats share no turns that an assistant's turn follows in both"
    if length is None:
        raise Refused("no_boundary", "chosen", detail)
    return chosen[:length]
