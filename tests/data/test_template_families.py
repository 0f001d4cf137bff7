"""Random conversations through chat templates of many families: what is read is what the template itself renders."""

import os
import random

import jinja2.sandbox
import pytest

from prefjax.data.encoding import decode_response, encode_all, end_ids, response_ending
from prefjax.data.records import Message, Record
from prefjax.rows.trees import is_scored, token_ids
from prefjax.training.parameters import stop_ids
from tests.data.template_families import FAMILIES, family_tokenizer

# For each template. Where turns.py or chats.py change, try 2,000: a quarter of an hour of one core.
COUNT = int(os.environ.get("PREFJAX_TEST_CONVERSATIONS", "12"))
PIECES = [
    *(
        "yes",
        "no",
        "a",
        "assistant",
        "user: hi",
        "ASSISTANT: ",
        "model\n",
        "[INST]",
        "### Response:",
        "</think",
        "{{ x }}",
    ),
    *("\n", "\n\n", "  ", "\t", "é", "日本", "👍🏽", "ﬁ", "e\u0301", "0", "'", '"', "<", "|", "\\n", "% if", "null"),
]


def words(rng: random.Random) -> str:
    """A text of some pieces that holds more than white space, and that no tokenizer here has as a special token."""
    while True:
        text = "".join(rng.choices(PIECES, k=rng.randint(1, 6)))
        if text.strip():
            return text


def conversation(rng: random.Random, family) -> Record:
    system = {"refused": False, "wanted": True}.get(family.system, rng.random() < 0.3)
    prompt = [Message("system", words(rng))] if system else []
    for _ in range(rng.randint(0, 2)):
        prompt += [Message("user", words(rng)), Message("assistant", words(rng))]
    prompt.append(Message("user", words(rng)))
    last = lambda: (Message("assistant", words(rng)),)
    longer = (Message("assistant", words(rng)), Message("user", words(rng)), *last())
    return Record(tuple(prompt), (longer if rng.random() < 0.3 else last(), last()), (1.0, 0.0), "pair", source="f:1")


def rendered(family, turns) -> str:
    """By Jinja alone, as tokenizers of Hugging Face do."""
    engine = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    named = {"bos_token": family.bos or "", "eos_token": family.eos, "raise_exception": pytest.fail}
    form = lambda text: [{"type": "text", "text": text}] if family.parts else text
    messages = [{"role": turn.role, "content": form(turn.content)} for turn in turns]
    return engine.from_string(family.template).render(messages=messages, add_generation_prompt=False, **named)


def assert_read_as_rendered(record, tree, family, tokenizer):
    for turns, response in zip(record.responses, tree.responses, strict=True):
        whole = rendered(family, (*record.prompt, *turns)).removeprefix(family.bos or "")
        ids = [*tree.prompt[family.bos is not None :], *token_ids(response)]
        read = tokenizer.decode(ids)
        if not whole.startswith(read):  # EOS that the template lacks, and white space before it
            read = read.removesuffix(family.eos).rstrip()
        assert whole.startswith(read), (whole, read)
        assert whole[len(read) :].strip() in ("", *family.left)
        said = tokenizer.decode(response[is_scored(response)])
        last = turns[-1].content
        assert said.endswith(family.end) and said.startswith(family.adds)
        own = said.removesuffix(family.end).removeprefix(family.adds)
        assert last.strip() in own and (len(turns) > 1 or own.strip() == last.strip())
        if len(turns) == 1 and not family.adds:
            ending = response_ending(record.prompt, tokenizer)
            decoded = decode_response(tree.prompt.tolist(), response.tolist(), tokenizer, chat=True, ending=ending)
            assert decoded == last.strip()


def spoken(record):
    return (*record.prompt, *(turn for response in record.responses for turn in response))


@pytest.mark.parametrize("name", FAMILIES)
def test_random_conversations_are_read_as_the_template_renders_them(name, tmp_path):
    family = FAMILIES[name]
    tokenizer = family_tokenizer(tmp_path, family)
    rng = random.Random(name)
    records = [conversation(rng, family) for _ in range(COUNT)]
    records = [record for record in records if record.responses[0] != record.responses[1]]
    kept, spelled = [], 0
    for record in records:
        trees, account = encode_all([record], tokenizer, progress=False)
        if trees:
            assert_read_as_rendered(record, trees[0], family, tokenizer)
            kept += trees
        else:  # refused by name
            (reason,) = account["encode"].dropped
            special = any(token in turn.content for turn in spoken(record) for token in family.special)
            assert reason in ({"special_text"} if special else {"identical_responses", "unstable_template"}), account
            spelled += special
    assert len(kept) >= 0.9 * (len(records) - spelled)
    assert end_ids(kept, tokenizer) == [tokenizer.encode(family.end, continues=True)[0]]
    assert set(stop_ids(None, tokenizer, end_ids(kept, tokenizer))) >= set(end_ids(kept, tokenizer))


def test_there_are_at_least_24_families_of_different_kinds():
    assert len(FAMILIES) >= 24 and len({family.template for family in FAMILIES.values()}) >= 24
