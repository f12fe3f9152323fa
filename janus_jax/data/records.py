"""The training record and its file format: msgpack payloads in ArrayRecord files.

Every data set is first turned into such records, so that mixing, packing and training have one code path.
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
# Training reads single records in random order; with the default group size each read would decompress a whole block.
WRITER_OPTIONS = "group_size:1"
# Version 1 has task, messages, images and key. Version 2 adds tokens and codes where they are known. Both can be read.
FORMAT_VERSION = 2
_CODE_TYPE = np.dtype("<u2")  # The papers use 16,384 codes.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One sample of one of TASKS.

    - "understand": a conversation whose texts hold an `<image>` marker for each image.
    - "text": a conversation, or a document, which is a single assistant message.
    - "generate": a user's caption, answered by `<image>`. The caption holds `<image>` for each condition image that
      the image to generate is based on.

    A conversation may begin with a system message. User and assistant alternate, and no answer is empty.
    """

    task: str
    messages: tuple[Message, ...]
    images: tuple[bytes, ...] = ()  # Encoded images in the order of their markers.
    key: str  # Data set and sample id, to name a sample in reports.
    tokens: int | None = None  # Length of the training sample, where `prepare_data` knew the tokenizer.
    # VQ codes of the images of a generation sample, if computed before; the image to generate may then be missing.
    codes: bytes = b""

    @property
    def num_conditions(self) -> int:
        """Number of condition images of a generation sample. They are the first ones of `images`."""
        return self.messages[0].text.count(IMAGE_MARKER) if self.task == "generate" else 0

    @property
    def code_array(self) -> np.ndarray | None:
        """The VQ codes [(conditions + 1) N] int32 of a generation sample, in the order of its images, or None."""
        return np.frombuffer(self.codes, _CODE_TYPE).astype(np.int32) if self.codes else None

    def with_codes(self, codes: np.ndarray) -> "Record":
        """The same record with VQ codes [(conditions + 1) N]."""
        if codes.min() < 0 or codes.max() > np.iinfo(_CODE_TYPE).max:
            raise UserError(f"{self.key}: codes {codes.min()} .. {codes.max()} do not fit into 16 bits")
        return dataclasses.replace(self, codes=codes.astype(_CODE_TYPE).tobytes())

    def validate(self) -> None:
        """Raises UserError that says which rule the record breaks."""
        if self.task not in TASKS:
            raise UserError(f"{self.key}: task {self.task!r} is not one of {TASKS}")
        markers = sum(message.text.count(IMAGE_MARKER) for message in self.messages)
        if self.task == "text":
            markers = 0  # In a text-only sample, "<image>" is ordinary text.
        if markers != len(self.images) and not (self.codes and len(self.images) == markers - 1):
            raise UserError(f"{self.key}: {markers} image markers but {len(self.images)} images")
        document = self.task == "text" and [message.role for message in self.messages] == ["assistant"]
        dialog = self.messages[1:] if self.messages and self.messages[0].role == "system" else self.messages
        roles = [message.role for message in dialog]
        if not document and (not dialog or roles != ["user", "assistant"] * (len(dialog) // 2)):
            raise UserError(f"{self.key}: roles {roles} do not alternate between user and assistant")
        # An empty answer would have no end-of-sentence token, since in a prompt it asks the model to answer.
        if not all(message.text.strip() for message in dialog if message.role == "assistant"):
            raise UserError(f"{self.key}: an assistant message is empty")
        if self.task == "generate" and (len(self.messages) != 2 or dialog[1].text.strip() != IMAGE_MARKER):
            raise UserError(f"{self.key}: a generation sample must be one caption answered by {IMAGE_MARKER}")
        if self.codes and (self.task != "generate" or len(self.codes) % _CODE_TYPE.itemsize):
            raise UserError(f"{self.key}: {len(self.codes)} bytes of codes do not fit a sample of task {self.task!r}")
        if self.tokens is not None and self.tokens < 1:
            raise UserError(f"{self.key}: a length of {self.tokens} tokens, expected at least 1")

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
        """Inverse of `serialize`. Raises UserError for anything but a valid record."""
        try:
            payload = msgpack.unpackb(data)
            version = _typed(int, payload.get("version", 1))
            if not 1 <= version <= FORMAT_VERSION:
                raise UserError(
                    f"record of format version {version}; this program reads versions up to {FORMAT_VERSION}"
                )
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
    """Writes one ArrayRecord file; returns the number of records."""
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(record)
    return writer.count


class RecordWriter:
    """Writes one ArrayRecord file. The same records in the same order give the same bytes."""

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
