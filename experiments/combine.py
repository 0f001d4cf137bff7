"""Adds preference vectors to a policy: arithmetic on checkpoints, written as a Hugging Face folder.

    python -m experiments.combine --base=runs/dpo/sft --output=merged \\
        --vector="0.7 runs/helpful - runs/unhelpful" --vector="0.3 runs/harmless"

The result is base + 0.7 (helpful - unhelpful) + 0.3 (harmless - base). Every policy is a run's workdir (the SFT stage
of a run is WORKDIR/sft) or a Hugging Face folder; all must have the same parameters by name and shape. The base's
tokenizer goes with the result, which `init_from` of a run, transformers and vLLM load. Preference vectors, arXiv
2504.20106: the opposite of a policy is one trained on the same preferences exchanged; without one it is the base (task
vectors, arXiv 2212.04089).
"""

import json
import re
from pathlib import Path

import ml_collections
from absl import app, flags, logging

from experiments.door import origin, run_config
from prefjax.data.prepare import DataConfig
from prefjax.models import huggingface
from prefjax.training.arithmetic import Policy, PreferenceVector, combine
from prefjax.training.config import RowsConfig, StageConfig
from prefjax.training.loop import LoopConfig
from prefjax.training.optimizers import OptimizerConfig

_BASE = flags.DEFINE_string("base", None, "The policy to start from: a run's workdir or a Hugging Face folder.")
_VECTORS = flags.DEFINE_multi_string("vector", None, '"COEFFICIENT POLICY" or "COEFFICIENT POLICY - OPPOSITE".')
_OUTPUT = flags.DEFINE_string("output", None, "A new folder for the model.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16"], "Of the files. None: the type of the base's parameters."
)
_SHARD_GB = flags.DEFINE_float("shard_gb", 5.0, "Largest weights file in GB; a larger model is several files.")
_VECTOR = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s+(\S.*?)(?:\s+-\s+(\S.*))?")


def open_policy(source: str) -> Policy:
    """The policy of a run, of a run's SFT stage, or of a Hugging Face folder.

    Raises:
      ValueError: it is none of these.
    """
    if huggingface.is_checkpoint(source):
        config = StageConfig(
            objective="sft",
            loss={},
            data=DataConfig(tokenizer=source),
            rows=RowsConfig(),
            model=huggingface.read_config(source),
            optimizer=OptimizerConfig(),
            train=LoopConfig(steps=1),
        )
        return Policy(source, config)
    path = Path(source)
    for workdir, stage in ((path, "stage"), (path.parent, "sft")):
        if (workdir / "config.json").is_file() and (stage == "stage" or path.name == "sft"):
            run = run_config(ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text())))
            if (config := getattr(run, stage)) is not None:
                return Policy(source, config)
    raise ValueError(f"{source} is no run's workdir, no sft folder in one, and no Hugging Face folder")


def parse_vector(text: str) -> PreferenceVector:
    """ "0.5 runs/a" or "0.5 runs/a - runs/b". Raises ValueError where it is not of this form."""
    found = _VECTOR.fullmatch(text.strip())
    if not found:
        raise ValueError(f'vector={text!r}: write "COEFFICIENT POLICY" or "COEFFICIENT POLICY - OPPOSITE"')
    opposite = None if found[3] is None else open_policy(found[3])
    return PreferenceVector(float(found[1]), open_policy(found[2]), opposite)


def main(_) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    base = open_policy(_BASE.value)
    run = Path(_BASE.value).parent if Path(_BASE.value).name == "sft" else Path(_BASE.value)
    used = combine(
        base,
        [parse_vector(text) for text in _VECTORS.value],
        _OUTPUT.value,
        like=origin(str(run)),
        dtype=_DTYPE.value,
        shard_bytes=int(_SHARD_GB.value * 1e9),
    )
    print("\n".join(f"{coefficient:+g}  {source}" for source, coefficient in used.items()))
    print(f"written to {_OUTPUT.value}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["base", "vector", "output"])
    app.run(main)
