"""Random access to the records of ArrayRecord files, which count as one sequence in the sorted order of the files."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from janus_jax.errors import UserError
from janus_jax.storage import matching, why_none

OPENING_THREADS = 16  # Reading the footer of a remote file takes a round trip.


class StoredRecord(NamedTuple):
    """One record as it is stored in its file."""

    origin: str  # File name and position, to name a record that cannot be read.
    data: bytes | None  # None if the checksum is wrong.


class RecordSource(Sequence):
    """The records of some files, or a range of them.

    Args:
        files: The opened files, in order.
        names: Names of the files.
        pattern: Glob pattern that found them, for messages.
        first: Position of the first record of the range.
        count: Number of records of the range; None takes all that follow.
    """

    def __init__(
        self,
        files: Sequence[ArrayRecordDataSource],
        names: Sequence[str],
        pattern: str,
        first: int = 0,
        count: int | None = None,
    ):
        self.pattern = pattern
        self._files, self._names = files, names
        self._ends = np.cumsum([len(file) for file in files])
        self._first = first
        self._count = int(self._ends[-1]) - first if count is None else count

    @property
    def num_files(self) -> int:
        """Number of files that stay open once records of all of them have been read."""
        return len(self._files)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):
        if not 0 <= index < self._count:
            raise IndexError(f"record {index} of {self._count}")
        position = self._first + int(index)
        file = int(np.searchsorted(self._ends, position, side="right"))
        index_in_file = position - (int(self._ends[file - 1]) if file else 0)
        origin = f"{self._names[file]}:{index_in_file}"
        try:
            return StoredRecord(origin, self._files[file][index_in_file])
        except RuntimeError:  # The checksum is wrong.
            return StoredRecord(origin, None)

    def fingerprint(self) -> str:
        """A text that differs if a resumed run would read other records. Folders and contents of files are ignored."""
        lengths = [(name, len(file)) for name, file in zip(self._names, self._files, strict=True)]
        digest = hashlib.sha256(repr((lengths, self._first, self._count)).encode()).hexdigest()[:12]
        return f"{len(self)} records of {len(self._files)} files ({digest})"


def open_records(pattern: str, field: str, held_out: int = 0, validation: bool = False) -> RecordSource:
    """The records of one file, or of all files that match a pattern (see `storage.matching`), in sorted order.

    Args:
        field: Config field of the pattern, for messages.
        held_out: Number of records at the end that are kept for validation and never trained on.
        validation: Whether to return the held-out records instead of the others.

    Raises:
        UserError: The pattern matches nothing, a file is not in ArrayRecord format, or no record is left.
    """
    paths = [str(path) for path in matching(pattern)] if pattern else []
    if not paths:
        raise UserError(f"{field}: {pattern!r} matches no file{why_none(pattern)}")
    if epath.Path(paths[0]).is_dir():
        raise UserError(
            f"{field}: {paths[0]} is a folder, expected ArrayRecord files such as {paths[0]}/*.array_record"
        )
    with ThreadPoolExecutor(OPENING_THREADS) as pool:
        files = list(pool.map(lambda path: _open(path, field), paths))
    names = [epath.Path(path).name for path in paths]
    total = sum(len(file) for file in files)
    if total <= held_out:
        kept = f", and data.held_out={held_out} of them are kept for validation" if held_out else ""
        raise UserError(f"{field}: {pattern!r} has {total} records{kept}")
    if validation:
        return RecordSource(files, names, pattern, total - held_out, held_out)
    return RecordSource(files, names, pattern, 0, total - held_out)


def _open(path: str, field: str) -> ArrayRecordDataSource:
    try:
        file = ArrayRecordDataSource([path])
        len(file)  # Reads the footer.
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{field}: cannot read {path} as ArrayRecord ({error})") from error
    return file
