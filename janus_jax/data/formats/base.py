"""What all sources share: units, the protocol, and dropping a sample from anywhere inside a reader."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from etils import epath

from janus_jax.data.dropped_samples import Bad, Reason
from janus_jax.data.records import Record
from janus_jax.errors import UserError

Item = Record | Bad

MAX_TEXT_BYTES = 4 << 20  # of a line, a JSON element, a text member: longer ones are not samples but damage
MAX_IMAGE_BYTES = 64 << 20  # of an encoded image
MAX_IMAGES = 64  # of a sample


class Unit(NamedTuple):
    """A part of a source; what `start` and `stop` count (bytes, rows, files) is the source's business."""

    path: str
    start: int = 0
    stop: int = 0
    first: int = 0  # number of the first sample, where that cannot be known from `start`


class Source(Protocol):
    """A data set on disk. Picklable and small: it travels to worker processes."""

    def identity(self) -> dict[str, Any]:
        """What it reads and how, as plain values: a run is only continued with the same."""

    def units(self) -> list[Unit]:
        """In a fixed order. Raises UserError when there is nothing to read."""

    def read(self, unit: Unit) -> Iterator[Item]:
        """Samples in their order in the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSource:
    """Base of all sources on disk."""

    input: tuple[str, ...]  # files, folders or glob patterns

    def identity(self) -> dict[str, Any]:
        return {"format": type(self).__name__} | dataclasses.asdict(self)


class Drop(Exception):  # noqa: N818
    """Leaves a sample; `guarded` turns it into a `Bad`. Not an error of the program, hence the name."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def guarded(key: str, build: Callable[[], Record]) -> Item:
    """The record, or the reason why there is none."""
    try:
        record = build()
        record.validate()
        return record
    except Drop as drop:
        return Bad(key, drop.reason, drop.detail)
    except UserError as error:
        return Bad(key, Reason.BAD_RECORD, str(error))


def check_image_count(count: int) -> None:
    """Raises Drop before the images of a sample are read, whose bytes could otherwise fill the memory."""
    if count > MAX_IMAGES:
        raise Drop(Reason.TOO_LARGE, f"{count} images, at most {MAX_IMAGES} allowed")


def files(patterns: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """All files of the glob patterns or folders (not below them) with one of the suffixes, sorted, each once.

    Raises:
        UserError: a pattern without such a file.
    """
    found: set[str] = set()
    for pattern in patterns:
        path = epath.Path(pattern)
        folder, name = (path, "*") if path.is_dir() else (path.parent, path.name)
        matches = [str(match) for match in folder.glob(name)] if folder.exists() else []
        matches = [match for match in matches if match.endswith(tuple(suffixes)) and not epath.Path(match).is_dir()]
        if not matches:
            raise UserError(f"--input: {pattern!r} matches no file named *{', *'.join(suffixes)}")
        found.update(matches)
    return sorted(found)


def name(path: str) -> str:
    """The file's name: what keys begin with, so that they do not depend on where a data set lies."""
    return epath.Path(path).name
