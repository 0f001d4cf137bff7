"""Compares the logits of a Hugging Face folder with those of transformers, for checkpoints that nobody here has.

    python -m experiments.parity --model=SmolLM2-135M

Needs torch beside prefjax's requirements, in an environment of its own. transformers computes in float64, which both
sides' float32 is held against, on random tokens; exit status 1 where ours are off by more than --tolerance.
"""

import sys
from collections.abc import Callable

import numpy as np
from absl import app, flags

from experiments.command import start_command
from prefjax.models import plain_logits
from prefjax.models.huggingface import load_huggingface, read_config

_MODEL = flags.DEFINE_string("model", None, "A Hugging Face folder with config.json and safetensors.")
_ROWS = flags.DEFINE_integer("rows", 2, "Sequences.", lower_bound=1)
_LENGTH = flags.DEFINE_integer(
    "length", 128, "Tokens of each; above its sliding window to see that too.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the tokens.", lower_bound=0)
_TOLERANCE = flags.DEFINE_float(
    "tolerance", 1e-5, "Largest difference, as a share of the largest logit.", lower_bound=0
)

# (tokens [R, T] int64, dtype "float32" or "float64") -> logits [R, T, V]
Logits = Callable[[np.ndarray, str], np.ndarray]


def compare(folder: str, tokens: np.ndarray, theirs: Logits) -> dict[str, float]:
    """Largest differences of logits on tokens [R, T], as shares of the largest logit in float64.

    Returns:
      `ours`: float32 here against their float64; `theirs`: their float32 against their float64; `logit`: the largest.
    """
    exact, plain = (theirs(tokens, dtype) for dtype in ("float64", "float32"))
    config, params = load_huggingface(folder, dtype="float32", param_dtype="float32")
    largest = float(np.abs(exact).max())
    off = lambda logits: float(np.abs(np.asarray(logits, np.float64) - exact).max()) / largest
    return {"ours": off(plain_logits(config, params, tokens.astype(np.int32))), "theirs": off(plain), "logit": largest}


def of_transformers(folder: str) -> Logits:
    """The side of transformers. Raises ImportError, with the way out, where there is no torch."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("experiments.parity needs torch: pip install torch in an environment of its own") from error
    from transformers import AutoModelForCausalLM

    def logits(tokens: np.ndarray, dtype: str) -> np.ndarray:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
        )
        with torch.no_grad():
            return model.eval()(torch.from_numpy(tokens)).logits.numpy()

    return logits


def main(_) -> None:
    try:
        theirs = of_transformers(_MODEL.value)
    except ImportError as error:
        raise app.UsageError(str(error)) from error
    vocabulary = read_config(_MODEL.value).vocab_size
    tokens = np.random.default_rng(_SEED.value).integers(vocabulary, size=(_ROWS.value, _LENGTH.value))
    found = compare(_MODEL.value, tokens, theirs)
    print(f"largest logit {found['logit']:.3g}; against float64, as shares of it: ours {found['ours']:.1e}, ", end="")
    print(f"float32 of transformers {found['theirs']:.1e}")
    if not found["ours"] <= _TOLERANCE.value:
        sys.exit(f"{_MODEL.value}: ours are off by more than --tolerance={_TOLERANCE.value:g}")


if __name__ == "__main__":
    start_command(main, required=["model"])
