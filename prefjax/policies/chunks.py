"""Files that take long to make: written chunk by chunk, and continued exactly where a killed command was."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefjax.data.account import Account
from prefjax.data.jsonl import SUFFIXES, write_rows
from prefjax.options import differences
from prefjax.state_files import read_object, write_whole


class Chunk(NamedTuple):
    """Rows of the file that is made, what is counted of them, and what became of the records they are made of."""

    rows: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int]
    account: Account = Account()


def write_chunks(
    path: Path,
    starts: Sequence[int],
    make: Callable[[int], Chunk],
    *,
    identity: Mapping[str, Any],
    about: Mapping[str, Any],
    resumed: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Writes rows to `path` (.jsonl or .jsonl.gz) and what made them to `path`.manifest.json, whose content it returns.

    What is finished lies in `path`.partial, one line a chunk. The same call goes on after them, so the file becomes
    byte for byte what an undisturbed call writes.

    Args:
      starts: what `make` is called with, in order, for those chunks that are not there.
      identity: JSON-able facts on which the rows depend.
      about: further facts for the manifest; to its `account` those of the chunks are added.
      resumed: is told how many chunks are there already.

    Raises:
      ValueError: `path` has another suffix, or belongs to a call with another identity; names what differs.
    """
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: the suffix must be one of {', '.join(SUFFIXES)}")
    identity = json.loads(json.dumps(identity))
    manifest_path, partial = (path.with_name(path.name + end) for end in (".manifest.json", ".partial"))
    if path.exists() and not manifest_path.exists():
        raise ValueError(f"{path} exists and has no manifest: it is another's, give a new --output")
    if path.exists():
        manifest = read_object(manifest_path)
        _require_same(path, manifest["identity"], identity)
        return manifest
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = _begin(partial, identity)
    resumed(len(chunks))
    with partial.open("a") as file:
        for start in starts[len(chunks) :]:
            made = make(start)
            values = {"rows": made.rows, "counts": made.counts, "account": made.account.as_dict()}
            # Through JSON, so that a chunk is the same whether it was made now or read.
            chunks.append(json.loads(line := json.dumps(values)))
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    counts = dict(sum((Counter(chunk["counts"]) for chunk in chunks), Counter()))
    account = sum((Account.of(chunk["account"]) for chunk in chunks), Account.of(about.get("account", {})))
    rows = [row for chunk in chunks for row in chunk["rows"]]
    manifest = {"identity": identity, "rows": len(rows), "counts": counts, **about, "account": account.as_dict()}
    write_whole(manifest_path, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    write_rows(path, rows)
    partial.unlink()
    return json.loads(json.dumps(manifest))


def _begin(partial: Path, identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chunks that are there, without a last line that was cut off; the file is left ready for the next."""
    lines = partial.read_text().splitlines(keepends=True) if partial.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if whole:
        _require_same(partial, json.loads(whole[0]), identity)
    else:
        whole = [json.dumps(identity) + "\n"]
    if whole != lines:
        partial.write_text("".join(whole))
    return [json.loads(line) for line in whole[1:]]


def _require_same(path: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [f"{name}: {old!r} there, {new!r} now" for name, old, new in differences(there, now)]
    if changed:
        raise ValueError(f"{path} was made otherwise ({'; '.join(changed)}): give a new --output, or remove it")
