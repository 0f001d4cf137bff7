"""Adds preference vectors to a policy: arithmetic on checkpoints, written as a Hugging Face folder.

    python -m experiments.combine --base=runs/dpo/sft --output=merged \\
        --vector="0.7 runs/helpful - runs/unhelpful" --vector="0.3 runs/harmless"

The result is base + 0.7 (helpful - unhelpful) + 0.3 (harmless - base). Every policy is a run's workdir (the SFT stage
of a run is WORKDIR/sft) or a Hugging Face folder; all must have the same parameters by name and shape. The base's
tokenizer goes with the result, which `init_from` of a run, transformers and vLLM load. Preference vectors, arXiv
2504.20106: the opposite of a policy is one trained on the same preferences exchanged; without one it is the base (task
vectors, arXiv 2212.04089).
"""

from absl import flags

from experiments.command import start_command
from prefjax.interrupts import StopRequest
from prefjax.policies.combine import combine, parse_vector

_BASE = flags.DEFINE_string("base", None, "The policy to start from: a run's workdir or a Hugging Face folder.")
_VECTORS = flags.DEFINE_multi_string("vector", None, '"COEFFICIENT POLICY" or "COEFFICIENT POLICY - OPPOSITE".')
_OUTPUT = flags.DEFINE_string("output", None, "A new folder for the model.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16"], "Of the files. None: the type of the base's parameters."
)
_SHARD_GB = flags.DEFINE_float("shard_gb", 5.0, "Largest weights file in GB; a larger model is several files.")


@StopRequest()
def main(_) -> None:
    used = combine(
        _BASE.value,
        [parse_vector(text) for text in _VECTORS.value],
        _OUTPUT.value,
        dtype=_DTYPE.value,
        shard_bytes=int(_SHARD_GB.value * 1e9),
    )
    print("\n".join(f"{coefficient:+g}  {source}" for source, coefficient in used.items()))
    print(f"written to {_OUTPUT.value}")


if __name__ == "__main__":
    start_command(main, required=["base", "vector", "output"])
