"""Chat templates of the kinds that published models have, each with a tokenizer folder that holds its special tokens.

Written for these tests after the forms of the families that their names recall; none is a copy of a published file.
"""

import dataclasses
import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from prefjax.data.tokenizers import HuggingFaceTokenizer


@dataclasses.dataclass(frozen=True)
class Family:
    """A chat template and what is known of it.

    Attributes:
      template: Jinja.
      end: token that ends a response.
      special: further special tokens of the tokenizer, with those of `end`, `bos` and `eos`.
      bos: token that begins every sequence, or None.
      eos: the tokenizer's own.
      system: whether a system turn is "taken", "refused" or "wanted".
      alternates: whether a template raises where the roles do not alternate.
      adds: text that the template puts before the last response and none asked for (an empty thought).
      left: what may stand in the template's own render after the response.
      parts: whether it is given content as a list of parts.
    """

    template: str
    end: str
    special: tuple[str, ...] = ()
    bos: str | None = None
    eos: str = "<|endoftext|>"
    system: str = "taken"
    alternates: bool = False
    adds: str = ""
    left: tuple[str, ...] = ()
    parts: bool = False


def _turns(before: str, after: str, ask: str, content: str = "m.content", role: str = "m.role", first: str = "") -> str:
    """Every turn as BEFORE with its role for %s, the content, AFTER; at the end what asks for a response."""
    head = before.replace("%s", "' + " + role + " + '")
    return (
        f"{first}{{% for m in messages %}}{{{{ '{head}' + {content} + '{after}' }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '{ask}' }}}}{{% endif %}}"
    )


_REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}"
_ALTERNATES = (
    "{% set ns = namespace(at=0) %}{% for m in messages %}{% if m.role != 'system' %}"
    "{% if (m.role == 'user') != (ns.at % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.at = ns.at + 1 %}{% endif %}{% endfor %}"
)
_MODEL = "('model' if m.role == 'assistant' else m.role)"
_CHATML = _turns("<|im_start|>%s\\n", "<|im_end|>\\n", "<|im_start|>assistant\\n")
_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
_INSTRUCTED = (  # the system turn stands in the first question
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = '<<SYS>>\\n' + m.content + '\\n<</SYS>>\\n\\n' %}{% elif m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + ns.system + m.content.strip() + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_BRACKETED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
_NAMED = (  # user and assistant by words, no token of their own
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}{% elif m.role == 'user' %}"
    "{{ 'USER: ' + m.content + ' ' }}{% else %}{{ 'ASSISTANT: ' + m.content + eos_token + '\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
_HEADINGS = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\\n\\n' }}{% elif m.role == 'user' %}"
    "{{ '### Instruction:\\n' + m.content + '\\n\\n' }}{% else %}"
    "{{ '### Response:\\n' + m.content + eos_token + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
_THOUGHTS_GONE = (  # an empty thought in the last turn, none in earlier ones
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_PARTS = (  # reads content as text or as a list of parts
    "{% for m in messages %}{{ '<start_of_turn>' + " + _MODEL + " + '\\n' }}{% if m.content is string %}"
    "{{ m.content | trim }}{% else %}{% for part in m.content %}{% if part.type == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part.text | trim }}{% endif %}{% endfor %}{% endif %}{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "{{ '<|User|>' + m.content }}{% else %}{{ '<|Assistant|>' + m.content + eos_token }}{% endif %}{% endfor %}"
)
_COMMAND = (
    "{{ bos_token }}{% for m in messages %}{{ '<|START|>' }}{% if m.role == 'system' %}{{ '<|SYSTEM|>' }}"
    "{% elif m.role == 'user' %}{{ '<|USER|>' }}{% else %}{{ '<|CHATBOT|>' }}{% endif %}{{ m.content + '<|END|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|START|><|CHATBOT|>' }}{% endif %}"
)
_GEMMA = dict(end="<end_of_turn>", special=("<start_of_turn>",), bos="<bos>", eos="<eos>")
_OLD_LLAMA = dict(end="</s>", bos="<s>", eos="</s>")

FAMILIES = {
    "chatml": Family(_CHATML, "<|im_end|>", _CHATML_TOKENS),
    "chatml, default system": Family(
        "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}" + _CHATML,
        "<|im_end|>",
        _CHATML_TOKENS,
    ),
    "chatml, its end is eos": Family(_CHATML, "<|im_end|>", _CHATML_TOKENS, eos="<|im_end|>"),
    "chatml, always asks": Family(
        _CHATML.replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}"),
        "<|im_end|>",
        _CHATML_TOKENS,
        left=("<|im_start|>assistant",),
    ),
    "chatml, never asks": Family(_CHATML.split("{% if add")[0], "<|im_end|>", _CHATML_TOKENS),
    "chatml, trims": Family(_CHATML.replace("m.content", "m.content | trim"), "<|im_end|>", _CHATML_TOKENS),
    "chatml, wants a system turn": Family(
        _REFUSES.replace("== 'system'", "!= 'system'") + _CHATML, "<|im_end|>", _CHATML_TOKENS, system="wanted"
    ),
    "an empty thought": Family(_THOUGHTS_GONE, "<|im_end|>", _CHATML_TOKENS, adds="<think>\n\n</think>\n\n"),
    "a thought opened": Family(
        _CHATML.replace("assistant\\n'", "assistant\\n<think>\\n'"), "<|im_end|>", _CHATML_TOKENS
    ),
    "instructed": Family(_ALTERNATES + _INSTRUCTED, **_OLD_LLAMA, alternates=True),
    "bracketed": Family(_REFUSES + _ALTERNATES + _BRACKETED, **_OLD_LLAMA, system="refused", alternates=True),
    "bracketed tokens": Family(
        _REFUSES + _BRACKETED.replace("' ' + m.content", "m.content"),
        **_OLD_LLAMA,
        special=("[INST]", "[/INST]"),
        system="refused",
    ),
    "headers": Family(
        _turns(
            "<|header|>%s<|/header|>\\n\\n",
            "<|eot|>",
            "<|header|>assistant<|/header|>\\n\\n",
            content="m.content | trim",
            first="{{ bos_token }}",
        ),
        "<|eot|>",
        ("<|header|>", "<|/header|>"),
        bos="<|begin|>",
        eos="<|end_of_text|>",
    ),
    "model for assistant": Family(
        _REFUSES
        + _ALTERNATES
        + _turns(
            "<start_of_turn>%s\\n",
            "<end_of_turn>\\n",
            "<start_of_turn>model\\n",
            content="m.content | trim",
            role=_MODEL,
            first="{{ bos_token }}",
        ),
        **_GEMMA,
        system="refused",
        alternates=True,
    ),
    "text or parts": Family(_PARTS, **{**_GEMMA, "special": ("<start_of_turn>", "<image>")}),
    "parts alone": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% for part in m.content %}"
        "{% if part.type == 'image' %}{{ '<image>' }}{% else %}{{ part.text }}{% endif %}{% endfor %}"
        "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "<|im_end|>",
        (*_CHATML_TOKENS, "<image>"),
        parts=True,
    ),
    "role tokens": Family(
        _turns("<|%s|>\\n", "<|end|>\\n", "<|assistant|>\\n"),
        "<|end|>",
        ("<|user|>", "<|assistant|>", "<|system|>"),
        bos="<s>",
        eos="<|endoftext|>",
    ),
    "role words, eos ends": Family(
        _turns("<|%s|>\\n", "' + eos_token + '\\n", "<|assistant|>\\n"), "</s>", bos="<s>", eos="</s>"
    ),
    "separated roles": Family(
        _turns("<|im_start|>%s<|im_sep|>", "<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
        "<|im_end|>",
        (*_CHATML_TOKENS, "<|im_sep|>"),
    ),
    "names": Family(_NAMED, **_OLD_LLAMA),
    "headings": Family(_HEADINGS, **_OLD_LLAMA),
    "role markers": Family(
        _DEEPSEEK + "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}",
        "<|eos|>",
        ("<|User|>", "<|Assistant|>"),
        bos="<|bos|>",
        eos="<|eos|>",
    ),
    "role markers, a thought opened": Family(
        _DEEPSEEK + "{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}",
        "<|eos|>",
        ("<|User|>", "<|Assistant|>"),
        bos="<|bos|>",
        eos="<|eos|>",
    ),
    "start and end of each": Family(
        _COMMAND, "<|END|>", ("<|START|>", "<|SYSTEM|>", "<|USER|>", "<|CHATBOT|>"), bos="<BOS>", eos="<|END|>"
    ),
    "start of role": Family(
        _turns(
            "<|start_of_role|>%s<|end_of_role|>",
            "<|end_of_text|>\\n",
            "<|start_of_role|>assistant<|end_of_role|>",
        ),
        "<|end_of_text|>",
        ("<|start_of_role|>", "<|end_of_role|>"),
        eos="<|end_of_text|>",
    ),
    "one title for each": Family(
        _turns(
            "GPT4 %s: ", "<|end_of_turn|>", "GPT4 Assistant:", role="('Assistant' if m.role == 'assistant' else 'User')"
        ),
        "<|end_of_turn|>",
        bos="<s>",
        eos="</s>",
    ),
    "two ends": Family(
        _turns("<|%s|>\\n", "<|end|>' + eos_token + '\\n", "<|assistant|>\\n"),
        "<|end|>",
        ("<|user|>", "<|assistant|>", "<|system|>"),
        left=("<|endoftext|>",),
    ),
    "no end": Family(_turns("%s: ", "\\n", "assistant:"), **_OLD_LLAMA),
    "channels": Family(
        "{% for m in messages %}{{ '<|start|>' + m.role }}"
        "{% if m.role == 'assistant' %}{{ '<|channel|>final' }}{% endif %}"
        "{{ '<|message|>' + m.content }}{{ '<|return|>' if m.role == 'assistant' and loop.last else '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        "<|return|>",
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
        eos="<|return|>",
        adds="<|channel|>final<|message|>",
    ),
}


def family_tokenizer(folder: Path, family: Family) -> HuggingFaceTokenizer:
    """One token for each byte and each special token, so that nothing is lost and every end has its id."""
    named = {"eos_token": family.eos, "unk_token": family.eos} | ({"bos_token": family.bos} if family.bos else {})
    special = list(dict.fromkeys([*named.values(), family.end, *family.special]))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({text: i for i, text in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    if family.bos:
        first = (family.bos, tokenizer.token_to_id(family.bos))
        tokenizer.post_processor = processors.TemplateProcessing(f"{family.bos} $A", special_tokens=[first])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": family.template, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return HuggingFaceTokenizer(folder)
