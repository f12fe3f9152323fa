"""Hugging Face parquet files: rows without their images, and images that are read one row group at a time."""

import bisect
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.readers.records import FileImage, Record, checked_size, decode_base64

_CACHED_GROUPS = 4  # row groups of images that are kept in memory
_BATCH_ROWS, _BATCH_IMAGES = 4096, 16  # rows that are read at a time without and with their images


class ParquetImage:
    """An image of a row; `position` counts within a cell that holds a list."""

    def __init__(self, name: str, table: "Table", row: int, column: str, position: int = 0):
        self.name, self.table, self.row, self.column, self.position = name, table, row, column, position

    def read(self) -> bytes:
        cell = self.table.cell(self.row, self.column)
        image = cell[self.position] if isinstance(cell, list) else cell
        return image_bytes(image, f"{self.table.origin(self.row)}: field {self.column!r}", self.table.folder)

    def __repr__(self) -> str:
        return f"ParquetImage({self.name!r}, {self.table.origin(self.row)})"


class Table:
    """The rows of one split, which may lie in several files."""

    def __init__(self, paths: Sequence[epath.Path]):
        self.paths = [str(path) for path in paths]
        self.folder = str(paths[0].parent)
        self._groups: list[tuple[int, str, int]] = []  # first row, file, row group
        rows = 0
        for path in self.paths:
            with open_file(path) as file:
                for group in range(file.num_row_groups):
                    self._groups.append((rows, path, group))
                    rows += file.metadata.row_group(group).num_rows
        self.num_rows = rows
        self._starts = [start for start, _, _ in self._groups]
        self._cached = functools.lru_cache(_CACHED_GROUPS)(self._read_group)

    def columns(self) -> list[str]:
        return schema(self.paths[0])

    def origin(self, row: int) -> str:
        start, path, _ = self._groups[bisect.bisect_right(self._starts, row) - 1]
        first = next(start for start, other, _ in self._groups if other == path)
        return f"{path}: row {row - first}"

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        """All rows with some of their columns; those that a file lacks are left out. Raises UserError."""
        row = 0
        for path, first, batch in self._batches(columns, _BATCH_ROWS):
            for values in _python(batch.to_pylist, path):
                yield Record(values, f"{path}: row {row - first}")
                row += 1

    def filled(self, column: str) -> list[bool]:
        """Whether each row has a value in the column, without keeping the values. Raises UserError."""
        batches = self._batches((column,), _BATCH_IMAGES)
        return [value for _, _, batch in batches for value in batch.column(0).is_valid().to_pylist()]

    def cell(self, row: int, column: str) -> Any:
        """One value. Raises UserError where the file is damaged."""
        place = bisect.bisect_right(self._starts, row) - 1
        values, offset = self._cached(place, column), row - self._starts[place]
        if offset >= len(values):
            raise UserError(f"{self.origin(row)} is missing, expected as many rows as the footer says")
        return _python(values[offset].as_py, self.origin(row))

    def _batches(self, columns: Sequence[str], rows: int) -> Iterator[tuple[str, int, Any]]:
        """File, number of its first row, and some of its rows. Raises UserError where a file is damaged."""
        count = 0
        for path in self.paths:
            first = count
            try:
                with open_file(path) as file:
                    used = [column for column in columns if column in file.schema_arrow.names]
                    for batch in file.iter_batches(rows, columns=used):
                        yield path, first, batch
                        count += batch.num_rows
            except damage() as error:
                raise UserError(f"{path}: damaged ({type(error).__name__}: {error})") from error
        if count != self.num_rows:
            raise UserError(f"{self.paths[0]}: {count} rows, expected {self.num_rows} as its footer says")

    def _read_group(self, place: int, column: str) -> Any:
        _, path, group = self._groups[place]
        try:
            with open_file(path) as file:
                return file.read_row_group(group, columns=[column]).column(column)
        except damage() as error:
            raise UserError(f"{path}: damaged ({type(error).__name__}: {error})") from error


def _python(convert: Callable[[], Any], origin: str) -> Any:
    """Arrow's values as Python's. Raises UserError for text that is not UTF-8."""
    try:
        return convert()
    except UnicodeDecodeError as error:
        raise UserError(f"{origin}: text is not UTF-8 ({error.reason})") from error


def image_bytes(value: Any, origin: str, folder: str) -> bytes:
    """The encoded image of a cell: bytes, base64, or a struct of bytes and path. Raises UserError."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None and isinstance(value, dict) and isinstance(value.get("path"), str):
        return FileImage(value["path"], folder, value["path"]).read()
    if isinstance(data, str):
        return decode_base64(data, origin)
    if not isinstance(data, bytes):
        raise UserError(f"{origin} is {type(data).__name__}, expected the bytes of an image")
    return checked_size(data, origin)


def content_names(table: Table, column: str) -> list[str]:
    """A name for the image of each row, made of its content: for files that name no images."""
    names = []
    for row in range(table.num_rows):
        cell = table.cell(row, column)
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        names.append(hashlib.sha256(data).hexdigest()[:16] if isinstance(data, bytes) else f"row{row}")
    return names


def schema(path: str) -> list[str]:
    """The names of the columns. Raises UserError for a damaged file."""
    with open_file(path) as file:
        return list(file.schema_arrow.names)


def has_lists(path: str, column: str) -> bool:
    with open_file(path) as file:
        return str(file.schema_arrow.field(column).type).startswith("list")


def open_file(path: str) -> Any:
    """A pyarrow file. Raises UserError where pyarrow is missing or the file is no parquet."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install 'janus_jax[eval]'") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except damage() as error:
        raise UserError(f"{path}: not readable as parquet ({type(error).__name__}: {error})") from error


def damage() -> tuple[type[Exception], ...]:
    """What pyarrow raises for damaged files."""
    import pyarrow

    return (pyarrow.ArrowException, OSError, UnicodeDecodeError)
