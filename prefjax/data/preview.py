"""Prepared trees to look at, as text: every token the model reads, which of them are scored, and what was cut off."""

import itertools
from typing import NamedTuple

import numpy as np

from prefjax.data.encoding import EncodingPolicy, encode
from prefjax.data.records import Record
from prefjax.data.tokenizers import Tokenizer
from prefjax.requirements import PAIR_NUMBERS
from prefjax.rows.trees import TokenTree, is_scored, token_ids

_BOLD, _SCORED, _SPECIAL, _RESET = "\x1b[1m", "\x1b[32m", "\x1b[7m", "\x1b[0m"
# Text is data: what would move the cursor or change colours is shown as the picture of the character.
VISIBLE: dict[int, int | str] = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
# What would turn the direction of the text around it is spelled.
VISIBLE |= {code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


class Span(NamedTuple):
    """A run of tokens of one kind, decoded."""

    text: str
    scored: bool
    special: bool


class Block(NamedTuple):
    """A prompt or a branch of a tree, or what is said of the tree as a whole, which has no text."""

    about: str
    text: list[Span]


def legend(*, colour: bool) -> str:
    """One line that explains the marks."""
    if colour:
        return f"{_SCORED}scored{_RESET}, read only, {_SPECIAL}special token{_RESET}"
    return "[[scored]], read only; special tokens are spelled out"


def tree_blocks(
    record: Record, tree: TokenTree, tokenizer: Tokenizer, policy: EncodingPolicy = EncodingPolicy()
) -> list[Block]:
    """A tree with the record it was made of: facts, its prompt and its branches, their numbers, and what was cut off.

    Text is decoded from the tree's ids, so it is what the model reads. Lengths are in tokens.

    Args:
        record: one of `prepare.records_of`; its scores are shown as the file has them, targets as the loss reads them.
        policy: that the tree was encoded by.
    """
    whole = encode(record, tokenizer, policy.without_limits())
    if not isinstance(whole, TokenTree):
        raise ValueError(f"{record.source} makes no tree: {whole}")
    facts = [f"example {tree.example_id}", record.source, record.kind]
    facts += [f"weight {tree.weight:g}"] if tree.weight != 1 else []
    facts += [f"{name} {value:g}" for name in PAIR_NUMBERS if (value := getattr(tree, name)) is not None]
    cut = len(whole.prompt) - len(tree.prompt)
    about = f"prompt: {len(tree.prompt)} tokens, not scored" + (f"; {cut} more were cut from the left" if cut else "")
    blocks = [Block(", ".join(facts), []), Block(about, spans(tree.prompt[:0], ~tree.prompt, tokenizer))]
    branches = []
    for slot, response in enumerate(tree.responses):
        numbers = f"target {tree.targets[slot]:g}, "
        numbers += f"score {record.scores[slot]:g}, " if record.scores is not None else ""
        step = not record.is_ended(slot)
        branches.append((f"{record.field(slot)}: {numbers}", response, whole.responses[slot], step))
    if tree.auxiliary is not None:
        branches.append(("auxiliary response: ", tree.auxiliary, whole.auxiliary, False))
    if tree.baseline is not None:
        branches.append(("baseline, a response to another prompt: ", tree.baseline, tree.baseline, False))
    for about, branch, full, step in branches:
        about += f"{_scored_count(branch)}; {_ending(branch, full, tokenizer, step)}"
        blocks.append(Block(about, spans(tree.prompt, branch, tokenizer)))
    return blocks


def preview_tree(
    record: Record,
    tree: TokenTree,
    tokenizer: Tokenizer,
    policy: EncodingPolicy = EncodingPolicy(),
    *,
    colour: bool = False,
) -> str:
    """What `tree_blocks` says as one text.

    Args:
        colour: marks by terminal colours; else scored text stands in [[ ]].
    """
    bold = (_BOLD, _RESET) if colour else ("", "")
    blocks = tree_blocks(record, tree, tokenizer, policy)
    return "\n".join(about.join(bold) + ("\n" if text else "") + render(text, colour=colour) for about, text in blocks)


def spans(before: np.ndarray, branch: np.ndarray, tokenizer: Tokenizer) -> list[Span]:
    """A branch in runs that are scored or not, special or not.

    Args:
        before: ids of what it goes on from; a tokenizer may decode a first word without the space before it.
        branch: ids as a tree holds them, ~id where not scored.
    """
    ids = token_ids(branch)
    special = np.isin(ids, list(tokenizer.special_ids))
    kinds = list(zip(is_scored(branch).tolist(), special.tolist(), strict=True))
    made, end, done = [], 0, tokenizer.decode(before)
    for (scored, is_special), run in itertools.groupby(kinds):
        end += len(list(run))
        text = tokenizer.decode([*before, *ids[:end]])
        made.append(Span(text[len(done) :].translate(VISIBLE), scored, is_special))
        done = text
    return made


def render(parts: list[Span], *, colour: bool) -> str:
    """Spans as one text with their marks."""
    if colour:
        return "".join(f"{_SCORED * s.scored}{_SPECIAL * s.special}{s.text}{_RESET}" for s in parts)
    runs = itertools.groupby(parts, key=lambda span: span.scored)
    texts = [("".join(span.text for span in run), scored) for scored, run in runs]
    return "".join(f"[[{text}]]" if scored else text for text, scored in texts)


def _scored_count(branch: np.ndarray) -> str:
    count = int(is_scored(branch).sum())
    return f"{len(branch)} tokens, " + ("all scored" if count == len(branch) else f"{count} of them scored")


def _ending(branch: np.ndarray, full: np.ndarray, tokenizer: Tokenizer, step: bool) -> str:
    if len(full) > len(branch):
        return f"{len(full) - len(branch)} more were cut from the right, so it does not end"
    if step:
        return "a step, after which the turn goes on"
    return f"ends with {tokenizer.decode(token_ids(branch[-1:]))}"
