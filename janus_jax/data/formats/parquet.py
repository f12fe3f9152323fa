"""Hugging Face parquet: images as struct<bytes, path> or lists of them, class labels, messages, or text."""

import dataclasses
import json
from collections.abc import Iterator

from janus_jax.data.dropped_samples import DroppedSample, Reason
from janus_jax.data.formats.base import FileFormat, RecordOrDrop, Unit, files, name
from janus_jax.data.formats.columns import Columns, row_items
from janus_jax.errors import UserError

BATCH_ROWS = 16  # Number of rows read at a time, since a row group may hold gigabytes of images.
UNREADABLE = -1  # The `start` of the unit of a file whose footer cannot be read.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(FileFormat):
    """Units are row groups. A key is file name, row group and row."""

    tasks: tuple[str, ...] = ("generate",)  # Tasks of captions; conversations and texts have their own.
    question: str = "Describe the image in detail."
    image_column: str = ""
    messages_column: str = ""
    text_column: str = ""
    image_root: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.image_root) > 1:
            raise UserError(f"--image_root={','.join(self.image_root)}: --format=parquet takes one folder")

    def units(self) -> list[Unit]:
        units = []
        for path in files(self.input, (".parquet",)):
            try:
                file = _library().ParquetFile(path)
            except _damage():
                units.append(Unit(path, UNREADABLE))
                continue
            with file:
                self._columns(file, path).captions(self.tasks, self.question)
                units += [Unit(path, group, group + 1) for group in range(file.num_row_groups)]
        return units

    def read(self, unit: Unit) -> Iterator[RecordOrDrop]:
        key, row = f"{name(unit.path)}/{max(unit.start, 0)}", 0
        try:
            with _library().ParquetFile(unit.path) as file:
                columns, labels = self._columns(file, unit.path), _class_names(file)
                captions = columns.captions(self.tasks, self.question)
                batches = file.iter_batches(BATCH_ROWS, row_groups=[unit.start], columns=columns.used)
                for batch in batches:
                    values = {column: batch.column(column) for column in columns.used}
                    for i in range(batch.num_rows):
                        # Rows are converted one by one; `to_pylist` would hold a second copy of every image.
                        root = self.image_root[0] if self.image_root else ""
                        names = labels.get(columns.caption, ())
                        try:
                            content = {column: array[i].as_py() for column, array in values.items()}
                        except UnicodeDecodeError as error:
                            yield DroppedSample(f"{key}/{row}", Reason.BAD_FIELD, f"text is not UTF-8 ({error.reason})")
                        else:
                            yield from row_items(f"{key}/{row}", content, columns, captions, names, root)
                        row += 1
        except _damage() as error:
            yield DroppedSample(key, Reason.CORRUPT, f"{type(error).__name__}: {error}")

    def _columns(self, file, path: str) -> Columns:
        names = file.schema_arrow.names
        columns = Columns.choose(names, self.image_column, self.messages_column, self.text_column, name(path))
        twice = [column for column in columns.used if names.count(column) > 1]
        if twice:
            raise UserError(f"{name(path)}: {names.count(twice[0])} columns are named {twice[0]!r}, expected one")
        return columns


def _library():
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("reading parquet needs pyarrow: pip install 'janus_jax[data]'") from error
    return pyarrow.parquet


def _damage() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowException, OSError, UnicodeDecodeError)


def _class_names(file) -> dict[str, list[str]]:
    """Names of the classes of each column, which Hugging Face keeps only in the metadata of the schema."""
    try:
        features = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(label) for label in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
