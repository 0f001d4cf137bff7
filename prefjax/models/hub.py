"""Models of the Hugging Face hub, by `hf:owner/name` or `hf:owner/name@revision`, as folders of this machine."""

import functools
import re
from pathlib import Path

PREFIX = "hf:"
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model")  # neither code nor weights in other forms
_TWICE = ("*/*.safetensors", "consolidated*.safetensors")  # the same weights as other programs want them


def local(source: str | Path) -> str:
    """The folder of a model that the name asks for, downloaded into the cache of the library huggingface_hub where it
    is not there yet; any other source as it is.

    Raises:
      ValueError: it is no name of a model, or could not be downloaded; says why.
    """
    source = str(source)
    return _downloaded(source) if source.startswith(PREFIX) else source


@functools.cache
def _downloaded(source: str) -> str:
    name, _, revision = source.removeprefix(PREFIX).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{source!r}: write hf:owner/name, or hf:owner/name@revision")
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise ImportError(f"{source}: this needs the library huggingface_hub: pip install huggingface_hub") from None
    try:
        return huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=_FILES, ignore_patterns=_TWICE
        )
    except Exception as error:  # of the network, of the hub, of the disk: all of several libraries
        why = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{source} could not be downloaded ({type(error).__name__}: {why}): correct the name, `hf auth login` "
            f"where its owner asks for that, or without a network give a folder, as `hf download {name}` makes one"
        ) from error
