"""Files of text, gzipped or not, read piece by piece; and what a file is that does not hold what its name says."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

LINE = 16 * 2**20  # bytes of one line, or of one row; longer ones are not looked at
EXPANSION = 200  # times its own size, and one line more, that an archive may expand to
_OFTEN = 2**16  # bytes between looks at how far the file was read
ICONV = "convert it, as with iconv -f ENCODING -t UTF-8"

# How files of other formats begin, and the way out.
_MAGIC = {
    b"\x1f\x8b": "gzip: name it with .gz at the end, as .jsonl.gz",
    b"PAR1": "Parquet: name it .parquet",
    b"ARROW1": "Arrow: name it .arrow",
    b"\xff\xff\xff\xff": "an Arrow stream: name it .arrow",
    b"FEA1": "Feather of version 1: write it again by a newer library, as .feather",
    b"PK\x03\x04": "a ZIP archive, as spreadsheets (.xlsx) are too: unpack it, or save a sheet as CSV",
    b"(\xb5/\xfd": "compressed by Zstandard: unpack it, or compress it by gzip",
    b"\xfd7zXZ": "compressed by xz: unpack it, or compress it by gzip",
    b"BZh": "compressed by bzip2: unpack it, or compress it by gzip",
    b"\x80\x04\x95": "a pickle, which can run code of its own: save it as Parquet or JSON lines",
    b"\x80\x05\x95": "a pickle, which can run code of its own: save it as Parquet or JSON lines",
}


class TextFile:
    """Bytes of a file whose name may end in .gz, with a progress bar. Use it in a `with` block.

    Raises:
        ValueError: from every method, where the archive is damaged or expands beyond `EXPANSION`.
    """

    def __init__(self, path: Path, bar: tqdm):
        self.path, self._bar, self._taken, self._looked = path, bar, 0, 0
        bar.unit, bar.unit_scale, bar.total = "B", True, path.stat().st_size

    def __enter__(self) -> "TextFile":
        self._raw = self.path.open("rb")
        self._file: Any = gzip.open(self._raw) if self.path.suffix == ".gz" else self._raw
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def read(self, size: int) -> bytes:
        """The next bytes; empty at the end."""
        return self._checked(self._file.read, size)

    def lines(self) -> Iterator[tuple[bytes, int]]:
        """Lines and how many bytes they have; of one beyond `LINE` the beginning alone."""
        while line := self._checked(self._file.readline, LINE + 1):
            size, rest = len(line), line
            while not rest.endswith(b"\n") and (rest := self._checked(self._file.readline, LINE)):
                size += len(rest)
            yield line, size

    def _checked(self, read: Any, size: int) -> bytes:
        try:
            data = read(size)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{self.path} is damaged: {error}") from error
        self._taken += len(data)
        if self._taken - self._looked >= _OFTEN or not data:
            self._looked, at = self._taken, self._raw.tell()
            self._bar.update(at - self._bar.n)
            if self._taken > EXPANSION * at + LINE:
                raise ValueError(
                    f"{self.path} expands to more than {EXPANSION} times its size: unpack it first if it is sound"
                )
        return data


def what_begins(beginning: bytes) -> str:
    """What a file is that is not text, by its first bytes, and the way out; empty: that cannot be told."""
    return next((said for magic, said in _MAGIC.items() if beginning.startswith(magic)), "")


def refuse_binary(path: Path, beginning: bytes) -> None:
    """Raises ValueError where a file that should be text in UTF-8 is none; says what it is instead.

    Args:
        beginning: its first line, or its first kilobytes.
    """
    if kind := what_begins(beginning):
        raise ValueError(f"{path} is {kind}")
    if not (encoding := json.detect_encoding(beginning)).startswith("utf-8"):
        raise ValueError(f"{path} is {encoding[:6].upper()}, not UTF-8: {ICONV}")
