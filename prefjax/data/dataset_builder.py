"""The one TFDS builder: an entry of the registry becomes array_record files of records, without TensorFlow."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    raise ImportError("named datasets need tensorflow-datasets (pip install 'prefjax[data]')") from error

from prefjax.data.dataset_entry import Dataset, File, HubParquet, Row, Split, Variant
from prefjax.data.dataset_files import read_raw


class PreferenceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Downloads the files of one variant with TFDS's download manager, or takes them from a folder, and writes records.

    A record is stored as the JSON text of a row that `prefjax.data.formats` accepts, in the order of the source.
    """

    name = "preferences"
    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # no checksums are registered; TFDS's search for them needs importlib_resources

    def __init__(self, dataset: Dataset, variant: Variant, *, data_dir: str | None, manual_dir: str | None = None):
        self._dataset, self._variant = dataset, variant
        self._manual = None if not manual_dir else Path(manual_dir).expanduser() / dataset.name
        self.name, self.VERSION = dataset.name, tfds.core.Version(dataset.version)
        config = tfds.core.BuilderConfig(name=variant.name, description=dataset.title)
        super().__init__(data_dir=data_dir, config=config)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self._dataset.title}. Licence: {self._dataset.licence}. {self._dataset.note}".strip(),
            homepage=self._dataset.homepage,
            citation=self._dataset.paper,
            features=tfds.features.FeaturesDict({"record": tfds.features.Text()}),
            disable_shuffling=True,  # row ids are places in the source
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files = [file for split in self._variant.splits.values() for file in split.files]
        urls = [file.url for file in files if isinstance(file, File) and file.url]
        if urls and self._manual is None:
            dl_manager.download(urls)  # side by side; below, the manager finds each in its cache
        return {
            name: self._generate_examples(split, [(file, self._fetch(file, dl_manager)) for file in split.files])
            for name, split in self._variant.splits.items()
        }

    def _fetch(self, file: File | HubParquet, dl_manager: tfds.download.DownloadManager) -> list[Path]:
        if isinstance(file, File) and file.url is None:
            return [Path(file.path)]
        if self._manual is not None:
            found = sorted(self._manual.glob(file.path))
            if not found:
                raise FileNotFoundError(
                    f"{self._dataset.name}: no file {self._manual / file.path}. Download {file.origin} and put it into "
                    f"{(self._manual / file.path).parent}/, or leave data.manual_dir empty to have it downloaded"
                )
            return found
        if isinstance(file, File):
            return [Path(dl_manager.download(file.url))]
        urls = json.loads(Path(dl_manager.download(file.listing)).read_text())
        return [Path(path) for path in dl_manager.download(urls)]

    def _generate_examples(
        self, split: Split, fetched: list[tuple[File | HubParquet, list[Path]]]
    ) -> Iterator[tuple[int, dict[str, str]]]:
        for number, record in enumerate(self._variant.records(self._rows(split, fetched))):
            yield number, {"record": json.dumps(record)}

    def _rows(self, split: Split, fetched: list[tuple[File | HubParquet, list[Path]]]) -> Iterator[Row]:
        for file, paths in fetched:
            for path in paths:
                format = file.format if isinstance(file, File) else "parquet"
                for row in read_raw(path, format, self._variant.all_columns):
                    if all(row.get(column) in values for column, values in split.where.items()):
                        yield row


def build(
    dataset: Dataset, variant: Variant, *, data_dir: str | None = None, manual_dir: str | None = None
) -> tfds.core.DatasetBuilder:
    """The built variant, found in `data_dir` or built there: `.as_data_source(split)` reads records at random.

    Args:
        data_dir: TFDS's folder; None means its own, ~/tensorflow_datasets or the environment's TFDS_DATA_DIR.
        manual_dir: a folder that holds <dataset>/<path> for every file of the entry; None downloads them.
    Raises:
        FileNotFoundError: a file is missing from `manual_dir`; says which, where it comes from and where it belongs.
        ValueError: a file has not the columns that the entry reads.
    """
    builder = PreferenceBuilder(dataset, variant, data_dir=data_dir, manual_dir=manual_dir)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        # Nothing happens where it is built already. The default format needs TensorFlow.
        builder.download_and_prepare(file_format="array_record")
    finally:
        tfds.enable_progress_bar()
    return tfds.builder_from_directory(str(builder.data_dir))
