"""ArrayRecord files of `prepare_data`, to prepare them again with another size, tokenizer or image tokenizer."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from janus_jax.data.dropped_samples import DroppedSample, Reason
from janus_jax.data.formats.base import FileFormat, ReadItem, Unit, guarded, name
from janus_jax.data.records import Record

UNIT_RECORDS = 1000
UNREADABLE = -1  # The `start` of the unit of a file that cannot be opened.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayRecordFiles(FileFormat):
    """Units are ranges of records. A damaged record does not affect the others."""

    suffixes = (".array_record",)

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"format": "Shards"}  # The name of this format in existing output folders.

    def units(self) -> list[Unit]:
        units = []
        for path in self.files():
            try:
                count = len(ArrayRecordDataSource([path]))
            except (RuntimeError, ValueError):
                units.append(Unit(path, UNREADABLE))
                continue
            ranges = [Unit(path, i, min(i + UNIT_RECORDS, count)) for i in range(0, count, UNIT_RECORDS)]
            units += ranges or [Unit(path)]  # So that a file without records is noted.
        return units

    def read(self, unit: Unit) -> Iterator[ReadItem]:
        try:
            source = ArrayRecordDataSource([unit.path])
            len(source)
        except (RuntimeError, ValueError) as error:
            yield DroppedSample(name(unit.path), Reason.CORRUPT, str(error))
            return
        for i in range(unit.start, unit.stop):
            key = f"{name(unit.path)}/{i}"
            try:
                data = source[i]
            except (RuntimeError, ValueError) as error:
                yield DroppedSample(key, Reason.CORRUPT, str(error))
                continue
            yield guarded(key, functools.partial(Record.deserialize, data))
