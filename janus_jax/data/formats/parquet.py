"""Hugging Face parquet: images as struct<bytes, path>, paths or lists of them, class labels, messages, or text."""

import dataclasses
from collections.abc import Iterator

from janus_jax.data.dropped_samples import DroppedSample, Reason
from janus_jax.data.formats.arrow_types import class_names, column_kinds
from janus_jax.data.formats.base import FileFormat, ReadItem, Unit, name
from janus_jax.data.formats.columns import Columns, row_items
from janus_jax.data.formats.pictures import Pictures
from janus_jax.errors import UserError

BATCH_ROWS = 16  # Number of rows read at a time, since a row group may hold gigabytes of images.
UNREADABLE = -1  # The `start` of the unit of a file whose footer cannot be read.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(FileFormat):
    """Units are row groups. A key is file name, row group and row."""

    suffixes = (".parquet",)

    tasks: tuple[str, ...] = ("generate",)  # Tasks of captions; conversations and texts have their own.
    question: str = "Describe the image in detail."
    image_column: str = ""
    messages_column: str = ""
    text_column: str = ""
    image_root: tuple[str, ...] = ()
    follow_links: str = "inside"

    def __post_init__(self) -> None:
        self._pictures()

    def units(self) -> list[Unit]:
        units = []
        for path in self.files():
            try:
                file = _library().ParquetFile(path)
            except _damage():
                units.append(Unit(path, UNREADABLE))
                continue
            with file:
                self._columns(file, path).captions(self.tasks, self.question)
                groups = [Unit(path, group, group + 1) for group in range(file.num_row_groups)]
                units += groups or [Unit(path)]  # So that a file without rows is noted.
        return units

    def read(self, unit: Unit) -> Iterator[ReadItem]:
        key, row, pictures = f"{name(unit.path)}/{max(unit.start, 0)}", 0, self._pictures()
        try:
            with _library().ParquetFile(unit.path) as file:
                columns = self._columns(file, unit.path)
                names = class_names(file.schema_arrow).get(columns.caption, ())
                captions = columns.captions(self.tasks, self.question)
                groups = list(range(unit.start, unit.stop))
                for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns.used):
                    values = {column: batch.column(column) for column in columns.used}
                    for i in range(batch.num_rows):
                        # Rows are converted one by one; `to_pylist` would hold a second copy of every image.
                        try:
                            content = {column: array[i].as_py() for column, array in values.items()}
                        except UnicodeDecodeError as error:
                            yield DroppedSample(f"{key}/{row}", Reason.BAD_TEXT, f"text is not UTF-8 ({error.reason})")
                        else:
                            yield from columns.notes
                            yield from row_items(f"{key}/{row}", content, columns, captions, names, pictures)
                        row += 1
        except _damage() as error:
            yield DroppedSample(key, Reason.CORRUPT, f"{type(error).__name__}: {error}")

    def _pictures(self) -> Pictures:
        return Pictures.parse(self.image_root, self.follow_links)

    def _columns(self, file, path: str) -> Columns:
        names, kinds = file.schema_arrow.names, column_kinds(file.schema_arrow)
        columns = Columns.choose(kinds, self.image_column, self.messages_column, self.text_column, name(path))
        unique = tuple(column for column in columns.suspects if names.count(column) == 1)
        columns = dataclasses.replace(columns, suspects=unique)
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
