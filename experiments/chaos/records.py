"""Records and files as they should not be, from a seed, and what reading them comes to."""

import copy
import csv
import gzip
import io
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefjax.data.encoding import encode_all
from prefjax.data.formats import Columns, RecordFormat
from prefjax.data.readers import read_records
from prefjax.data.tokenizers import ByteTokenizer

_CHAT = [{"role": "user", "content": "Is the inn open?"}]
_YES, _NO = ([{"role": "assistant", "content": text}] for text in ("Yes.", "No."))
_ROWS: list[dict[str, Any]] = [
    {"prompt": "Hi", "chosen": " yes", "rejected": " no", "score_chosen": 2.0, "score_rejected": 1, "margin": 0.5},
    {"prompt": _CHAT, "chosen": _YES, "rejected": _NO, "weight": 0.5, "probability": 0.9, "id": 7},
    {"chosen": _CHAT + _YES, "rejected": _CHAT + _NO, "spans": [[[0, 2, 1.0]], None], "tools": [{"name": "open"}]},
    {"prompt": "Hi", "completion": " yes", "label": True, "reward": 0.25},
    {"prompt": _CHAT, "completions": ["a", "b", "c"], "scores": [0, 1.5, -1], "id": "x"},
]
_VALUES = (
    *(
        None,
        True,
        -1,
        0,
        2**63,
        10**400,
        1e39,
        -1e308,
        1e-50,
        float("nan"),
        float("inf"),
        [],
        {},
        [[]],
        [None],
        {"a": 1},
    ),
    *("", " ", "\0", "\ud800", "a\udfffb", "\x1b[31mred", "\u202e", "\U0001f600", "</s>", "x" * 5000),
    *("assistant", "\n\nAssistant:", [{"role": "\ud83d", "content": "a"}], [{"role": "user"}], [1, "a"], [0, 1e39, 2]),
)
# Spelled where json.dumps would refuse.
_TEXTS = ("[" * 20_000 + "]" * 20_000, '{"a":' * 3000 + "1" + "}" * 3000, "9" * 5000, "[" * 900, "1e999", "'a'", "nul")
_FORMAT = RecordFormat(margin_field="margin", target_probability_field="probability", spans_field="spans")
_MORE = Columns(record=("id",))


