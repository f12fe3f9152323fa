"""A prepared folder of TensorFlow Datasets (TFDS) in ArrayRecord format. TensorFlow itself is not needed."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from janus_jax.data.dropped_samples import DroppedSample, Reason
from janus_jax.data.formats.base import FileFormat, ReadItem, Unit
from janus_jax.data.formats.columns import Columns, Kind, row_items
from janus_jax.data.formats.image_folder import read_table
from janus_jax.data.formats.pictures import Pictures
from janus_jax.errors import UserError

UNIT_ROWS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsFolder(FileFormat):
    """Units are ranges of examples. Images stay encoded, and class labels become names."""

    split: str = "train"
    tasks: tuple[str, ...] = ("generate",)
    question: str = "Describe the image in detail."
    image_column: str = ""
    text_column: str = ""
    class_names: str = ""  # As for ImageNet folders, if the labels are synsets.

    def units(self) -> list[Unit]:
        units = []
        for path in self.input:
            examples, columns, _ = self._open(path)
            columns.captions(self.tasks, self.question)
            count = len(examples)
            units += [Unit(path, i, min(i + UNIT_ROWS, count)) for i in range(0, count, UNIT_ROWS)]
        if not units:
            raise UserError(f"--input={','.join(self.input)}: split {self.split!r} has no examples")
        return units

    def read(self, unit: Unit) -> Iterator[ReadItem]:
        examples, columns, names = self._open(unit.path)
        captions = columns.captions(self.tasks, self.question)
        prefix = "/".join(epath.Path(unit.path).parts[-2:])
        for i in range(unit.start, unit.stop):
            key = f"{prefix}/{self.split}/{i}"
            try:
                example = examples[i]
                row = {name: _plain(example[name]) for name in columns.used}
            except Exception as error:  # A bad checksum, a bad message and a truncated file raise different types.
                detail = f"{type(error).__name__}: {error}; dataset_info.json promises {len(examples)} examples"
                yield DroppedSample(key, Reason.CORRUPT, detail)
                continue
            if all(value is None for value in row.values()):
                yield DroppedSample(key, Reason.CORRUPT, f"an empty example, of {len(examples)}")
            else:
                yield from columns.notes
                yield from row_items(key, row, columns, captions, names, Pictures())

    def _open(self, path: str) -> tuple[Any, Columns, list[str]]:
        """The examples, their columns, and the names of the classes. Raises UserError."""
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise UserError("--format=tfds needs tensorflow-datasets: pip install 'janus_jax[data]'") from error
        if not (epath.Path(path) / "dataset_info.json").exists():
            raise UserError(f"--input={path}: not a prepared TFDS folder (no dataset_info.json)")
        try:
            builder = tfds.builder_from_directory(path)
            kinds = {column: _kind(tfds.features, feature) for column, feature in builder.info.features.items()}
            columns = Columns.choose(kinds, self.image_column, "", self.text_column, path)
            decoders = {columns.image: tfds.decode.SkipDecoding()} if columns.image else None
            examples = builder.as_data_source(self.split, decoders=decoders)
        except UserError:
            raise
        except Exception as error:  # TFDS raises many types for damaged folders and unknown splits.
            raise UserError(f"--input={path}: cannot be read as TFDS ({type(error).__name__}: {error})") from error
        feature = builder.info.features[columns.caption] if columns.caption else None
        names: list[str] = list(getattr(feature, "names", None) or [])
        if self.class_names and names:
            table = read_table(self.class_names, "class_names")
            missing = [name for name in names if name not in table]
            if missing:
                raise UserError(f"--class_names={self.class_names}: has no line for the class {missing[0]}")
            names = [table[name] for name in names]
        return examples, columns, names


def _kind(features: Any, feature: Any) -> Kind:
    """Kind of a column by its TFDS feature."""
    if isinstance(feature, features.Image | features.Video | features.Audio):
        return Kind.MEDIA
    if isinstance(feature, features.Sequence):
        return _kind(features, feature.feature)
    return Kind.TEXT if isinstance(feature, features.Text) else Kind.OTHER


def _plain(value: Any) -> Any:
    """A plain Python value; TFDS gives labels as NumPy integers."""
    return int(value) if isinstance(value, np.integer) else value
