"""Files that hold the state of a run: written whole or not at all, and named where they are damaged."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def naming(path: str | Path, partial: str | Path | None = None) -> Iterator[None]:
    """An OSError inside that names no file, as one of a full disk does, or the one that becomes this, names this."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, None if partial is None else str(partial)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def staying(folder: str | Path) -> Iterator[None]:
    """Makes a folder that everything inside writes to. At the end it must be the same one still: had it been taken away
    meanwhile, whoever wrote into it next would have made another, without what was there before.

    Raises:
      OSError: it is not.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    there = folder.stat()
    yield
    if not folder.is_dir() or not os.path.samestat(there, folder.stat()):
        raise OSError(
            f"{folder} was taken away in the middle of the run, and what was written since may be lost: have it back, "
            "or delete what is there now; the same command then goes on from what there is"
        )


def write_whole(path: str | Path, text: str) -> None:
    """Writes a file that is there with its whole text or as it was before, whenever the process is killed."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path, partial):
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises ValueError, with the file's name, where it holds none."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(values).__name__}")
    return values


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The JSON objects of a file that has one a line; empty where there is none. What is no whole one is left out, as
    the last line of a process that was killed."""
    rows = []
    for line in Path(path).read_bytes().splitlines() if Path(path).is_file() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def read_or_put_aside(path: Path) -> dict[str, Any]:
    """The JSON object of a file that is begun anew where it is damaged: then, and where there is none, an empty one."""
    try:
        return read_object(path) if path.exists() else {}
    except ValueError as error:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        print(f"{error}. It is begun anew; what was there is {aside}", file=sys.stderr, flush=True)
        return {}
