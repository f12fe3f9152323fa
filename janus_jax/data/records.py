"""The one training record, and its file format: msgpack payloads in ArrayRecord shards.

Every data set becomes this record first, so mixing, packing and training have one code path.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import msgpack
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from janus_jax.data.prompts import IMAGE_MARKER, Message
from janus_jax.errors import UserError

T = TypeVar("T")
TASKS = ("understand", "text", "generate")
# Random reads of single records: with the default group size each costs a whole block.
WRITER_OPTIONS = "group_size:1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One sample.

    understand: a conversation whose texts hold an `<image>` marker per image.
    text:       a conversation, or a document: a single assistant message.
    generate:   the user's caption, answered by `<image>`.
    """

    task: str
    messages: tuple[Message, ...]
    images: tuple[bytes, ...] = ()  # encoded, in the order of their markers
    key: str  # data set and sample id, to name a bad sample

    def validate(self) -> None:
        """Raises UserError with the rule that is broken."""
        if self.task not in TASKS:
            raise UserError(f"{self.key}: task {self.task!r} is not one of {TASKS}")
        markers = sum(message.text.count(IMAGE_MARKER) for message in self.messages)
        if self.task == "text":
            markers = 0  # a literal "<image>" in a text-only sample is just text
        if markers != len(self.images):
            raise UserError(f"{self.key}: {markers} image markers but {len(self.images)} images")
        document = self.task == "text" and [message.role for message in self.messages] == ["assistant"]
        turns = [message for message in self.messages if message.role != "system"]
        expected = ["user", "assistant"] * (len(turns) // 2)
        if not document and (not turns or [turn.role for turn in turns] != expected):
            raise UserError(f"{self.key}: roles {[turn.role for turn in turns]} do not alternate user, assistant")
        if not any(turn.text.strip() for turn in turns if turn.role == "assistant"):
            raise UserError(f"{self.key}: no assistant text")
        if self.task == "generate" and (
            len(turns) != 2 or IMAGE_MARKER in turns[0].text or turns[1].text.strip() != IMAGE_MARKER
        ):
            raise UserError(f"{self.key}: a generation sample is one caption answered by {IMAGE_MARKER}")

    def serialize(self) -> bytes:
        payload = {
            "task": self.task,
            "messages": [list(message) for message in self.messages],
            "images": list(self.images),
            "key": self.key,
        }
        return msgpack.packb(payload)

    @classmethod
    def deserialize(cls, data: bytes) -> "Record":
        """Raises UserError on anything but a valid record."""
        try:
            payload = msgpack.unpackb(data)
            record = cls(
                task=payload["task"],
                messages=tuple(Message(_typed(str, role), _typed(str, text)) for role, text in payload["messages"]),
                images=tuple(_typed(bytes, image) for image in payload["images"]),
                key=_typed(str, payload["key"]),
            )
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            raise UserError(f"not a training record ({type(error).__name__}: {error})") from error
        record.validate()
        return record


def write_records(path: epath.PathLike, records: Iterable[Record]) -> int:
    """Writes one ArrayRecord shard; returns how many records it holds."""
    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    count = 0
    for record in records:
        record.validate()
        writer.write(record.serialize())
        count += 1
    writer.close()
    return count


def _typed(expected: type[T], value: Any) -> T:
    if not isinstance(value, expected):
        raise TypeError(f"{expected.__name__} expected, got {type(value).__name__}")
    return value
