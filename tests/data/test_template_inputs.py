"""What chat templates are given besides the turns: arguments, thoughts, a day; and turns that a prompt has begun."""

import dataclasses
import datetime
import json

import numpy as np
import pytest

from prefjax.data import chat_templates, tokenizers
from prefjax.data.account import Rejection
from prefjax.data.config import DataConfig
from prefjax.data.encoding import EncodingPolicy, decode_response, encode, encode_all, encode_prompt
from prefjax.data.prepare import full_account, prepare, records_of
from prefjax.data.prompts import Prompt, encode_prompts, prompt_of, read_prompts
from prefjax.data.records import THOUGHT, Message, Record
from prefjax.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer, TemplateError, load_tokenizer
from prefjax.requirements import Requirements
from prefjax.rows.trees import is_scored, token_ids
from tests.data.small_tokenizers import CHATML, TOOLS, small_tokenizer

OPEN = "<s><|start|>user\nhello<|end|>\n<|start|>assistant\n"
# As Qwen 3: thoughts by field or in the text, dropped from earlier turns; an empty one where they are switched off.
THINKS = (
    "{% for m in messages %}{% set r = m.reasoning_content or '' %}{% set c = m.content %}"
    "{% if '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set c = c.split('</think>')[-1].lstrip() %}{% endif %}{{ '<|start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n' + r + '\n</think>\n\n' }}{% endif %}"
    "{{ c + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
# As gpt-oss: the thought is a message of its own, under another name.
CHANNELS = (
    "{% for m in messages %}{% if m.thinking %}{{ '<|start|>assistant analysis\n' + m.thinking + '<|end|>' }}"
    "{% endif %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
DATED = "{{ '<|start|>system\n' + strftime_now('%d %b %Y') + '<|end|>\n' }}" + CHATML


def chat(*turns: str) -> tuple[Message, ...]:
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return tuple(Message(roles[turn[0]], turn[2:]) for turn in turns)


def thinking(text: str, thought: str) -> tuple[Message, ...]:
    return (Message("assistant", text, json.dumps({THOUGHT: thought})),)


def pair(prompt, chosen, rejected=None, **more) -> Record:
    return Record(prompt, (chosen, rejected or chat("a:no")), (1.0, 0.0), "pair", source="f:1", **more)


def marked(branch: np.ndarray, tokenizer) -> str:
    """Text in which what is not scored stands in braces."""
    ends = np.flatnonzero(np.diff(is_scored(branch))) + 1
    pieces = [(tokenizer.decode(token_ids(part)), is_scored(part)[0]) for part in np.split(branch, ends)]
    return "".join(text if scored else "{" + text + "}" for text, scored in pieces)


def shown(record: Record, tokenizer, **policy) -> tuple[str, str, dict[str, int]]:
    """The prompt, the first response, and what is counted."""
    (tree,), account = encode_all([record], tokenizer, EncodingPolicy(**policy), progress=False)
    return tokenizer.decode(tree.prompt), marked(tree.responses[0], tokenizer), dict(account["encode"].found)


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    """Template -> tokenizer, each made once."""
    made = {}

    def make(template: str, **options) -> HuggingFaceTokenizer:
        key = (template, *options.items())
        if key not in made:
            made[key] = small_tokenizer(tmp_path_factory.mktemp("tokenizer"), template, **options)
        return made[key]

    return make


# Arguments


def test_arguments_of_a_run_and_of_a_record(tokenizer_of):
    record = pair(chat("u:hello"), chat("a:yes"))
    off = '{"enable_thinking": false}'
    silent = (OPEN + "<think>\n\n</think>\n\n", "yes<|end|>", {})
    aloud = (OPEN, "<think>\n\n</think>\n\nyes<|end|>", {"added_text": 2})
    run = tokenizer_of(THINKS, chat_template_kwargs=off)
    assert shown(record, tokenizer_of(THINKS)) == aloud and shown(record, run) == silent
    own = lambda text: pair(chat("u:hello"), chat("a:yes"), chat_template_kwargs=text)
    assert shown(own(off), tokenizer_of(THINKS)) == silent
    assert shown(own('{"enable_thinking": true}'), run) == aloud  # the record's own goes first
    said = shown(own('{"enable_thinking": false, "mood": 1}'), tokenizer_of(THINKS))
    assert said == (*silent[:2], {"unread_argument": 1})
    # Where a response begins is asked of the same template with the same arguments.
    given = own(off).given
    assert tokenizer_of(THINKS).decode(encode_prompt(record.prompt, tokenizer_of(THINKS), given=given)) == silent[0]
    assert run.fingerprint != tokenizer_of(THINKS).fingerprint
    assert run.fingerprints["tokenizer"] == tokenizer_of(THINKS).fingerprints["tokenizer"]


@pytest.mark.parametrize(
    "given, said",
    [
        ('{"enable_thinkin": false}', "reads no 'enable_thinkin': did you mean 'enable_thinking'"),
        ('{"zzz": 1}', "reads no 'zzz', so it would have no effect"),
        ("{", "must be a JSON object"),
        ('{"add_generation_prompt": true}', "is decided elsewhere"),
    ],
)
def test_arguments_without_effect_are_refused(tokenizer_of, given, said):
    folder = tokenizer_of(THINKS)._folder
    with pytest.raises(ValueError, match=said):
        load_tokenizer(folder, chat_template_kwargs=given)
    with pytest.raises(ValueError):
        load_tokenizer("byte", chat_template_kwargs=given)


def test_options_are_checked_before_anything_is_read():
    with pytest.raises(ValueError, match="chat_template_kwargs must be a JSON object"):
        DataConfig(chat_template_kwargs="[1]")
    with pytest.raises(ValueError, match="data.date='tomorrow' must be a day, as 2026-11-29"):
        DataConfig(date="tomorrow")
    with pytest.raises(ValueError, match="data.encoding.thought_marks"):
        EncodingPolicy(thought_marks=("<think>",))


def test_a_failure_of_a_template_names_file_and_line(tokenizer_of, tmp_path):
    asks = "{{ messages[0].content }}\n{{ raise_exception('no') if messages | length > 1 }}\n{{ strftime_now('%d') }}"
    conversation = chat("u:hello", "a:yes")
    with pytest.raises(TemplateError, match=r"tokenizer_config.json:2: no$"):
        tokenizer_of(asks).render(conversation, generate=False)
    small_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ 1 // 0 }}")
    for template, said in (
        (None, rf"^{tmp_path}/chat_template.jinja:1: ZeroDivision"),
        ("{% if %}", r"^data.chat_template:1: Exp"),
    ):
        with pytest.raises(TemplateError, match=said):
            load_tokenizer(tmp_path, template).render(conversation, generate=False)


# Thoughts


@pytest.mark.parametrize(
    "template, begins, thought",
    [
        (THINKS, OPEN, "<think>\nfox\n</think>\n\n"),
        (CHATML, OPEN, "<think>\nfox\n</think>\n\n"),  # which reads no thought: so it stands in the text
        (CHATML.replace("{% if add_generation_prompt %}", "{% if false %}"), OPEN, "<think>\nfox\n</think>\n\n"),
        (CHANNELS, OPEN.replace("<|end|>\n", "<|end|>").rstrip(), " analysis\nfox<|end|><|start|>assistant\n"),
    ],
    ids=["by its name", "in the text", "without a header", "a message of its own"],
)
def test_thoughts_are_shown_and_scored_or_only_read(tokenizer_of, template, begins, thought):
    tokenizer = tokenizer_of(template)
    record = pair(chat("u:hello"), thinking("yes", "fox"), thinking("no", "quick"))
    prompt, scored, found = shown(record, tokenizer)
    read = shown(record, tokenizer, thoughts="unscored")
    assert prompt == read[0] == begins and read[2] == found
    ends = "<|end|>"
    assert scored == f"{thought}yes{ends}" and read[1] == f"{{{thought}}}yes{ends}"
    trees = [encode(record, tokenizer, EncodingPolicy(thoughts=thoughts)) for thoughts in ("scored", "unscored")]
    for one, other in zip(*(tree.responses for tree in trees), strict=True):  # the same tokens are read
        np.testing.assert_array_equal(token_ids(one), token_ids(other))
    assert ("thought_in_text" in found) == ("reasoning" not in template and "thinking" not in template)


def test_thoughts_in_the_text_are_those_told_apart(tokenizer_of):
    tokenizer = tokenizer_of(THINKS)
    apart = pair(chat("u:hello"), thinking("yes", "fox"))
    within = pair(chat("u:hello"), chat("a:<think>\nfox\n</think>\n\nyes"))
    for policy in (dict(), dict(thoughts="unscored")):
        assert shown(apart, tokenizer, **policy)[:2] == shown(within, tokenizer, **policy)[:2]
        assert shown(within, tokenizer, **policy)[2]["thought_from_text"] == 1
    # A text that only speaks of the marks has no thought in it.
    text = "a:the end is </think> here"
    assert (
        shown(pair(chat("u:hello"), chat(text)), tokenizer_of(CHATML), thoughts="unscored")[1] == text[2:] + "<|end|>"
    )


def test_an_empty_thought_of_the_template_is_only_read_where_thoughts_are(tokenizer_of):
    record = pair(chat("u:hello"), chat("a:yes"))
    assert shown(record, tokenizer_of(THINKS), thoughts="unscored")[1] == "{<think>\n\n</think>\n\n}yes<|end|>"


def test_a_thought_that_repeats_the_answer_is_told_from_it(tokenizer_of):
    record = pair(chat("u:hello"), thinking("yes", "yes, yes"))
    read = shown(record, tokenizer_of(THINKS), thoughts="unscored")[1]
    assert read == "{<think>\nyes, yes\n</think>\n\n}yes<|end|>"


def test_a_thought_before_a_call_is_only_read(tokenizer_of):
    template = TOOLS.replace("{{ m.content }}", "{{ m.reasoning_content or '' }}{{ '|' + m.content }}")
    fields = {"tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}], THOUGHT: "fox"}
    record = pair(chat("u:hello"), (Message("assistant", "", json.dumps(fields)),))
    assert shown(record, tokenizer_of(template), thoughts="unscored")[1] == '{fox|}CALL f {"x": 1}<|end|>'


def test_a_thought_that_the_template_drops_is_counted(tokenizer_of):
    drops = CHATML.replace("m.content", "(m.content.split('</think>')[-1] | trim)")
    record = pair(chat("u:hello"), thinking("yes", "fox"))
    assert shown(record, tokenizer_of(drops))[1:] == ("yes<|end|>", {"thought_not_shown": 1})
    silent = CHATML.replace("m.content", "(m.content + (m.reasoning_content or '')[:0])")
    assert shown(record, tokenizer_of(silent))[1:] == ("yes<|end|>", {"thought_not_shown": 1})
    within = pair(chat("u:hello"), chat("a:<think>fox</think>yes"))  # as the text is what it shows, it stays there
    assert shown(within, tokenizer_of(silent))[1:] == ("<think>fox</think>yes<|end|>", {})


def test_a_thought_whose_end_nobody_can_tell_is_refused(tokenizer_of):
    upper = CHATML.replace("m.content", "(m.content | upper if m.role == 'assistant' else m.content)")
    template = upper.replace("{{ '<|start|>'", "{{ (m.reasoning_content or '') + '<|start|>'")
    record = pair(chat("u:hello"), thinking("yes", "fox"))
    found = encode(record, tokenizer_of(template), EncodingPolicy(thoughts="unscored"))
    assert isinstance(found, Rejection) and found.reason in ("unclear_thought", "unstable_template")


def test_a_response_cut_inside_its_thought_is_dropped(tokenizer_of):
    policy = EncodingPolicy(max_response_length=3, truncation="trim_responses", thoughts="unscored")
    found = encode(pair(chat("u:hello"), thinking("yes", "the quick brown fox")), tokenizer_of(THINKS), policy)
    assert (found.reason, found.field) == ("response_too_long", "chosen")


def test_marks_of_thoughts_may_be_special_tokens(tmp_path):
    small_tokenizer(tmp_path, CHATML)
    file = tmp_path / "tokenizer.json"
    backend = json.loads(file.read_text())
    end = backend["added_tokens"][-1]
    for number, mark in enumerate(("<think>", "</think>")):
        backend["added_tokens"].append({**end, "id": 400 + number, "content": mark})
    file.write_text(json.dumps(backend))
    tokenizer = HuggingFaceTokenizer(tmp_path)
    assert tokenizer.special_in("<think>") == "<think>"
    record = pair(chat("u:hello"), chat("a:<think>fox</think>yes"))
    assert shown(record, tokenizer, thoughts="unscored")[1] == "{<think>fox</think>}yes<|end|>"
    assert encode(pair(chat("u:<think>"), chat("a:yes")), tokenizer).reason == "special_text"


# Calls


@pytest.mark.parametrize(
    "shows, arguments, expected, found",
    [
        ("c.function.arguments | tojson", {"x": "yes"}, '{"x": "yes"}', {}),
        ("c.function.arguments | tojson", '{"x":"yes"}', '{"x": "yes"}', {"decoded_arguments": 1}),
        ("c.function.arguments | tojson", "yes", '"yes"', {}),  # no object in any form
        ("c.function.arguments", '{"x":"yes"}', '{"x":"yes"}', {}),
        ("c.function.arguments", {"x": "yes"}, '{"x": "yes"}', {"encoded_arguments": 1}),
        ("c.function.arguments.items() | first | join('=')", '{"x": "yes"}', "x=yes", {"decoded_arguments": 1}),
        ("'' + c.function.arguments", {"x": "yes"}, '{"x": "yes"}', {"encoded_arguments": 1}),
    ],
)
def test_arguments_of_calls_are_given_as_the_template_wants_them(tokenizer_of, shows, arguments, expected, found):
    template = TOOLS.replace(
        "'CALL ' + c.function.name + ' ' + c.function.arguments | tojson",
        f"'CALL ' + c.function.name + ' ' }}}}{{{{ {shows}",
    )
    assert template != TOOLS
    calls = json.dumps({"tool_calls": [{"function": {"name": "f", "arguments": arguments}}]})
    record = pair(chat("u:hello"), (Message("assistant", "", calls),))
    prompt, scored, counted = shown(record, tokenizer_of(template))
    assert scored == f"CALL f {expected}<|end|>" and counted == found


def test_calls_that_the_template_leaves_out(tokenizer_of):
    call = Message("assistant", "", '{"tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}')
    found = encode(pair(chat("u:hello"), (call,)), tokenizer_of(CHATML.replace("<|end|>", " .<|end|>")))
    assert (found.reason, found.field, found.detail) == ("call_not_shown", "chosen", "weather")
    record = pair((*chat("u:hello"), call, Message("tool", "fox")), chat("a:yes"))
    assert shown(record, tokenizer_of(CHATML))[2] == {"call_not_shown": 1}


# Prefills


@pytest.mark.parametrize("template", [CHATML, TOOLS, "{{ bos_token }}" + CHATML])
def test_a_response_goes_on_in_the_turn_that_the_prompt_begins(tokenizer_of, template):
    tokenizer = tokenizer_of(template)
    record = pair(chat("u:hello", "a:sure, yes"), chat("a: and no", "u:hello", "a:yes"), chat("a: or no"))
    prompt, scored, found = shown(record, tokenizer, prefill=True)
    assert prompt.startswith(OPEN) and prompt.endswith("sure, yes") and found["prefilled"] == 1
    assert scored == " and no<|end|>{\n<|start|>user\nhello<|end|>\n<|start|>assistant\n}yes<|end|>"
    ids = encode_prompt(record.prompt, tokenizer, EncodingPolicy(prefill=True))
    (alone,), _ = encode_all(
        [pair(record.prompt, chat("a: and no"), chat("a: or no"))],
        tokenizer,
        EncodingPolicy(prefill=True),
        progress=False,
    )
    assert ids == alone.prompt.tolist()
    two = shown(record, tokenizer)
    assert two[2]["answered_prompt"] == 1 and "sure, yes<|end|>\n<|start|>assistant" in two[0]


def test_a_prefill_follows_the_thought_that_the_template_adds(tokenizer_of):
    tokenizer, record = tokenizer_of(THINKS), pair(chat("u:hello", "a:sure, yes"), chat("a: and no"))
    prompt, scored, _ = shown(record, tokenizer, prefill=True)
    assert (prompt, scored) == (f"{OPEN}<think>\n\n</think>\n\nsure, yes", " and no<|end|>")
    later = dataclasses.replace(record, responses=(chat("a: and no", "u:hello", "a:yes"), chat("a:no")))
    found = encode(later, tokenizer, EncodingPolicy(prefill=True))
    assert found.reason == "unstable_template" and "otherwise once the conversation goes on" in found.detail
    record = pair(chat("u:hello", "a:<think>\nthe quick"), chat("a: fox\n</think>\n\nyes"), chat("a: no</think>\n\nno"))
    prompt, scored, _ = shown(record, tokenizer_of(CHATML), prefill=True, thoughts="unscored")
    assert (prompt, scored) == (f"{OPEN}<think>\nthe quick", "{ fox\n</think>\n\n}yes<|end|>")


def test_bytes_are_prefilled_too():
    record = pair(chat("u:hello", "a:sure, yes"), chat("a: and no"), chat("a: or no"))
    prompt, scored, _ = shown(record, ByteTokenizer(), prefill=True)
    assert (prompt, scored) == ("<bos>user: hello\n\nassistant: sure, yes", " and no<eos>")


def test_a_prefill_that_the_template_trims(tokenizer_of):
    tokenizer = tokenizer_of(CHATML.replace("m.content", "m.content.strip()"))
    record = pair(chat("u:hello", "a: sure, yes "), chat("a:and no "))
    prompt, scored, _ = shown(record, tokenizer, prefill=True)
    assert (prompt, scored) == (f"{OPEN}sure, yes ", "and no<|end|>")


def test_a_prefill_that_the_template_changes_is_refused(tokenizer_of):
    upper = CHATML.replace("m.content", "(m.content | upper if m.role == 'assistant' else m.content)")
    record = pair(chat("u:hello", "a:sure"), chat("a: yes"))
    found = encode(record, tokenizer_of(upper), EncodingPolicy(prefill=True))
    assert isinstance(found, Rejection) and found.reason == "unstable_template"
    with pytest.raises(TemplateError, match="'sure', with which the turn begins, does not stand in"):
        encode_prompt(record.prompt, tokenizer_of(upper), EncodingPolicy(prefill=True))


def test_prompts_to_sample_from(tokenizer_of, tmp_path):
    tokenizer, file = tokenizer_of(THINKS), tmp_path / "prompts.jsonl"
    ask, begun = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "sure,"}
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    rows = [{"prompt": [ask, begun]}, {"prompt": [ask], **off}, {"conversations": [ask, begun]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts, read = read_prompts(str(file), prefill=True, progress=False)
    encoded, _ = encode_prompts(prompts, tokenizer, EncodingPolicy(prefill=True), chat=True)
    thought = "<think>\n\n</think>\n\n"
    assert [tokenizer.decode(prompt.tokens) for prompt in encoded] == [f"{OPEN}{thought}sure,", OPEN + thought, OPEN]
    ids = (encoded[0].tokens.tolist(), tokenizer.encode(" yes<|end|>", continues=True))
    assert decode_response(*ids, tokenizer, chat=True, prefill=True) == " yes"
    prompts, read = read_prompts(str(file), progress=False)
    assert [len(prompt.text) for prompt in prompts] == [1, 1] and read.account["prompts"].found["unread_answer"] == 1


def test_prompts_of_records_are_those_that_would_be_sampled(tokenizer_of):
    tokenizer, policy = tokenizer_of(CHATML.replace("<|end|>", "###")), EncodingPolicy(prefill=True)
    record = pair(chat("u:hello", "a:sure,"), chat("a: yes"))
    tree = encode(record, tokenizer, policy)
    prompt = prompt_of(record, tree.prompt, tokenizer, policy)
    (asked,), _ = encode_prompts([Prompt(record.prompt, "f:1", given=record.given)], tokenizer, policy, chat=True)
    assert (
        (prompt.ending, prompt.begun, prompt.text)
        == (asked.ending, asked.begun, asked.text)
        == ("###", True, record.prompt)
    )
    np.testing.assert_array_equal(prompt.tokens, asked.tokens)
    plain = prompt_of(Record("a", ("b",), (1.0,), "demonstration"), tree.prompt, tokenizer, policy)
    assert (plain.ending, plain.begun) == ("", False)


# The clock


def test_the_clock_stands_still(tokenizer_of, monkeypatch):
    directives = "%d %b %Y|%Y-%m-%d|%A %-d %B, %j|%H:%M"
    tokenizer = tokenizer_of("{{ strftime_now('" + directives + "') }}", date="2024-02-29")
    moment = datetime.datetime(2024, 2, 29)
    assert tokenizer.render(chat("u:hello"), generate=True) == moment.strftime(directives)
    named = tokenizer_of("{% set wanted = '%d %b|' %}{{ strftime_now(wanted + '%Y%%') }}", date="2024-02-29")
    assert named.render(chat("u:hello"), generate=True) == "29 Feb|2024%"
    assert tokenizer.on_day("2024-03-01").render(chat("u:hello"), generate=True).startswith("01 Mar 2024|2024-03-01")
    assert tokenizer.date == "2024-02-29" and tokenizer_of(CHATML).date == ""
    assert tokenizer_of(CHATML).on_day("2024-03-01") is tokenizer_of(CHATML)
    # The template itself is shown as without the clock in front, its first lines and white space included.
    for template in ("\n  {% if true %}\n a{% endif %}", "  {{ 'b' }}\n"):
        plain, clock = (tokenizer_of(template + comment) for comment in ("{# #}", "{# strftime_now #}"))
        assert clock.render(chat("u:hello"), generate=True) == plain.render(chat("u:hello"), generate=True)


def test_what_was_prepared_on_one_day_is_the_same_on_another(tmp_path, monkeypatch):
    folder, file = tmp_path / "tokenizer", tmp_path / "pairs.jsonl"
    folder.mkdir()
    small_tokenizer(folder, DATED)
    turns = lambda role, text: [{"role": role, "content": text}]
    rows = [
        {"prompt": turns("user", f"q{i}"), "chosen": turns("assistant", "yes"), "rejected": turns("assistant", "no")}
        for i in range(9)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(train=str(file), holdout=0.3, tokenizer=str(folder))

    def on(day: str, split: str, directory: str = "data", config: DataConfig = config):
        monkeypatch.setattr(tokenizers, "today", lambda: day)
        tokenizer = load_tokenizer(folder, date=config.date)
        trees = prepare(config, Requirements(2), tokenizer, tmp_path / directory, split=split, progress=False)
        assert len(list(records_of(config, Requirements(2), tokenizer, tmp_path / directory, trees))) == len(trees)
        return trees, tokenizer.decode(trees[0].prompt)

    first, text = on("2026-11-29", "train")
    assert "29 Nov 2026" in text and first.manifest["tokenizer"]["date"] == "2026-11-29"
    assert "was told 2026-11-29: --config.data.date=2026-11-29" in full_account(first)
    again, _ = on("2026-11-30", "train")
    assert again.directory == first.directory and again.content_hash == first.content_hash
    assert "29 Nov 2026" in on("2026-11-30", "eval")[1]  # the other split is told the same day
    assert "30 Nov 2026" in on("2026-11-30", "train", "elsewhere")[1]
    fixed, text = on("2026-12-01", "train", "fixed", DataConfig(**{**vars(config), "date": "2026-11-29"}))
    assert "29 Nov 2026" in text and fixed.content_hash == first.content_hash


def test_today_is_a_day():
    assert chat_templates.today() == datetime.date.today().isoformat()
