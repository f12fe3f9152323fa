"""JSON Lines, uncompressed or compressed, in units that can be read on their own."""

from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from janus_jax.data.formats import streams
from janus_jax.data.formats.base import Unit

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
UNIT_BYTES = 64 << 20


class Line(NamedTuple):
    """A line, and its offset in the text as UTF-8. `data` is None for a line that is too long."""

    offset: int
    data: bytes | None


def line_units(path: str) -> list[Unit]:
    """Byte ranges of an uncompressed file in UTF-8; other files, and empty ones, are one unit, with the `stop` 0."""
    size = epath.Path(path).stat().length
    if not path.endswith(".jsonl") or not size or streams.text_file_encoding(path) != "utf-8":
        return [Unit(path)]
    return [Unit(path, start, min(start + UNIT_BYTES, size)) for start in range(0, size, UNIT_BYTES)]


def read_lines(unit: Unit) -> Iterator[Line]:
    """The lines that begin in the range of a unit and are not blank. Raises one of `streams.damage()`."""
    with streams.open_stream(unit.path) if unit.start else streams.open_text(unit.path) as stream:
        offset = 0
        if unit.start:  # Go to the first line that begins at or after `start`.
            stream.seek(unit.start - 1)
            offset = unit.start - 1
            while (part := stream.readline(streams.CHUNK)) and not part.endswith(b"\n"):
                offset += len(part)
            offset += len(part)
        for start, data in streams.lines(stream, offset):
            if unit.stop and start >= unit.stop:
                return
            yield Line(start, data)