def fuzzed_lines(seed: int, count: int) -> Iterator[bytes]:
    """Lines of a JSONL file: rows of every shape, each with one to three things replaced, left out, added or cut."""
    draw = random.Random(seed)
    for _ in range(count):
        row, raw = copy.deepcopy(draw.choice(_ROWS)), {}
        for change in range(draw.randint(1, 3)):
            holder, key = draw.choice(list(_places(row)))
            kind = draw.random()
            if kind < 0.6:
                holder[key] = copy.deepcopy(draw.choice(_VALUES))
            elif kind < 0.7:
                raw[f"@{change}@"] = draw.choice(_TEXTS)
                holder[key] = f"@{change}@"
            elif kind < 0.8:
                del holder[key]
            elif isinstance(holder, dict):
                holder[draw.choice(("prompt", "completion", "reward", "x", "\ud800", "\x1b[2J"))] = copy.deepcopy(
                    holder[key]
                )
            if not row:
                break
        line = json.dumps(row, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")
        for mark, text in raw.items():
            line = line.replace(f'"{mark}"'.encode(), text.encode())
        yield _damaged(line, draw).replace(b"\n", b" ") if draw.random() < 0.15 else line


def fuzzed_file(folder: Path, seed: int) -> Path:
    """A new file: of a container and an encoding under some name, three times of four damaged."""
    draw = random.Random(seed)
    suffix = draw.choice((".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".tsv", ".arrow", ".parquet"))
    path = folder / f"{seed}{suffix}"
    rows = draw.choices(_ROWS, k=draw.randint(1, 20))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*rows, {"prompt": "né", "completion": "é"}])
    data = lines.encode()
    if draw.random() < 0.8 and suffix in (".json", ".csv", ".tsv", ".arrow", ".parquet"):
        data = _in_suffix(rows, draw, path)
    elif draw.random() < 0.5:
        data = draw.choice(
            (
                *(
                    lines.encode(name)
                    for name in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-32-be", "latin-1")
                ),
                *(
                    json.dumps(rows).encode(),
                    json.dumps(rows, indent=1).encode(),
                    json.dumps(rows[0], indent=1).encode(),
                ),
                *(
                    b"prompt,chosen,rejected\na,b,c\n",
                    b"prompt\tcompletion\nx\ty\n",
                    gzip.compress(data),
                    b"",
                    b"\n" * 9,
                ),
                *(draw.randbytes(500), b"\n" * 200_000 + data, b"\n".join(fuzzed_lines(seed, 5))),
            )
        )
    if suffix.endswith(".gz") and draw.random() < 0.9:
        data = gzip.compress(data)
    path.write_bytes(data if draw.random() < 0.25 else _damaged(data, draw))
    return path


def outcome(path: Path) -> tuple[int, dict[str, int]] | str:
    """How many records of a file became token trees, and why the others did not; or the message that refuses it.

    Raises:
      AssertionError: something went wrong in silence. Any other exception is a fault too.
    """
    try:
        records, account = read_records(path, _FORMAT, more=_MORE, progress=False)
    except ValueError as error:
        assert str(path) in str(error), f"{path} is not named: {error}"
        return str(error)
    trees, encoding = encode_all(records, ByteTokenizer(), progress=False)
    account += encoding
    # What is written and shown of it.
    for text in (
        json.dumps(account.as_dict(), ensure_ascii=False),
        str(account),
        *(record.source for record in records),
    ):
        assert text.encode() and "\x1b" not in text
    numbers = [number for tree in trees for number in (*tree.targets, tree.weight, tree.margin or 0)]
    assert all(map(math.isfinite, numbers)), f"{path}: a number is not finite"
    dropped = account["read"].dropped + account["encode"].dropped
    assert len(trees) + dropped.total() == account["read"].read, f"{path}: some went uncounted"
    return len(trees), dict(dropped)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of everything inside lists and objects."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _damaged(data: bytes, draw: random.Random) -> bytes:
    """Cut, with one bit flipped, with bytes put in or zeroed, or with something appended."""
    at = draw.randrange(len(data) + 1)
    kind = draw.randrange(5)
    if kind == 0:
        return data[:at]
    if kind == 1 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + draw.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b'"', b"}", b"\xe9")) + data[at:]
    return data[:at] + bytes(8) + data[at + 8 :] if kind == 3 else data + draw.randbytes(20)


def _in_suffix(rows: list[dict[str, Any]], draw: random.Random, path: Path) -> bytes:
    """Rows as files of the path's suffix hold them."""
    if path.suffix == ".json":
        return json.dumps(rows, ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, 1))).encode()
    if path.suffix in (".arrow", ".parquet"):
        return _arrow(rows, draw, path)
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t" if path.suffix == ".tsv" else ",")
    names = sorted(set().union(*rows))
    table.writerow(names)
    plain = lambda value: value if isinstance(value, str) else json.dumps(value)
    table.writerows([plain(row[name]) if name in row else "" for name in names] for row in rows)
    return text.getvalue().encode()


def _arrow(rows: list[dict[str, Any]], draw: random.Random, path: Path) -> bytes:
    """Rows of one shape with a column that nobody asks for, of some type."""
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    extra = draw.choice(
        (
            *(pa.array([10**18 + 1], pa.timestamp("ns")), pa.array([2**62], pa.duration("ns")), pa.array([b"\xff"])),
            *(pa.array([2**62], pa.timestamp("ms")), pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int8()))),
            *(pa.array(["a"]).dictionary_encode(), pa.array([{"a": [1.5]}]), pa.nulls(1)),
        )
    )
    row = {name: value for name, value in draw.choice(rows).items() if name not in ("spans", "id", "tools")}
    table = pa.Table.from_pylist([row] * 30).append_column("extra", pa.chunked_array([extra] * 30))
    if path.suffix == ".arrow":
        pyarrow.feather.write_feather(table, path, compression=draw.choice(("uncompressed", "lz4", "zstd")))
    else:
        pyarrow.parquet.write_table(table, path, compression=draw.choice(("none", "gzip", "zstd")))
    return path.read_bytes()
