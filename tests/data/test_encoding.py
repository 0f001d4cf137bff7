"""Records become token trees: the boundary, BOS and EOS, and truncation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefjax.data.account import Rejection
from prefjax.data.encoding import EncodingPolicy, encode, encode_all, encode_prompt, end_id
from prefjax.data.prompts import Prompt, encode_prompts
from prefjax.data.readers import read_records
from prefjax.data.records import Message, Record
from prefjax.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from prefjax.rows.trees import TokenTree, token_ids
from tests.data.small_tokenizers import CHATML, KINDS, NO_END, WITH_BOS, small_tokenizer

BYTE = ByteTokenizer()


@pytest.fixture
def make_tokenizer(tmp_path_factory):
    return lambda *args, **options: small_tokenizer(tmp_path_factory.mktemp("tokenizer"), *args, **options)


def chat(*turns: str) -> tuple[Message, ...]:
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return tuple(Message(roles[turn[0]], turn[2:]) for turn in turns)


def pair(prompt, chosen, rejected, **fields) -> Record:
    return Record(prompt, (chosen, rejected), (1.0, 0.0), "pair", source="f:1", **fields)


TEXT = pair("Q: hi A:", " yes, sure", " no")
CHAT = pair(chat("u:hello"), chat("a:yes, sure"), chat("a:no"))


def texts(tree: TokenTree, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(token_ids(ids)) for ids in (tree.prompt, *tree.responses)]


# Boundary, BOS, EOS


def test_plain_text_with_bytes():
    tree = encode(TEXT, BYTE)
    assert tree.prompt.tolist() == [BYTE.bos_id, *b"Q: hi A:"]
    assert [response.tolist() for response in tree.responses] == [[*b" yes, sure", BYTE.eos_id], [*b" no", BYTE.eos_id]]
    assert all(ids.dtype == np.int32 for ids in (tree.prompt, *tree.responses))
    assert tree.targets.dtype == np.float32 and tree.targets.tolist() == [1.0, 0.0]
    assert (tree.weight, tree.baseline, tree.auxiliary, tree.example_id) == (1.0, None, None, -1)


def test_plain_chat_with_bytes():
    record = pair(
        chat("s:Be kind.", "u:hi", "a:yo", "u:more"), chat("a:yes"), chat("a:no", "u:why", "a:so"), weight=0.5
    )
    tree = encode(record, BYTE)
    assert texts(tree, BYTE) == [
        "<bos>system: Be kind.\n\nuser: hi\n\nassistant: yo\n\nuser: more\n\nassistant:",
        " yes<eos>",
        " no\n\nuser: why\n\nassistant: so<eos>",
    ]
    assert tree.weight == 0.5 and end_id(record.prompt, BYTE) == BYTE.eos_id
    assert encode_prompt(record.prompt, BYTE) == tree.prompt.tolist()


def test_chat_template_with_an_end_of_turn(make_tokenizer):
    """The response ends at the end of turn, not at the newline that the template puts after it."""
    tokenizer = make_tokenizer(CHATML)
    tree = encode(CHAT, tokenizer)
    assert texts(tree, tokenizer) == [
        "<s><|start|>user\nhello<|end|>\n<|start|>assistant\n",
        "yes, sure<|end|>",
        "no<|end|>",
    ]
    assert tree.responses[0][-1] == end_id(CHAT.prompt, tokenizer) == 4
    assert end_id("", tokenizer) == tokenizer.eos_id == 2
    tree = encode(pair(CHAT.prompt, chat("a:yes \n"), chat("a:no", "u:why", "a:so")), tokenizer)
    assert texts(tree, tokenizer)[1:] == [
        "yes \n<|end|>",
        "no<|end|>\n<|start|>user\nwhy<|end|>\n<|start|>assistant\nso<|end|>",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_that_renders_bos_does_not_double_it(make_tokenizer, kind):
    tokenizer = make_tokenizer(WITH_BOS, kind=kind)
    tree = encode(CHAT, tokenizer)
    assert tree.prompt.tolist().count(tokenizer.bos_id) == 1 and tree.prompt[0] == tokenizer.bos_id
    assert all(tokenizer.bos_id not in response for response in tree.responses)
    assert all(response.tolist().index(tokenizer.eos_id) == response.size - 1 for response in tree.responses)
    whole = np.concatenate([tree.prompt[1:], tree.responses[0]])
    assert tokenizer.decode(whole) == "[Q] hello [A] yes, sure</s>"


def test_a_template_without_an_end_gets_eos(make_tokenizer):
    tokenizer = make_tokenizer(NO_END)
    assert texts(encode(CHAT, tokenizer), tokenizer) == ["<s>user>helloassistant>", "yes, sure</s>", "no</s>"]


def test_refusals_of_templates_are_counted(make_tokenizer):
    system = pair(chat("s:Be kind.", "u:hello"), chat("a:yes"), chat("a:no"))
    trees, account = encode_all([system, CHAT], make_tokenizer(WITH_BOS), progress=False)
    assert len(trees) == 1 and account["encode"].dropped == {"template_error": 1}
    assert "tokenizer_config.json:1: no system messages" in str(account)


def test_messages_without_a_template_name_the_fix(make_tokenizer):
    tokenizer = make_tokenizer()
    assert not tokenizer.has_chat_template
    with pytest.raises(ValueError, match="chat_template='plain'"):
        encode(CHAT, tokenizer)
    assert isinstance(encode(TEXT, tokenizer), TokenTree)
    plain = make_tokenizer(chat_template="plain")
    assert texts(encode(CHAT, plain), plain) == ["<s>user: hello\n\nassistant:", " yes, sure</s>", " no</s>"]


def test_text_that_spells_a_special_token(make_tokenizer):
    tokenizer = make_tokenizer(CHATML)
    for record in (pair("hi", " yes</s>", " no"), pair(chat("u:<|start|>x"), chat("a:yes"), chat("a:no"))):
        rejection = encode(record, tokenizer)
        assert (rejection.reason, rejection.detail) in {("special_text", "</s>"), ("special_text", "<|start|>")}
    rendered = pair("<s><|start|>user\nhello<|end|>\n<|start|>assistant\n", "yes</s>", "no")
    trees, account = encode_all([rendered], tokenizer, EncodingPolicy(special_text="parse"), progress=False)
    assert texts(trees[0], tokenizer)[1:] == ["yes</s>", "no</s>"]  # the end that is spelled is not doubled
    assert trees[0].prompt.tolist()[:2] == [1, 3] and trees[0].prompt.tolist().count(1) == 1
    assert account["encode"].found == {"special_text": 2} and not account["encode"].dropped


def test_an_unknown_character_is_not_an_end(make_tokenizer):
    tokenizer = make_tokenizer(kind="prepend")
    tree = encode(pair("hello", " yes \N{SNOWMAN}", " no"), tokenizer)
    assert tree.responses[0].tolist()[-2:] == [0, tokenizer.eos_id]


def test_auxiliary_is_encoded_like_a_response():
    tree = encode(pair("Q:", " yes", " no", auxiliary=" maybe"), BYTE)
    assert BYTE.decode(tree.auxiliary) == " maybe<eos>" and len(tree.responses) == 2
    rejection = encode(pair("Q:", " yes", " no", auxiliary=" maybe"), BYTE, EncodingPolicy(max_response_length=5))
    assert (rejection.reason, rejection.field) == ("response_too_long", "auxiliary")


def test_trees_may_have_different_numbers_of_responses():
    ranking = Record("Q:", ("a", "b", "c"), (3.0, 1.0, 2.0), "ranked", source="f:2")
    single = Record("Q:", ("a",), (0.25,), "unpaired", source="f:3")
    trees, account = encode_all([ranking, single, TEXT], BYTE, progress=False)
    assert [len(tree.responses) for tree in trees] == [3, 1, 2]
    assert [tree.example_id for tree in trees] == [0, 1, 2]
    assert trees[0].targets.tolist() == [3.0, 1.0, 2.0] and account["encode"].kept == 3


# Truncation. TEXT has a prompt of 9 tokens and responses of 11 and 4.


@pytest.mark.parametrize(
    "policy, expected",
    [
        ({}, ("<bos>Q: hi A:", " yes, sure<eos>", " no<eos>")),
        (
            {"max_length": 20, "max_prompt_length": 9, "max_response_length": 11},
            ("<bos>Q: hi A:", " yes, sure<eos>", " no<eos>"),
        ),
        ({"max_length": 19}, "sequence_too_long"),
        ({"max_prompt_length": 8}, "prompt_too_long"),
        ({"max_response_length": 10}, "response_too_long"),
        ({"max_prompt_length": 4, "truncation": "trim_prompt_left"}, ("<bos> A:", " yes, sure<eos>", " no<eos>")),
        ({"max_length": 16, "truncation": "trim_prompt_left"}, ("<bos>i A:", " yes, sure<eos>", " no<eos>")),
        ({"max_length": 13, "truncation": "trim_prompt_left"}, ("<bos>:", " yes, sure<eos>", " no<eos>")),
        ({"max_length": 12, "truncation": "trim_prompt_left"}, "sequence_too_long"),
        ({"max_prompt_length": 1, "truncation": "trim_prompt_left"}, "prompt_too_long"),
        (
            {"max_prompt_length": 4, "max_response_length": 10, "truncation": "trim_prompt_left"},
            "response_too_long",
        ),
        ({"max_response_length": 10, "truncation": "trim_responses"}, ("<bos>Q: hi A:", " yes, sure", " no<eos>")),
        ({"max_response_length": 3, "truncation": "trim_responses"}, ("<bos>Q: hi A:", " ye", " no")),
        ({"max_response_length": 1, "truncation": "trim_responses"}, "identical_responses"),
        ({"max_length": 13, "truncation": "trim_responses"}, ("<bos>Q: hi A:", " yes", " no<eos>")),
        ({"max_length": 9, "truncation": "trim_responses"}, "sequence_too_long"),
        ({"max_length": 30, "max_prompt_length": 8, "truncation": "trim_responses"}, "prompt_too_long"),
        (
            {"max_length": 10, "max_response_length": 4, "truncation": "trim_both"},
            ("<bos>hi A:", " yes", " no<eos>"),
        ),
        ({"max_length": 5, "max_response_length": 4, "truncation": "trim_both"}, "sequence_too_long"),
    ],
)  # fmt: skip
def test_truncation(policy, expected):
    result = encode(TEXT, BYTE, EncodingPolicy(**policy))
    assert (result.reason if isinstance(result, Rejection) else tuple(texts(result, BYTE))) == expected


def test_truncation_is_counted():
    policy = EncodingPolicy(max_length=10, max_response_length=4, truncation="trim_both")
    longer = pair("Q: hi A:", " yes, sure", " no, never")
    _, account = encode_all([TEXT, longer], BYTE, policy, progress=False)
    assert account["encode"].found == {"trimmed_prompt": 2, "trimmed_response": 3} and account["encode"].kept == 2
    _, account = encode_all([TEXT, longer], BYTE, EncodingPolicy(max_length=19), progress=False)
    assert account["encode"].dropped == {"sequence_too_long": 2} and "9 + 11 tokens" in str(account)


def test_a_trimmed_chat_keeps_more_than_the_header(make_tokenizer):
    tokenizer = make_tokenizer(CHATML)
    header = len(tokenizer.encode("<|start|>assistant\n", continues=True))
    kept = encode(CHAT, tokenizer, EncodingPolicy(max_prompt_length=header + 3, truncation="trim_prompt_left"))
    assert tokenizer.decode(kept.prompt) == "<s><|end|>\n<|start|>assistant\n"
    gone = encode(CHAT, tokenizer, EncodingPolicy(max_prompt_length=header + 1, truncation="trim_prompt_left"))
    assert gone.reason == "prompt_too_long"


@given(
    st.text(min_size=1, max_size=12),
    st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=3),
    st.sampled_from(("trim_prompt_left", "trim_responses", "trim_both", "drop")),
    st.tuples(st.integers(1, 30), st.integers(1, 20), st.integers(1, 20)),
)
def test_truncation_never_empties_anything_and_never_invents_an_end(prompt, responses, truncation, limits):
    record = Record(prompt, tuple(responses), (0.0,) * len(responses), "ranked")
    length, prompt_length, response_length = limits
    policy = EncodingPolicy(length, prompt_length, response_length, truncation)
    whole = encode(record, BYTE)
    result = encode(record, BYTE, policy)
    if isinstance(result, Rejection):
        return
    assert result.prompt[0] == BYTE.bos_id and 2 <= result.prompt.size <= prompt_length
    assert result.prompt[1:].tolist() == whole.prompt[1:].tolist()[-(result.prompt.size - 1) :]
    for kept, full in zip(result.responses, whole.responses, strict=True):
        assert 1 <= kept.size <= response_length and result.prompt.size + kept.size <= length
        assert kept.tolist() == full.tolist()[: kept.size]
        assert (kept[-1] == BYTE.eos_id) == (kept.size == full.size)


@pytest.mark.parametrize(
    "options",
    [
        {"truncation": "keep_end"},
        {"special_text": "keep"},
        {"max_length": 0},
        {"truncation": "trim_prompt_left", "max_response_length": 8},
        {"truncation": "trim_responses", "max_prompt_length": 8},
        {"truncation": "trim_both", "max_length": 8},
        {"truncation": "trim_both", "max_response_length": 8},
    ],
)
def test_policies_that_say_nothing_are_errors(options):
    with pytest.raises(ValueError):
        EncodingPolicy(**options)


def test_nothing_but_special_tokens_is_empty():
    assert encode(pair("", " yes", " no"), BYTE).reason == "empty_prompt"
    assert encode(pair("Q:", " yes", ""), BYTE).reason == "empty_response"


def test_tokens_that_the_model_has_no_embedding_for(tmp_path):
    """As the image token of Gemma 3 1B: the tokenizer is longer than the embedding, and hardly a record says so."""
    own = small_tokenizer(tmp_path, CHATML)
    last = next(i for i in range(own.vocab_size - 1, 0, -1) if own.encode(own.decode([i]), continues=True) == [i])
    tokenizer = load_tokenizer(tmp_path, vocab_size=last)
    spells = pair(chat(f"u:{own.decode([last])}"), chat("a:yes"), chat("a:no"))
    trees, account = encode_all([CHAT, spells], tokenizer, progress=False)
    assert len(trees) == 1 and account["encode"].dropped == {"beyond_vocabulary": 1}
    assert f"f:1:prompt: {own.decode([last])} is id {last} of {last}" in str(account)
    assert tokenizer.fingerprint != own.fingerprint == load_tokenizer(tmp_path, vocab_size=10**6).fingerprint
    prompts, account = encode_prompts([Prompt(spells.prompt, "f:2")], tokenizer, chat=True)
    assert not prompts and account["encode"].dropped == {"beyond_vocabulary": 1}
    with pytest.raises(ValueError, match="model.vocab_size=2, but .* begins or ends sequences with id 2: raise it"):
        load_tokenizer(tmp_path, vocab_size=2)
    with pytest.raises(ValueError, match="model.vocab_size=258, but byte"):
        load_tokenizer("byte", vocab_size=258)


# Real files


@pytest.fixture(scope="module")
def stories(real_models):
    return real_models / "stories260k"


def test_small_real_tokenizer(stories):
    tokenizer = load_tokenizer(stories)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size, tokenizer.has_chat_template) == (1, 2, 512, False)
    record = pair("Once upon a time", ", there was a cat.", " a dog sat.\n")
    tree = encode(record, tokenizer)
    assert tree.prompt.tolist() == [1, *tokenizer.encode("Once upon a time")]
    for response, text in zip(tree.responses, record.responses, strict=True):
        assert response[-1] == 2 and tokenizer.decode([*tree.prompt[1:], *response[:-1]]) == record.prompt + text
    # The tokenizer's own ids of the whole text, since a word begins at the boundary.
    own = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(str(stories))
    assert [*tree.prompt, *tree.responses[1][:-1]] == own("Once upon a time a dog sat.\n")["input_ids"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hh_harmless_base_test", "oasst_en100_ranked", "kto_en_demo"])
def test_real_sets_with_a_real_tokenizer(real_data, stories, name):
    tokenizer = load_tokenizer(stories, "plain")
    records, _ = read_records(real_data / f"{name}.jsonl.gz", progress=False)
    records = records[:200]
    trees, account = encode_all(records, tokenizer, progress=False)
    # One KTO completion runs on after a spelled "</s>": taken as text it would end a response in its middle.
    assert account["encode"].dropped == ({"special_text": 1} if name == "kto_en_demo" else {})
    for tree in trees:
        assert tree.prompt.tolist().count(tokenizer.bos_id) == 1 and tree.prompt[0] == tokenizer.bos_id
        assert all(response.tolist().index(tokenizer.eos_id) == response.size - 1 for response in tree.responses)


@pytest.mark.slow
def test_real_sets_with_bytes(real_data):
    records, _ = read_records(real_data / "hh_harmless_base_test.jsonl.gz", progress=False)
    policy = EncodingPolicy(max_length=1024, max_response_length=256, truncation="trim_both")
    trees, account = encode_all(records[:500], BYTE, policy, progress=False)
    stage = account["encode"]
    assert stage.kept == 500 and stage.found["trimmed_prompt"] > 0 and stage.found["trimmed_response"] > 0
    assert all(tree.prompt.size + max(r.size for r in tree.responses) <= 1024 for tree in trees)
    assert all(BYTE.decode(tree.prompt).endswith("\n\nassistant:") for tree in trees)
