"""Random access to the records of ArrayRecord files, by position in the sorted list of files."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from janus_jax.errors import UserError

OPENING_THREADS = 16  # a remote file's footer takes a round trip


class Stored(NamedTuple):
    """One record as it lies in its file."""

    origin: str  # file name and position, to name it when it cannot be read
    data: bytes | None  # None: its checksum is wrong


class RecordSource(Sequence):
    """The records of some files, or a part of them.

    Args:
        files: in order.
        pattern: that found them, for messages.
        first: position of the first record of this source.
        count: of its records; None: all that follow.
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

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):
        if not 0 <= index < self._count:
            raise IndexError(f"record {index} of {self._count}")
        position = self._first + int(index)
        file = int(np.searchsorted(self._ends, position, side="right"))
        place = position - (int(self._ends[file - 1]) if file else 0)
        try:
            return Stored(f"{self._names[file]}:{place}", self._files[file][place])
        except RuntimeError:  # a wrong checksum
            return Stored(f"{self._names[file]}:{place}", None)

    def fingerprint(self) -> str:
        """Tells whether a resumed run reads the same records. File contents are not read, folders may differ."""
        lengths = [(name, len(file)) for name, file in zip(self._names, self._files, strict=True)]
        digest = hashlib.sha256(repr((lengths, self._first, self._count)).encode()).hexdigest()[:12]
        return f"{len(self)} records of {len(self._files)} files ({digest})"


def open_records(pattern: str, field: str, held_out: int = 0, validation: bool = False) -> RecordSource:
    """The records of all shards that match a glob pattern, in sorted order.

    Args:
        field: of the config, for messages.
        held_out: how many of the last records are kept apart for validation, in every epoch.
        validation: return these instead of the others.

    Raises:
        UserError: the pattern matches nothing, a file is no ArrayRecord file, or no record is left.
    """
    folder, name = epath.Path(pattern).parent, epath.Path(pattern).name
    paths = sorted(str(path) for path in folder.glob(name)) if folder.exists() else []
    if not paths:
        raise UserError(f"{field}: {pattern!r} matches no file")
    with ThreadPoolExecutor(OPENING_THREADS) as pool:
        files = list(pool.map(lambda path: _open(path, field), paths))
    names = [epath.Path(path).name for path in paths]
    total = sum(len(file) for file in files)
    if total <= held_out:
        kept = f", and data.held_out={held_out} are kept for validation" if held_out else ""
        raise UserError(f"{field}: {pattern!r} has {total} records{kept}")
    if validation:
        return RecordSource(files, names, pattern, total - held_out, held_out)
    return RecordSource(files, names, pattern, 0, total - held_out)


def _open(path: str, field: str) -> ArrayRecordDataSource:
    try:
        file = ArrayRecordDataSource([path])
        len(file)  # reads the footer
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{field}: cannot read {path} as ArrayRecord ({error})") from error
    return file
