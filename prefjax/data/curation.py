"""Files of records made by data methods, with an account of what became of every record, and why."""

import json
from pathlib import Path
from typing import Any

from prefjax.data.account import Account
from prefjax.data.formats import RecordFormat
from prefjax.data.jsonl import write_records
from prefjax.data.methods.sequences import apply_methods, columns_of, parse_methods, provenance
from prefjax.data.sources import open_sources, parse_sources, take_shares
from prefjax.state_files import write_whole


def curate_file(
    given: str,
    methods: str,
    path: Path,
    *,
    ties: str = "drop",
    mixture_seed: int = 0,
    data_dir: str = "",
    manual_dir: str = "",
) -> tuple[int, Account]:
    """Writes what the methods make of some sources to `path`, and to `path`.account.json the sources' fingerprints, the
    methods with their options, and counts in, out, and by reason.

    Args:
      given: as `data.train`.
      methods: as `data.methods`, "name(option=value, ...) | name(...)".
      ties: pairs whose two scores are equal: "drop" or "keep".
      mixture_seed: which records a mixture with shares takes.
      data_dir, manual_dir: as of `OpenSource`.

    Returns:
      how many records there are, and the account.

    Raises:
      ValueError: a method or a source that does not exist, or as `write_rows`.
    """
    steps, sources = parse_methods(methods), parse_sources(given)
    opened = open_sources(sources, data_dir=data_dir, manual_dir=manual_dir)
    fingerprints = [source.fingerprint().hex() for source in opened]
    made, accounts = [], []
    for stream, source in enumerate(opened):
        records, account = source.read(RecordFormat(ties=ties), more=columns_of(steps))
        made.append(list(apply_methods(records, steps, account, stream=stream)))
        accounts.append(account)
    if sources[0].share is not None:
        made, drawn = take_shares(made, sources, mixture_seed)
        accounts += drawn
    account = sum(accounts, Account())
    count = write_records(path, (record for records in made for record in records))
    facts: dict[str, Any] = {
        "sources": [
            {"name": source.name, "share": source.share, "sha256": print_}
            for source, print_ in zip(sources, fingerprints, strict=True)
        ],
        "mixture_seed": mixture_seed,
        "methods": provenance(steps, account),
        "records": count,
        "account": account.as_dict(),
    }
    write_whole(account_of(path), json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return count, account


def account_of(path: Path) -> Path:
    """Where the account of a file lies that `curate_file` wrote."""
    return path.with_name(path.name + ".account.json")
