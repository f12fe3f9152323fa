"""Records that a program makes, which can be prepared like any data set."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

from janus_jax.data.dropped_samples import Note
from janus_jax.data.formats.base import ReadItem, Unit, guarded
from janus_jax.data.records import Record

UNIT_RECORDS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Units are ranges of records. All records are sent to the workers, so this is for small sets."""

    name: str
    records: tuple[Record, ...]

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(record.serialize())
        return {"format": "Memory", "name": self.name, "sha256": digest.hexdigest()}

    def units(self) -> list[Unit]:
        count = len(self.records)
        return [Unit(self.name, i, min(i + UNIT_RECORDS, count)) for i in range(0, count, UNIT_RECORDS)]

    def unread(self) -> list[Note]:
        return []

    def read(self, unit: Unit) -> Iterator[ReadItem]:
        for record in self.records[unit.start : unit.stop]:
            yield guarded(record.key, lambda record=record: record)  # type: ignore[misc]
