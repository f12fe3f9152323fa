"""The one training record, and its file format: msgpack payloads in ArrayRecord shards.

Every data set becomes this record first, so mixing, packing and training have one code path.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from janus_jax.data.prompts import IMAGE_MARKER, Message
from janus_jax.errors import UserError

T = TypeVar("T")
TASKS = ("understand", "text", "generate")
# Random reads of single records: with the default group size each costs a whole block.
WRITER_OPTIONS = "group_size:1"
# 1: task, messages, images, key. 2: also tokens and codes, where they are known. Files of all versions are read.
FORMAT_VERSION = 2
_CODE_TYPE = np.dtype("<u2")  # of `codes`: 16,384 codes in the papers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One sample.

    understand: a conversation whose texts hold an `<image>` marker per image.
    text:       a conversation, or a document: a single assistant message.
    generate:   the user's caption, answered by `<image>`.

    A conversation may begin with a system message; user and assistant alternate, and no answer is empty.
    """

    task: str
    messages: tuple[Message, ...]
    images: tuple[bytes, ...] = ()  # encoded, in the order of their markers
    key: str  # data set and sample id, to name a bad sample
    tokens: int | None = None  # length as a training sample, where `prepare_data` knew the tokenizer
    codes: bytes = b""  # of the drawn image, where precomputed; `images` may then be empty. See `code_array`.

    @property
    def code_array(self) -> np.ndarray | None:
        """VQ codes [N] int32 of a generation sample, or None."""
        return np.frombuffer(self.codes, _CODE_TYPE).astype(np.int32) if self.codes else None

    def with_codes(self, codes: np.ndarray) -> "Record":
        """The record with its VQ codes [N]."""
        if codes.min() < 0 or codes.max() > np.iinfo(_CODE_TYPE).max:
            raise UserError(f"{self.key}: codes {codes.min()} .. {codes.max()} do not fit {_CODE_TYPE}")
        return dataclasses.replace(self, codes=codes.astype(_CODE_TYPE).tobytes())

    def validate(self) -> None:
        """Raises UserError with the rule that is broken."""
        if self.task not in TASKS:
            raise UserError(f"{self.key}: task {self.task!r} is not one of {TASKS}")
        markers = sum(message.text.count(IMAGE_MARKER) for message in self.messages)
        if self.task == "text":
            markers = 0  # a literal "<image>" in a text-only sample is just text
        if markers != len(self.images) and not (self.codes and not self.images):
            raise UserError(f"{self.key}: {markers} image markers but {len(self.images)} images")
        document = self.task == "text" and [message.role for message in self.messages] == ["assistant"]
        turns = self.messages[1:] if self.messages and self.messages[0].role == "system" else self.messages
        expected = ["user", "assistant"] * (len(turns) // 2)
        if not document and (not turns or [turn.role for turn in turns] != expected):
            raise UserError(f"{self.key}: roles {[turn.role for turn in turns]} do not alternate user, assistant")
        # An empty answer would lose its end-of-sentence: in a prompt it asks the model to answer.
        if not all(turn.text.strip() for turn in turns if turn.role == "assistant"):
            raise UserError(f"{self.key}: no assistant text")
        if self.task == "generate" and (
            len(self.messages) != 2 or IMAGE_MARKER in turns[0].text or turns[1].text.strip() != IMAGE_MARKER
        ):
            raise UserError(f"{self.key}: a generation sample is one caption answered by {IMAGE_MARKER}")
        if self.codes and (self.task != "generate" or len(self.codes) % _CODE_TYPE.itemsize):
            raise UserError(f"{self.key}: {len(self.codes)} bytes of codes in a sample of task {self.task!r}")
        if self.tokens is not None and self.tokens < 1:
            raise UserError(f"{self.key}: a length of {self.tokens} tokens")

    def serialize(self) -> bytes:
        payload = {
            "version": FORMAT_VERSION,
            "task": self.task,
            "messages": [list(message) for message in self.messages],
            "images": list(self.images),
            "key": self.key,
        }
        if self.tokens is not None:
            payload["tokens"] = self.tokens
        if self.codes:
            payload["codes"] = self.codes
        return msgpack.packb(payload)

    @classmethod
    def deserialize(cls, data: bytes) -> "Record":
        """Raises UserError on anything but a valid record."""
        try:
            payload = msgpack.unpackb(data)
            version = _typed(int, payload.get("version", 1))
            if not 1 <= version <= FORMAT_VERSION:
                raise UserError(f"a record of format version {version}, this program reads up to {FORMAT_VERSION}")
            record = cls(
                task=payload["task"],
                messages=tuple(Message(_typed(str, role), _typed(str, text)) for role, text in payload["messages"]),
                images=tuple(_typed(bytes, image) for image in payload["images"]),
                key=_typed(str, payload["key"]),
                tokens=_typed(int, payload["tokens"]) if "tokens" in payload else None,
                codes=_typed(bytes, payload.get("codes", b"")),
            )
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as error:
            raise UserError(f"not a training record ({type(error).__name__}: {error})") from error
        record.validate()
        return record


def write_records(path: epath.PathLike, records: Iterable[Record]) -> int:
    """Writes one ArrayRecord shard; returns how many records it holds."""
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    return writer.count


class RecordWriter:
    """One ArrayRecord shard; the same records in the same order give the same bytes."""

    def __init__(self, path: epath.PathLike):
        self.count = 0
        self._writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)

    def write(self, record: Record) -> None:
        """Raises UserError for a record that breaks a rule."""
        record.validate()
        self._writer.write(record.serialize())
        self.count += 1

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def _typed(expected: type[T], value: Any) -> T:
    if not isinstance(value, expected):
        raise TypeError(f"{expected.__name__} expected, got {type(value).__name__}")
    return value
