"""Records of named vectors on disk: array_record files, written in order and read at random by TFDS."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

try:
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
except ImportError as error:
    raise ImportError("token trees on disk need tensorflow-datasets (pip install 'prefjax[data]')") from error

_NAME, _VERSION, _SPLIT = "token_trees", "1.0.0", "trees"


def write_file(path: Path, records: Iterable[Mapping[str, np.ndarray]], fields: Mapping[str, type]) -> int:
    """Writes the records into one file, in the given order, and returns how many bytes they are.

    TFDS's own writers would hold up to 1 GB of records in memory.

    Args:
      records: vectors by name, of any length each.
      fields: the dtype of every name.

    Raises:
      OSError: the disk takes no more.
    """
    features = _features(fields)
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")  # one record a group: read at random
    size = 0
    try:
        for record in records:
            # Deterministic, since the fields' order is otherwise drawn by each process.
            data = serializer.get_tf_example(features.encode_example(record)).SerializeToString(deterministic=True)
            with _a_full_disk_named(path):
                writer.write(data)
            size += len(data)
    finally:
        with _a_full_disk_named(path):
            writer.close()
    return size


@contextmanager
def _a_full_disk_named(path: Path) -> Iterator[None]:
    """array_record writes past Python, and has another error for it."""
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise OSError(f"{path.parent}: prepared data cannot be written ({said}): make room for it") from error


def join_files(folder: Path, files: Sequence[tuple[Path, int, int]], fields: Mapping[str, type]) -> None:
    """Makes the records of files a dataset inside `folder`, where the files are moved.

    Args:
      files: path, number of records and of bytes of each, in order; none of them empty.
    """
    place = folder / _NAME / _VERSION
    shutil.rmtree(folder / _NAME, ignore_errors=True)
    place.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=place, dataset_name=_NAME, split=_SPLIT, filetype_suffix="array_record"
    )
    for index, (path, _, _) in enumerate(files):
        path.rename(template.sharded_filepath(shard_index=index, num_shards=len(files)))
    split = tfds.core.SplitInfo(
        name=_SPLIT,
        shard_lengths=[count for _, count, _ in files],
        num_bytes=sum(size for _, _, size in files),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=place,
        features=_features(fields),
        split_infos=[split],
        check_data=False,
        description="One prompt with K responses per record, as token ids.",
        disable_shuffling=True,
    )


class WrittenRecords(Sequence):
    """What `join_files` put together in `folder`, by index. Where it is damaged, a ValueError names the folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        with _named(folder):
            builder = tfds.builder_from_directory(str(folder / _NAME / _VERSION))
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


def _features(fields: Mapping[str, type]) -> tfds.features.FeaturesDict:
    # Vectors of any length: TFDS reads and writes them several times faster than its `Sequence`.
    return tfds.features.FeaturesDict(
        {name: tfds.features.Tensor(shape=(None,), dtype=dtype) for name, dtype in fields.items()}
    )
