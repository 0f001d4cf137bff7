"""Hugging Face tokenizer folders built on the spot, with chat templates of their own."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from prefjax.data.tokenizers import HuggingFaceTokenizer

CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
# Renders BOS itself, ends turns with EOS, and refuses system messages.
WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[Q] ' + m.content + ' [A]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}"
    "{% endfor %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}assistant>{% endif %}"
)
KINDS = ("bytes", "metaspace", "prepend")


def small_tokenizer(
    folder: Path, template: str | None = None, kind: str = "bytes", adds_bos: bool = True, **load
) -> HuggingFaceTokenizer:
    """A tokenizer trained on two lines: <unk> 0, <s> 1, </s> 2, <|start|> 3, <|end|> 4, then pieces of text.

    kind  "bytes" as GPT-2's; "metaspace" and "prepend" mark a word's start as SentencePiece does, in the two ways that
          tokenizer.json files write it.
    """
    special = ["<unk>", "<s>", "</s>", "<|start|>", "<|end|>"]
    text = ["the quick brown fox user assistant says yes and no to everything", "[Q] hello [A] yes, sure"]
    if kind == "bytes":
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        # Words are split while training only in the kind that has, as Llama's, no pre-tokenizer.
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = sorted(set("".join(text)) | {"\n", "▁", "?", "!", ">", "(", ")", "x"})
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    if kind == "prepend":
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        start = decoders.Strip(" ", 1, 0)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), start])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    config |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return HuggingFaceTokenizer(folder, **load)


# Lists tools in the system's turn and writes calls of them, as templates of models that use tools do.
TOOLS = (
    "{% if tools %}{{ '<|start|>system\n' }}{% for t in tools %}{{ t | tojson + '\n' }}{% endfor %}{{ '<|end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|start|>' + m.role + '\n' }}"
    "{% if m.tool_call_id %}{{ '[' + m.tool_call_id + '] ' }}{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ 'CALL ' + c.function.name + ' ' + c.function.arguments | tojson }}{% endfor %}"
    "{{ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
