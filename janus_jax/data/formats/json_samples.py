"""From the JSON text of one sample to its record, with notes on keys that nobody reads."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from janus_jax.data.dropped_samples import Reason, SampleError
from janus_jax.data.formats import fields, media_keys
from janus_jax.data.formats.base import MAX_LINE_BYTES, MAX_TEXT_BYTES, ReadItem, guarded
from janus_jax.data.records import Record


def object_items(
    key: str, data: bytes | None, read: Sequence[str], build: Callable[[str, dict[str, Any]], Record]
) -> Iterator[ReadItem]:
    """The record that `build` makes of a JSON object, or why there is none, after notes on its unread media keys.

    Args:
        data: JSON text, or None if it was too long to be held.
        read: Names of the keys that `build` reads.
        build: Function of the sample's key and the object.
    """
    values: dict[str, Any] = {}

    def parse_and_build() -> Record:
        if data is None:
            raise SampleError(Reason.TOO_LARGE, f"a line of more than {MAX_LINE_BYTES} bytes")
        # Text of images is one value. A line as long with many values would take many times its memory.
        if len(data) > MAX_TEXT_BYTES and sum(map(data.count, (b",", b"[", b"{"))) > MAX_TEXT_BYTES // 2:
            raise SampleError(
                Reason.TOO_LARGE, f"{len(data)} bytes that are no images, at most {MAX_TEXT_BYTES} allowed"
            )
        values.update(fields.as_object(fields.parse_json(data)))
        record = build(key, values)
        if len(data) > MAX_TEXT_BYTES and not record.images:
            raise SampleError(Reason.TOO_LARGE, f"{len(data)} bytes of text, at most {MAX_TEXT_BYTES} allowed")
        return record

    item = guarded(key, parse_and_build)
    yield from media_keys.notes(values, read)
    yield item
