"""Applies data methods to preference records and writes JSONL with an account: what became of every record, and why.

    python -m experiments.curate --data=samples.jsonl --output=pairs.jsonl \\
        --methods="rso(count=8, beta=0.5) | margin_window(at_least=0.5)"

`data` takes what `config.data.train` takes: files, named datasets, mixtures. docs/data_methods.md lists the methods.
The same text as `config.data.methods` applies them while a run prepares its training data; write a file to look at the
result, to change held-out records too, or to score them by other programs. Beside OUTPUT lies OUTPUT.account.json: the
sources' fingerprints, the methods with their options, and counts in, out, and by reason.
"""

from pathlib import Path

from absl import app, flags

from experiments.command import start_command
from prefjax.data.curation import account_of, curate_file
from prefjax.interrupts import StopRequest

_DATA = flags.DEFINE_string("data", None, "Records to read, as config.data.train.")
_METHODS = flags.DEFINE_string("methods", None, "name(option=value, ...) | name(...), see docs/data_methods.md.")
_OUTPUT = flags.DEFINE_string("output", None, "The .jsonl file to write.")
_MIXTURE_SEED = flags.DEFINE_integer("mixture_seed", 0, "Which records a mixture with shares takes.")
_TIES = flags.DEFINE_enum("ties", "drop", ["drop", "keep"], "Pairs whose two scores are equal.")
_TFDS_DIR = flags.DEFINE_string("tfds_dir", "", "Where named datasets are kept; empty: ~/tensorflow_datasets.")
_MANUAL_DIR = flags.DEFINE_string("manual_dir", "", "Files of named datasets, fetched by hand.")


@StopRequest()
def main(_) -> None:
    output = Path(_OUTPUT.value)
    if output.suffix != ".jsonl":
        raise app.UsageError(f"--output={output} must end in .jsonl")
    count, account = curate_file(
        _DATA.value,
        _METHODS.value,
        output,
        ties=_TIES.value,
        mixture_seed=_MIXTURE_SEED.value,
        data_dir=_TFDS_DIR.value,
        manual_dir=_MANUAL_DIR.value,
    )
    print(f"{account}\n\n{count} records in {output}, their account in {account_of(output)}")


if __name__ == "__main__":
    start_command(main, required=["data", "methods", "output"])
