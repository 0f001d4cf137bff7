"""Scores the responses of a preference file by a reward model, or another scorer, and writes it with these scores.

    python -m experiments.annotate --workdir=runs/reward --data=samples.jsonl --output=scored.jsonl
    python -m experiments.annotate --scorer="command:python my_rewards.py" --data=samples.jsonl --output=scored.jsonl

`workdir` is that of a run that trained a reward model (configs/quickstart.py:bt); `scorer` is any that
experiments.generate takes, and reward:WORKDIR the same again. `data` takes what config.data.train takes: pairs get
score_chosen and score_rejected, rankings get scores, single responses a reward; what they had is replaced. Data methods
then choose by them: python -m experiments.curate --methods="rso(count=8, beta=0.5)". Records that are too long for the
run's config.data.encoding are left out and counted. OUTPUT.manifest.json holds what it was made of; what is done is
kept in OUTPUT.partial, and the same command continues.
"""

from pathlib import Path

from absl import app, flags

from experiments.command import command_line, start_command
from prefjax.data.account import Account
from prefjax.data.formats import RecordFormat
from prefjax.data.sources import open_all
from prefjax.interrupts import StopRequest
from prefjax.policies.annotate import SAMPLED, annotate_file, load_record_scorer
from prefjax.policies.open import open_mesh
from prefjax.policies.scorers import SCORERS

_WORKDIR = flags.DEFINE_string("workdir", "", "The --workdir of a run that trained a reward model.")
_SCORER = flags.DEFINE_string("scorer", "", f"In its place: {SCORERS}.")
_DATA = flags.DEFINE_string("data", None, "Records to score, as config.data.train.")
_OUTPUT = flags.DEFINE_string("output", None, "The .jsonl file to write.")
_TFDS_DIR = flags.DEFINE_string("tfds_dir", "", "Where named datasets are kept; empty: ~/tensorflow_datasets.")
_MANUAL_DIR = flags.DEFINE_string("manual_dir", "", "Files of named datasets, fetched by hand.")


@StopRequest()
def main(_) -> None:
    output = Path(_OUTPUT.value)
    if output.suffix != ".jsonl":
        raise app.UsageError(f"--output={output} must end in .jsonl")
    if bool(_WORKDIR.value) == bool(_SCORER.value):
        raise app.UsageError("give --workdir, of a run that trained a reward model, or --scorer")
    sources = open_all(_DATA.value, data_dir=_TFDS_DIR.value, manual_dir=_MANUAL_DIR.value)
    scorer = _SCORER.value or f"reward:{_WORKDIR.value}"
    score = load_record_scorer(scorer, open_mesh())
    records, accounts, read = [], [], {}
    for source in sources:
        read[source.name] = source.fingerprint().hex()
        own, account = source.read(RecordFormat(ties="keep"), more=SAMPLED)
        records += own
        accounts.append(account)
    about = {
        "command": command_line("annotate"),
        "account": sum(accounts, Account()).as_dict(),
    }
    manifest = annotate_file(records, score, output, identity={"sources": read, "scorer": scorer}, about=about)
    print(f"{Account.of(manifest['account'])}\n\n{manifest['rows']} records in {output}")


if __name__ == "__main__":
    start_command(main, required=["data", "output"])
