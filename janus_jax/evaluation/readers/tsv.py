"""VLMEvalKit's TSV files, also MMBench's own: one row per question, images as base64 or as the index of another row.

Cells are quoted like those of CSV: they may hold newlines, tabs and doubled quote marks. Images stay in the file until
they are read: only the place of each row is kept.
"""

import csv
import hashlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation.readers.records import Record, decode_base64

MAX_ROW_BYTES = 256 << 20
REFERENCE_LENGTH = 64  # An image cell of at most so many characters is the index of the row that has the image.
IMAGE_COLUMN = "image"


class TsvImage(NamedTuple):
    """An image of a row."""

    name: str
    path: str
    start: int  # first byte of the row that holds the image
    length: int  # of that row
    column: int
    position: int  # in the cell, where it is a list of images

    def read(self) -> bytes:
        origin = f"{self.path}: image {self.name}"
        try:
            with epath.Path(self.path).open("rb") as file:
                file.seek(self.start)
                cell = next(csv.reader([file.read(self.length).decode()], delimiter="\t"))[self.column]
        except (OSError, UnicodeDecodeError, csv.Error, StopIteration, IndexError) as error:
            raise UserError(f"{origin} cannot be read, the file has changed ({type(error).__name__})") from error
        if cell.startswith("["):
            cell = Record({"image": cell}, origin).literal_list("image")[self.position]
        return decode_base64(str(cell), origin)


class Row(NamedTuple):
    record: Record  # all cells but the image
    images: tuple[TsvImage, ...]


def read_rows(path: epath.Path) -> list[Row]:
    """The rows of a TSV file with the columns that its first line names. Raises UserError naming file and row."""
    header: list[str] = []
    rows: list[tuple[Record, str, tuple[TsvImage, ...]]] = []
    for number, (start, length, cells) in enumerate(_cells(path)):
        if not header:
            header = _checked_header(path, cells)
            continue
        if len(cells) != len(header):
            raise UserError(f"{path}: row {number} has {len(cells)} cells, expected {len(header)} as in the first line")
        values: dict[str, Any] = dict(zip(header, cells, strict=True))
        cell = values.pop(IMAGE_COLUMN, "")
        images = _images(str(path), start, length, header.index(IMAGE_COLUMN), cell) if cell else ()
        rows.append((Record(values, f"{path}: row {number}"), cell if not images else "", images))
    if not rows:
        raise UserError(f"{path}: no rows, expected one per question")
    of_index = {record.values["index"]: images for record, _, images in rows}
    return [Row(record, images or _referred(record, cell, of_index)) for record, cell, images in rows]


def read_header(path: epath.Path) -> list[str]:
    """The names of the columns."""
    for _, _, cells in _cells(path):
        return _checked_header(path, cells)
    raise UserError(f"{path}: empty, expected a first line that names the columns")


def _cells(path: epath.Path) -> Iterator[tuple[int, int, list[str]]]:
    """First byte, length and cells of each row, the first line included."""
    csv.field_size_limit(MAX_ROW_BYTES)  # The default of 131,072 characters is too small for images.
    place = 0

    def lines(file: Any) -> Iterator[str]:
        nonlocal place
        while line := file.readline(MAX_ROW_BYTES + 1):
            if len(line) > MAX_ROW_BYTES:
                raise UserError(f"{path}: a line at byte {place} is longer than {MAX_ROW_BYTES} bytes")
            text = line.decode("utf-8-sig" if place == 0 else "utf-8")
            place += len(line)
            yield text

    try:
        with path.open("rb") as file:
            reader, start = csv.reader(lines(file), delimiter="\t", strict=True), 0
            for cells in reader:
                if cells:
                    yield start, place - start, cells
                start = place
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: a line at byte {place} is not UTF-8 ({error.reason})") from error
    except csv.Error as error:
        raise UserError(f"{path}: the row at byte {place} cannot be read ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _checked_header(path: epath.Path, cells: list[str]) -> list[str]:
    twice = sorted({name for name in cells if cells.count(name) > 1})
    if "index" not in cells or twice:
        raise UserError(
            f"{path}: columns {', '.join(cells)[:200]}, expected 'index' among them and each name once"
            + (f" ({twice[0]!r} is repeated)" if twice else "")
        )
    return cells


def _images(path: str, start: int, length: int, column: int, cell: str) -> tuple[TsvImage, ...]:
    """The images of a cell that holds them itself; none for the index of another row."""
    if len(cell) <= REFERENCE_LENGTH and not cell.startswith("["):
        return ()
    name = hashlib.sha256(cell.encode()).hexdigest()[:16]
    if not cell.startswith("["):
        return (TsvImage(name, path, start, length, column, 0),)
    count = len(Record({"image": cell}, f"{os.path.basename(path)}: row at byte {start}").literal_list("image"))
    return tuple(TsvImage(f"{name}_{place + 1}", path, start, length, column, place) for place in range(count))


def _referred(record: Record, cell: str, of_index: dict[str, tuple[TsvImage, ...]]) -> tuple[TsvImage, ...]:
    if cell and not of_index.get(cell):
        raise UserError(f"{record.origin}: field 'image' is {cell!r}, expected base64 or the index of a row with one")
    return of_index.get(cell, ())
