"""Records of named vectors on disk: array_record files that TFDS writes in order and reads at random."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    raise ImportError("token trees on disk need tensorflow-datasets (pip install 'prefjax[data]')") from error

_SPLIT = "trees"


class _Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes records in the given order: unshuffled, so that row ids are stable."""

    name = "token_trees"
    VERSION = tfds.core.Version("1.0.0")
    url_infos = (
        None  # nothing is downloaded; TFDS's search for checksums needs importlib_resources, which may be absent
    )

    def __init__(self, records: Iterable[Mapping[str, np.ndarray]], fields: Mapping[str, type], *, data_dir: str):
        self._records, self._fields = records, fields
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="One prompt with K responses per record, as token ids.",
            disable_shuffling=True,
            # Vectors of any length: TFDS reads and writes them several times faster than its `Sequence`.
            features=tfds.features.FeaturesDict(
                {name: tfds.features.Tensor(shape=(None,), dtype=dtype) for name, dtype in self._fields.items()}
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
        yield from enumerate(self._records)

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded, so TFDS need not announce it."""

    def _log_download_done(self) -> None:
        """The partial folder it would announce is about to be renamed."""


def write_records(folder: Path, records: Iterable[Mapping[str, np.ndarray]], fields: Mapping[str, type]) -> None:
    """Writes the records into a subfolder of `folder`, in the given order.

    Args:
      folder: made where it does not exist.
      records: vectors by name, of any length each.
      fields: the dtype of every name.
    """
    tfds.disable_progress_bar()
    try:
        builder = _Records(records, fields, data_dir=str(folder))
        builder.download_and_prepare(file_format="array_record")  # the default format needs TensorFlow
    finally:
        tfds.enable_progress_bar()
    shutil.rmtree(folder / "downloads", ignore_errors=True)  # TFDS makes it, empty


class WrittenRecords(Sequence):
    """What `write_records` wrote into `folder`, by index. Where it is damaged, a ValueError names the folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        with _named(folder):
            builder = tfds.builder_from_directory(str(folder / _Records.name / str(_Records.VERSION)))
            self._source = builder.as_data_source(split=_SPLIT)
            self._length = len(self._source)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        with _named(self._folder):
            record = self._source[index]
            if lacking := [name for name, value in record.items() if not isinstance(value, np.ndarray)]:
                raise ValueError(f"record {index} has no {', '.join(lacking)}")  # TFDS gives None
            return record


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Errors of protobuf, JSON, array_record, TFDS and the system, whichever damage brings up, as one of the folder."""
    try:
        yield
    except Exception as error:
        why = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"{folder} is damaged ({type(error).__name__}: {why}): remove it, and prepare the data again"
        ) from error
