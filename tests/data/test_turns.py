"""Chat templates of many kinds: where the assistant's turn begins and ends, what is cut, what is refused."""

import json

import pytest

from prefjax.data.account import Rejection
from prefjax.data.encoding import decode_response, encode, encode_all, encode_prompt, end_id, end_ids, response_ending
from prefjax.data.records import Message, Record
from prefjax.data.tokenizers import HuggingFaceTokenizer
from prefjax.rows.trees import is_scored, token_ids
from prefjax.training.parameters import stop_ids
from tests.data.small_tokenizers import CHATML, NO_END, TOOLS, small_tokenizer

ASK = "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
TURNS = "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}"
assert CHATML == TURNS + ASK
THINKS = (  # as Qwen 3: an empty thought in the last turn, none in earlier ones
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '(think)\n\n(/think)\n\n' }}{% endif %}"
    "{{ m.content + '<|end|>\n' }}{% endfor %}"
)
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
BEFORE = "<s><|start|>user\nhello<|end|>\n"
OPEN = BEFORE + "<|start|>assistant\n"

# Template -> prompt, the response "yes", id of its end, what is counted for each response.
KINDS = {
    "header where asked": (CHATML, OPEN, "yes<|end|>", 4, {}),
    "header always": (TURNS + "{{ '<|start|>assistant\n' }}", OPEN, "yes<|end|>", 4, {"cut_after_turn"}),
    "header never": (TURNS, OPEN, "yes<|end|>", 4, {"header_moved"}),
    "header always, no end": (
        "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content }}{% endfor %}{{ '<|start|>assistant\n' }}",
        "<s><|start|>user\nhello<|start|>assistant\n",
        "yes</s>",
        2,
        {"cut_after_turn"},
    ),
    "words always": (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{{ 'assistant:' }}",
        "<s>user: hello\nassistant:",
        " yes</s>",
        2,
        {"cut_after_turn"},
    ),
    "a question and an answer": (
        "{% for m in messages %}{{ '[Q] ' + m.content + ' [A]' if m.role == 'user' else ' ' + m.content + eos_token }}"
        "{% endfor %}",
        "<s>[Q] hello [A]",
        " yes</s>",
        2,
        {},
    ),
    "no end": (NO_END, "<s>user>helloassistant>", "yes</s>", 2, {}),
    "words end a turn": (
        CHATML.replace("<|end|>", "###"),
        OPEN.replace("<|end|>", "###"),
        "yes###</s>",
        2,
        {"text_ends_turn"},
    ),
    "more after the end": (
        CHATML.replace("<|end|>\n'", "<|end|>\n---\n'"),
        OPEN.replace("<|end|>", "<|end|>\n---"),
        "yes<|end|>",
        4,
        {"cut_after_turn"},
    ),
    "two ends": (
        CHATML.replace("<|end|>", "<|end|></s>"),
        OPEN.replace("<|end|>", "<|end|></s>"),
        "yes<|end|>",
        4,
        {"cut_after_turn"},
    ),
    "a thought opened": (
        TURNS + ASK.replace("assistant\n", "assistant\n(think)\n"),
        OPEN,
        "yes<|end|>",
        4,
        {"header_cut"},
    ),
    "an empty thought": (THINKS + ASK, OPEN, "(think)\n\n(/think)\n\nyes<|end|>", 4, {"added_text"}),
    "a thought opened and closed": (
        THINKS + ASK.replace("assistant\n", "assistant\n(think)\n"),
        OPEN + "(think)\n",
        "\n(/think)\n\nyes<|end|>",
        4,
        {"added_text"},
    ),
    "a thought opened, and closed without white space": (
        THINKS.replace("(think)\n\n(/think)\n\n", "(think)(/think)")
        + ASK.replace("assistant\n", "assistant\n(think)\n"),
        OPEN + "(think)",
        "(/think)yes<|end|>",
        4,
        {"header_cut", "added_text"},
    ),
    "alternation": (ALTERNATE + CHATML, OPEN, "yes<|end|>", 4, {}),
    "trimmed": (CHATML.replace("m.content", "m.content.strip()"), OPEN, "yes<|end|>", 4, {}),
    "a default system turn": (
        "{% if messages[0].role != 'system' %}{{ '<|start|>system\nsure<|end|>\n' }}{% endif %}" + CHATML,
        OPEN.replace("<s>", "<s><|start|>system\nsure<|end|>\n"),
        "yes<|end|>",
        4,
        {},
    ),
    "bos in the template": ("{{ bos_token }}" + CHATML, OPEN, "yes<|end|>", 4, {}),
    "another name of the role": (
        CHATML.replace("m.role", "('model' if m.role == 'assistant' else m.role)").replace("assistant\n", "model\n"),
        OPEN.replace("assistant", "model"),
        "yes<|end|>",
        4,
        {},
    ),
}


