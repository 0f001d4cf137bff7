"""What an entry of the registry says: where a dataset lies, under which licence, and how its rows become records."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Row = Mapping[str, Any]

FORMATS = ("jsonl", "json", "csv", "parquet")
_HUB = "https://huggingface.co"


@dataclasses.dataclass(frozen=True)
class File:
    """One published file, gzipped or not.

    path    its place in the source repository, and below `manual_dir`/<dataset>; absolute for a file of one's own
    url     where it is downloaded from; None: it is on this machine already
    format  "jsonl", one object per line; "json", a list of objects or an object of such lists; "csv"; "parquet"
    """

    path: str
    url: str | None
    format: str

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {FORMATS}, got {self.format!r}")

    @property
    def origin(self) -> str:
        """Where a person finds it."""
        return self.url or self.path


@dataclasses.dataclass(frozen=True)
class HubParquet:
    """One split as the Hugging Face hub converts it to Parquet, in as many files as its API lists.

    For repositories whose own file names are not fixed. Below `manual_dir`/<dataset> the files lie as on the branch
    refs/convert/parquet: default/<split>/0000.parquet, ...
    """

    repository: str
    split: str

    @property
    def path(self) -> str:
        return f"default/{self.split}/*.parquet"

    @property
    def listing(self) -> str:
        """A JSON list of URLs (https://huggingface.co/docs/dataset-viewer/parquet)."""
        return f"{_HUB}/api/datasets/{self.repository}/parquet/default/{self.split}"

    @property
    def origin(self) -> str:
        return f"{_HUB}/datasets/{self.repository}/tree/refs%2Fconvert%2Fparquet/default/{self.split}"


@dataclasses.dataclass(frozen=True)
class Split:
    """The files of a split, and, where files hold more, the values that mark its rows: {column: values}."""

    files: tuple[File | HubParquet, ...]
    where: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One reading of a dataset: the part of the name after the slash.

    shape    "pairs", "rankings" or "unpaired": see `prefjax.data.formats`
    columns  those that `records` reads; a file that lacks one has changed, and is refused
    records  raw rows of one split, in order -> rows of the shapes that `prefjax.data.formats` accepts
    """

    shape: str
    splits: Mapping[str, Split]
    columns: tuple[str, ...]
    records: Callable[[Iterator[Row]], Iterator[Row]]
    name: str = "default"

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Columns that are read, those that only choose rows included."""
        chosen_by = (column for split in self.splits.values() for column in split.where)
        return tuple(dict.fromkeys((*self.columns, *chosen_by)))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One named dataset. `version` is raised when `records` changes, so that what was built before is built anew."""

    name: str
    title: str
    homepage: str
    licence: str
    paper: str
    variants: tuple[Variant, ...]
    note: str = ""
    version: str = "1.0.0"

    def variant(self, name: str) -> Variant | None:
        return next((variant for variant in self.variants if variant.name == name), None)

    def full_name(self, variant: Variant) -> str:
        """What a user writes before the colon."""
        return self.name if len(self.variants) == 1 else f"{self.name}/{variant.name}"


def hub_file(repository: str, path: str, *, format: str = "", revision: str = "main") -> File:
    """A file of a dataset repository on the Hugging Face hub; its suffix says the format where none is given."""
    format = format or Path(path.removesuffix(".gz")).suffix[1:]
    return File(path, f"{_HUB}/datasets/{repository}/resolve/{revision}/{path}", format)


def hub_page(repository: str) -> str:
    return f"{_HUB}/datasets/{repository}"


class Reading(NamedTuple):
    """How the rows of a variant become records, one each or none; the other fields as of `Variant`.

    record  a raw row -> a row that `prefjax.data.formats` accepts, or None: it is left out. In its place None: the
            columns as they are
    """

    columns: tuple[str, ...] = ("chosen", "rejected")
    record: Callable[[Row], Row | None] | None = None
    shape: str = "pairs"
    name: str = "default"

    def variant(self, splits: Mapping[str, Split | File | HubParquet]) -> Variant:
        """The variant that these splits, each with its one file or several, are read into."""
        own = {split: files if isinstance(files, Split) else Split((files,)) for split, files in splits.items()}
        return Variant(self.shape, own, self.columns, self._records, self.name)

    def _records(self, rows: Iterator[Row]) -> Iterator[Row]:
        record = self.record or (lambda row: {column: row[column] for column in self.columns})
        return (made for made in map(record, rows) if made is not None)


def hub_dataset(
    name: str,
    title: str,
    repository: str,
    *,
    licence: str = "see the source",
    paper: str = "",
    note: str = "",
    splits: Mapping[str, str | File] | tuple[str, ...] = ("train",),
    reads: Reading | None = None,
) -> Dataset:
    """A dataset repository on the Hugging Face hub, in one variant.

    Args:
        splits: the file of each; names alone: as the hub converts them to Parquet.
        reads: None: pairs of whole chats, whose prompt is what they share.
    """
    files: dict[str, Split | File | HubParquet] = {}
    if isinstance(splits, Mapping):
        files |= {split: hub_file(repository, at) if isinstance(at, str) else at for split, at in splits.items()}
    else:
        files |= {split: HubParquet(repository, split) for split in splits}
    return Dataset(name, title, hub_page(repository), licence, paper, ((reads or Reading()).variant(files),), note)


def local_files(name: str, splits: Mapping[str, Iterable[str | Path] | str | Path]) -> Dataset:
    """Preference files of one's own as a dataset that the builder takes: rows stay as they are.

    Training needs no builder for them, `data.train` reads files; this is for those who want TFDS's splits and slices.
    """

    def file(path: str | Path) -> File:
        path = Path(path).absolute()
        return File(str(path), None, "parquet" if path.suffix == ".parquet" else "jsonl")

    own = {
        split: Split(tuple(file(path) for path in ([paths] if isinstance(paths, str | Path) else paths)))
        for split, paths in splits.items()
    }
    variant = Variant("any", own, (), records=iter)
    return Dataset(name, name, "", "your own", "", (variant,))


# Rows -> rows: what several entries have in common.


def user(text: str, system: str | None = None) -> list[dict[str, str]]:
    """A question as a chat, so that the tokenizer's chat template is used; an empty system message is none."""
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": text}]


def pair(prompt: Any, first: Any, second: Any, preference: int | float) -> Row:
    """A comparison: the first response wins where `preference` > 0, the second where it is < 0, and 0 is a tie.

    Its size becomes the score of the winner against 0, so it can serve as a margin; a tie is then found and counted.
    """
    chosen, rejected = (second, first) if preference < 0 else (first, second)
    scores = {"score_chosen": float(abs(preference)), "score_rejected": 0.0}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **scores}


def labelled(first: str, second: str) -> Reading:
    """Rows of an instruction and two responses, the columns named here; label 1 or 2 is the better one."""

    def record(row: Row) -> Row:
        chosen, rejected = (first, second) if row["label"] == 1 else (second, first)
        return {"prompt": user(row["instruction"]), "chosen": row[chosen], "rejected": row[rejected]}

    return Reading(("instruction", first, second, "label"), record)
