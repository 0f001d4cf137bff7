"""Applies data methods to preference records and writes JSONL with an account: what became of every record, and why.

    python -m experiments.curate --data=samples.jsonl --output=pairs.jsonl \\
        --methods="rso(count=8, beta=0.5) | margin_window(at_least=0.5)"

`data` takes what `config.data.train` takes: files, named datasets, mixtures. docs/data_methods.md lists the methods.
The same text as `config.data.methods` applies them while a run prepares its training data; write a file to look at the
result, to change held-out records too, or to score them by other programs. Beside OUTPUT lies OUTPUT.account.json: the
sources' fingerprints, the methods with their options, and counts in, out, and by reason.
"""

import json
from pathlib import Path

from absl import app, flags

from experiments.command import start_command
from prefjax.data.account import Account
from prefjax.data.formats import RecordFormat
from prefjax.data.jsonl import write_records
from prefjax.data.methods.sequences import apply_methods, columns_of, parse_methods, provenance
from prefjax.data.sources import open_sources, parse_sources, take_shares
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
    steps, sources = parse_methods(_METHODS.value), parse_sources(_DATA.value)
    opened = open_sources(sources, data_dir=_TFDS_DIR.value, manual_dir=_MANUAL_DIR.value)
    fingerprints = [source.fingerprint().hex() for source in opened]
    made, accounts = [], []
    for stream, source in enumerate(opened):
        records, account = source.read(RecordFormat(ties=_TIES.value), more=columns_of(steps))
        made.append(list(apply_methods(records, steps, account, stream=stream)))
        accounts.append(account)
    if sources[0].share is not None:
        made, drawn = take_shares(made, sources, _MIXTURE_SEED.value)
        accounts += drawn
    account = sum(accounts, Account())
    count = write_records(output, (record for records in made for record in records))
    facts = {
        "sources": [
            {"name": source.name, "share": source.share, "sha256": print_}
            for source, print_ in zip(sources, fingerprints, strict=True)
        ],
        "mixture_seed": _MIXTURE_SEED.value,
        "methods": provenance(steps, account),
        "records": count,
        "account": account.as_dict(),
    }
    path = output.with_name(output.name + ".account.json")
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    print(f"{account}\n\n{count} records in {output}, their account in {path}")


if __name__ == "__main__":
    start_command(main, required=["data", "methods", "output"])