def chat(*turns: str) -> tuple[Message, ...]:
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return tuple(Message(roles[turn[0]], turn[2:]) for turn in turns)


def pair(prompt, chosen, rejected) -> Record:
    return Record(prompt, (chosen, rejected), (1.0, 0.0), "pair", source="f:1")


@pytest.fixture
def tokenizer_with(tmp_path):
    return lambda template: small_tokenizer(tmp_path, template)


def scored(branch, tokenizer: HuggingFaceTokenizer) -> str:
    return tokenizer.decode(branch[is_scored(branch)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_begins_and_ends_where_the_model_speaks(tokenizer_with, kind):
    template, prompt, response, end, counted = KINDS[kind]
    tokenizer = tokenizer_with(template)
    record = pair(chat("u:hello"), chat("a:yes"), chat("a:no and no"))
    (tree,), account = encode_all([record], tokenizer, progress=False)
    assert tokenizer.decode(tree.prompt) == prompt and tree.prompt.tolist().count(tokenizer.bos_id) == 1
    assert [tokenizer.decode(ids) for ids in tree.responses] == [response, response.replace("yes", "no and no")]
    assert end_ids([tree], tokenizer) == [end] == [end_id(record.prompt, tokenizer)]
    assert account["encode"].found == dict.fromkeys(counted, 2)
    if "header_cut" not in counted:  # such a header is what the template asks a model to go on from
        assert encode_prompt(record.prompt, tokenizer) == tree.prompt.tolist()
    if "added_text" not in counted:
        ending = response_ending(record.prompt, tokenizer)
        assert (
            decode_response(tree.prompt.tolist(), tree.responses[1].tolist(), tokenizer, chat=True, ending=ending)
            == "no and no"
        )


@pytest.mark.parametrize("kind", sorted(kind for kind in KINDS if "added_text" not in KINDS[kind][4]))
def test_prompt_and_response_are_the_templates_own_render(tokenizer_with, kind):
    """Over several turns, up to what is cut, with short texts that stand everywhere in the render."""
    tokenizer = tokenizer_with(KINDS[kind][0])
    turns = chat("a:e", "u:hello", "a:s")
    tree = encode(pair(chat("u:hello", "a:a", "u:hello"), turns, chat("a:assistant")), tokenizer)
    whole = tokenizer.render((*chat("u:hello", "a:a", "u:hello"), *turns), generate=False).removeprefix("<s>")
    read = tokenizer.decode([*tree.prompt[1:], *token_ids(tree.responses[0])])
    read = read if whole.startswith(read) else read.removesuffix("</s>")  # EOS that the template lacks
    assert whole.startswith(read)
    assert whole[len(read) :].strip() in ("", "</s>", "---", "<|start|>assistant", "assistant:")
    assert scored(tree.responses[1], tokenizer) == KINDS[kind][2].replace("yes", "assistant")


def test_thoughts_of_earlier_turns_are_gone_and_the_last_ones_are_scored(tokenizer_with):
    tokenizer = tokenizer_with(THINKS + ASK)
    record = pair(chat("u:hello"), chat("a:yes", "u:hello", "a:sure"), chat("a:no"))
    (tree,), account = encode_all([record], tokenizer, progress=False)
    assert scored(tree.responses[0], tokenizer) == "(think)\n\n(/think)\n\nsure<|end|>"
    whole = tokenizer.render((*record.prompt, *record.responses[0]), generate=False)
    assert "<s>" + whole.rstrip("\n") == tokenizer.decode([*tree.prompt, *token_ids(tree.responses[0])])
    assert account["encode"].found["changed_turn"] == 1


def test_responses_with_and_without_the_thought_that_the_header_opens_share_a_prompt(tokenizer_with):
    tokenizer = tokenizer_with(TURNS + ASK.replace("assistant\n", "assistant\n(think)\n"))
    tree = encode(pair(chat("u:hello"), chat("a:(think)\nyes(/think)no"), chat("a:no")), tokenizer)
    assert tokenizer.decode(tree.prompt) == OPEN
    assert [tokenizer.decode(ids) for ids in tree.responses] == ["(think)\nyes(/think)no<|end|>", "no<|end|>"]


def test_a_text_that_begins_as_the_thought_of_the_header_does_ends_where_it_ends(tokenizer_with):
    """A "<" stands in the header, as the text, and in the token that ends the turn."""
    tokenizer = tokenizer_with(CHATML.replace("assistant\n", "assistant\n<think>\n"))
    tree = encode(pair(chat("u:hello"), chat("a:<"), chat("a:no")), tokenizer)
    assert [tokenizer.decode(ids) for ids in tree.responses] == ["<<|end|>", "no<|end|>"]


def test_a_turn_of_the_prompt_that_the_template_leaves_out_is_counted(tokenizer_with):
    tokenizer = tokenizer_with(
        CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    )
    record = pair(chat("s:sure, everything", "u:hello"), chat("a:yes"), chat("a:no"))
    _, account = encode_all([record], tokenizer, progress=False)
    assert account["encode"].found == {"turn_not_shown": 1} and "system: sure," in str(account)


@pytest.mark.parametrize("wants", ["!=", "=="])
def test_templates_that_want_or_refuse_a_system_turn_are_only_asked_what_records_say(tokenizer_with, wants):
    tokenizer = tokenizer_with(
        f"{{% if messages[0].role {wants} 'system' %}}{{{{ raise_exception('not this') }}}}{{% endif %}}{CHATML}"
    )
    with_system = pair(chat("s:sure", "u:hello"), chat("a:yes"), chat("a:no"))
    without = pair(chat("u:hello"), chat("a:yes"), chat("a:no"))
    trees, account = encode_all([with_system, without], tokenizer, progress=False)
    assert len(trees) == 1 and account["encode"].dropped == {"template_error": 1} and "not this" in str(account)
    assert end_ids(trees, tokenizer) == [4]
    assert stop_ids(None, tokenizer, [4]) == (2, 4) and stop_ids(None, tokenizer) == ((2,) if wants == "!=" else (2, 4))


def test_an_added_token_that_is_not_special_ends_a_turn(tmp_path):
    small_tokenizer(tmp_path, CHATML)
    file = tmp_path / "tokenizer.json"
    backend = json.loads(file.read_text())
    for token in backend["added_tokens"]:
        token["special"] = token["content"] not in ("<|end|>", "<|start|>")
    file.write_text(json.dumps(backend))
    tokenizer = HuggingFaceTokenizer(tmp_path)
    assert 4 not in tokenizer.special_ids
    record = pair(chat("u:hello"), chat("a:yes"), chat("a:no"))
    tree = encode(record, tokenizer)
    assert tokenizer.decode(tree.responses[0]) == "yes<|end|>" and end_ids([tree], tokenizer) == [4]
    ending = response_ending(record.prompt, tokenizer)
    assert (
        decode_response(tree.prompt.tolist(), tree.responses[0].tolist(), tokenizer, chat=True, ending=ending) == "yes"
    )


def test_calls_of_tools_end_where_words_would(tokenizer_with):
    call = Message("assistant", "", '{"tool_calls": [{"function": {"name": "f", "arguments": {"x": "yes"}}}]}')
    record = pair(chat("u:hello"), (call,), chat("a:no"))
    for end in ("", "{{ '<|start|>assistant\n' }}"):
        template = TOOLS if not end else TOOLS.replace(ASK, "") + end
        tokenizer = tokenizer_with(template)
        tree = encode(record, tokenizer)
        assert tokenizer.decode(tree.responses[0]) == 'CALL f {"x": "yes"}<|end|>'
        assert tokenizer.decode(tree.prompt).endswith("<|start|>assistant\n")


@pytest.mark.parametrize(
    "template, shown",
    [
        ("{{ messages | length }}" + CHATML, "without the response ...'1<|start|>user"),
        (TURNS.replace("m.content", "m.content | upper"), "with it ...'"),
    ],
)
def test_what_cannot_be_told_is_refused_with_both_renders(tokenizer_with, template, shown):
    found = encode(pair(chat("u:hello"), chat("a:yes"), chat("a:no")), tokenizer_with(template))
    assert isinstance(found, Rejection) and (found.reason, found.field) == ("unstable_template", "chosen")
    assert shown in found.detail and "data.chat_template='plain'" in found.detail
