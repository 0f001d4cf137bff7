"""Scores the responses of a preference file by a reward model, and writes the file with these scores.

    python -m experiments.annotate --workdir=runs/reward --data=samples.jsonl --output=scored.jsonl

`workdir` is that of a run that trained a reward model (configs/quickstart.py:bt). `data` takes what config.data.train
takes: pairs get score_chosen and score_rejected, rankings get scores, single responses a reward; what they had is
replaced. Data methods then choose by them: python -m experiments.curate --methods="rso(count=8, beta=0.5)". Records
that are too long for the run's config.data.encoding are left out and counted.
"""

import dataclasses
from pathlib import Path

from absl import app, flags, logging

from experiments.command import start_command
from prefjax.data.formats import RecordFormat
from prefjax.data.jsonl import write_records
from prefjax.data.records import Record
from prefjax.data.sources import open_sources, parse_sources
from prefjax.interrupts import StopRequest
from prefjax.policies.rewards import open_reward_model

_WORKDIR = flags.DEFINE_string("workdir", None, "The --workdir of a run that trained a reward model.")
_DATA = flags.DEFINE_string("data", None, "Records to score, as config.data.train.")
_OUTPUT = flags.DEFINE_string("output", None, "The .jsonl file to write.")
_TFDS_DIR = flags.DEFINE_string("tfds_dir", "", "Where named datasets are kept; empty: ~/tensorflow_datasets.")
_MANUAL_DIR = flags.DEFINE_string("manual_dir", "", "Files of named datasets, fetched by hand.")


def with_scores(record: Record, scores: tuple[float, ...]) -> Record:
    """The record with these scores in place of those it had; a label stays what it is."""
    if record.kind == "pair" or record.targets in ((0.0,), (1.0,)) and record.kind == "unpaired":
        return dataclasses.replace(record, scores=scores)
    kind = "ranked" if record.kind == "ranked" else "unpaired"
    return dataclasses.replace(record, kind=kind, scores=scores, targets=scores)


@StopRequest()
def main(_) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    output = Path(_OUTPUT.value)
    if output.suffix != ".jsonl":
        raise app.UsageError(f"--output={output} must end in .jsonl")
    sources = parse_sources(_DATA.value)
    if sources[0].share is not None:
        raise app.UsageError(f"--data={_DATA.value}: shares make no sense here, give all records (a + b)")
    scorer = open_reward_model(_WORKDIR.value)
    records, accounts = [], []
    for source in open_sources(sources, data_dir=_TFDS_DIR.value, manual_dir=_MANUAL_DIR.value):
        own, account = source.read(RecordFormat(ties="keep"))
        records += own
        accounts.append(account)
    scored, account = scorer.score(records)
    count = write_records(output, (with_scores(record, scores) for record, scores in scored))
    print(f"{sum(accounts, account)}\n\n{count} records in {output}")


if __name__ == "__main__":
    start_command(main, required=["workdir", "data", "output"])
