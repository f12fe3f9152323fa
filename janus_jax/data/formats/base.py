"""What every format provides, and the limits that all of them keep."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, Protocol

from etils import epath

from janus_jax.data.dropped_samples import DroppedSample, Note, Reason, SampleError
from janus_jax.data.formats.safe_paths import is_hidden
from janus_jax.data.records import TASKS, Record
from janus_jax.errors import UserError
from janus_jax.storage import LiteralPath, matching, why_none

RecordOrDrop = Record | DroppedSample  # What a format gives for each sample.
ReadItem = RecordOrDrop | Note  # What it gives for a file: samples, with notes between them.

# Limit for a JSON element, a text in an archive, or a line without images; a longer one is taken for damage.
MAX_TEXT_BYTES = 4 << 20
MAX_IMAGE_BYTES = 64 << 20  # Limit for an encoded image.
MAX_LINE_BYTES = MAX_TEXT_BYTES + MAX_IMAGE_BYTES  # Limit for a line of JSON with its images.
MAX_IMAGES = 64  # Limit for a sample.
ENTRIES_SEARCHED = 1000  # Entries of a folder that is not read, which may be one of millions of images.


class Unit(NamedTuple):
    """A part of a data set. Each format decides what `start` and `stop` count: bytes, rows or files."""

    path: str
    start: int = 0
    stop: int = 0
    first: int = 0  # Number of the first sample, where `start` does not tell it.


class DatasetFormat(Protocol):
    """A data set in one of the formats. It is small and can be pickled, since it is sent to worker processes."""

    def identity(self) -> dict[str, Any]:
        """What is read and how, as plain values. An interrupted run is continued only if they are equal."""

    def units(self) -> list[Unit]:
        """All units in a fixed order. Raises UserError when there is nothing to read."""

    def unread(self) -> list[Note]:
        """Notes on what lies beside the files that are read."""

    def read(self, unit: Unit) -> Iterator[ReadItem]:
        """The samples of a unit in their order in the file, and notes on them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileFormat:
    """Base of the formats that read files. The fields of a subclass are its options."""

    tasks_given: ClassVar[tuple[str, ...]] = TASKS  # Tasks of the records that files of the format can hold.
    suffixes: ClassVar[tuple[str, ...]] = ()  # How files end that are read in a folder; () if `units` finds them.

    input: tuple[str, ...]  # Files, folders or glob patterns.

    def identity(self) -> dict[str, Any]:
        return {"format": type(self).__name__} | dataclasses.asdict(self)

    def units(self) -> list[Unit]:
        raise NotImplementedError

    def files(self) -> list[str]:
        """All files to read, sorted, each once. Raises UserError if a pattern or folder has none."""
        found: set[str] = set()
        for pattern in self.input:
            read, others = self._found(pattern)
            if not read:
                folders = [path.name for path in others if path.is_dir() and self._is_data(path)]
                inside = f"; folders in it such as {folders[0]!r} are not searched, name them" if folders else ""
                expected = f"no file named *{', *'.join(self.suffixes)}"
                raise UserError(f"--input: {pattern!r} matches {expected}{why_none(pattern)}{inside}")
            found.update(map(str, read))
        return sorted(found)

    def unread(self) -> list[Note]:
        if not self.suffixes:
            return []
        found = [path for pattern in self.input for path in self._found(pattern)[1]]
        folders = [path for path in found if path.is_dir()]
        notes = [Note(f"file not read: *{path.suffix or path.name}") for path in found if path not in folders]
        return notes + [Note(f"folder not read: {path.name}") for path in folders if self._is_data(path)]

    def _is_data(self, folder: epath.Path) -> bool:
        """Whether one of the first entries of a folder is a file that would be read."""
        entries = itertools.islice(folder.iterdir(), ENTRIES_SEARCHED)
        return any(path.name.endswith(self.suffixes) and not is_hidden(path.name) for path in entries)

    def _found(self, pattern: str) -> tuple[list[epath.Path], list[epath.Path]]:
        """Files to read, and other files and folders, that match a pattern or lie directly in a folder.

        Hidden ones such as `._00000.tar` are left out, unless a pattern names them.
        """
        path = LiteralPath(pattern)
        found = list(path.glob("*")) if path.is_dir() else matching(pattern)
        if path.is_dir() or not path.name.startswith("."):
            found = [match for match in found if not is_hidden(match.name)]
        read = [match for match in found if match.name.endswith(self.suffixes) and not match.is_dir()]
        return read, [match for match in found if match not in read]

    def read(self, unit: Unit) -> Iterator[ReadItem]:
        raise NotImplementedError


def guarded(key: str, build: Callable[[], Record]) -> RecordOrDrop:
    """The record that `build` returns, or the reason why there is none."""
    try:
        record = build()
        record.validate()
        return record
    except SampleError as error:
        return DroppedSample(key, error.reason, error.detail)
    except UserError as error:
        return DroppedSample(key, Reason.BAD_RECORD, str(error))


def check_image_count(count: int) -> None:
    """Raises SampleError for too many images. To be called before they are read, since they could fill the memory."""
    if count > MAX_IMAGES:
        raise SampleError(Reason.TOO_LARGE, f"{count} images, at most {MAX_IMAGES} allowed")


def name(path: str) -> str:
    """The name of a file without its folder. Keys begin with it, so that they do not depend on where a data set is."""
    return epath.Path(path).name
