"""The tokenizer's files of a Hugging Face folder: those of a run's tokenizer, with the chat template it trained on."""

import json
import shutil
from pathlib import Path

from prefjax.data.tokenizers import PLAIN, ByteTokenizer

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_TEMPLATES = "additional_chat_templates"
# `render_plain` in the language of tokenizer folders.
_PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role + ': ' + message.content }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def write_tokenizer(folder: str | Path, name_or_path: str | Path, chat_template: str | None = None) -> None:
    """Writes the tokenizer that `load_tokenizer` makes of these arguments into an existing folder."""
    if str(name_or_path) == "byte":
        _write_byte_tokenizer(Path(folder))
        chat_template = PLAIN
    for name in _FILES:
        if (Path(name_or_path) / name).is_file():
            shutil.copyfile(Path(name_or_path) / name, Path(folder) / name)
    if (Path(name_or_path) / _TEMPLATES).is_dir() and chat_template is None:
        shutil.copytree(Path(name_or_path) / _TEMPLATES, Path(folder) / _TEMPLATES, copy_function=shutil.copyfile)
    if chat_template is not None:
        text = _PLAIN_TEMPLATE if chat_template == PLAIN else chat_template
        (Path(folder) / "chat_template.jinja").write_text(text)
        (Path(folder) / "chat_template.json").unlink(missing_ok=True)


def _write_byte_tokenizer(folder: Path) -> None:
    """`ByteTokenizer` as byte-level BPE without merges. Unlike there, "<eos>" spelled in a text is the token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    # Byte-level BPE writes bytes as visible characters: Latin-1's own where it has one, the next free ones elsewhere.
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    vocabulary = {chr(byte if byte in visible else 256 + hidden.index(byte)): byte for byte in range(256)}
    names = [ByteTokenizer._NAMES[i] for i in (ByteTokenizer.pad_id, ByteTokenizer.bos_id, ByteTokenizer.eos_id)]
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names[1]} $A", special_tokens=[(names[1], ByteTokenizer.bos_id)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = dict(zip(("pad_token", "bos_token", "eos_token"), names, strict=True))
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
