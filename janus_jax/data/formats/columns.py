"""Rows of a table, Hugging Face parquet or TFDS, become records according to their columns."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from janus_jax.data.dropped_samples import Reason, SampleError
from janus_jax.data.formats import conversations
from janus_jax.data.formats.base import MAX_IMAGE_BYTES, RecordOrDrop, check_image_count, guarded
from janus_jax.data.formats.captions import CaptionTasks, clean_caption
from janus_jax.data.formats.safe_paths import read_below
from janus_jax.errors import UserError

# Column names that are tried in this order when no option names a column.
IMAGE_COLUMNS = ("image", "images", "jpg")
MESSAGES_COLUMNS = ("messages", "conversations", "conversation")
CAPTION_COLUMNS = ("caption", "text", "label")
TEXT_COLUMNS = ("text", "content")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns to read; "" means that there is none.

    Rows are conversations if there is a column of messages, otherwise captions if there is one of images, otherwise
    texts.
    """

    image: str
    messages: str
    caption: str
    text: str

    @classmethod
    def choose(cls, present: Collection[str], image: str, messages: str, text: str, origin: str) -> "Columns":
        """Chooses columns by options or by name. Raises UserError if a named column, or every known one, is missing."""
        for option, column in {"image_column": image, "messages_column": messages, "text_column": text}.items():
            if column and column not in present:
                raise UserError(f"--{option}={column}: {origin} has no such column, only {sorted(present)}")

        def first(candidates: Sequence[str]) -> str:
            return next((column for column in candidates if column in present), "")

        # A text column that an option names is used instead of conversations, unless an option names these too.
        messages = messages or ("" if text else first(MESSAGES_COLUMNS))
        image = image or first(IMAGE_COLUMNS)
        chosen = cls(
            image=image,
            messages=messages,
            caption=(text or first(CAPTION_COLUMNS)) if image and not messages else "",
            text=(text or first(TEXT_COLUMNS)) if not image and not messages else "",
        )
        if not (chosen.messages or chosen.caption or chosen.text):
            raise UserError(
                f"{origin}: none of the columns {sorted(present)} has a known name; "
                "give --text_column, --image_column or --messages_column"
            )
        return chosen

    def captions(self, tasks: tuple[str, ...], question: str) -> CaptionTasks | None:
        """Which records a row with a caption becomes; None if rows are conversations or texts.

        Raises UserError for a task that captions cannot be used for.
        """
        return CaptionTasks(tasks=tasks, question=question) if self.caption else None

    @property
    def used(self) -> list[str]:
        return [column for column in (self.image, self.messages, self.caption, self.text) if column]


def row_items(
    key: str,
    row: Mapping[str, Any],
    columns: Columns,
    captions: CaptionTasks | None,
    class_names: Sequence[str],
    image_root: str,
) -> Iterator[RecordOrDrop]:
    """The records of one row.

    Args:
        row: Python values. An image is bytes, {"bytes", "path"}, or a list of either.
        class_names: Names of the classes, if the caption column holds integers.
        image_root: Folder of images that are given by a path only.
    """

    def pair() -> tuple[bytes, str]:
        images = _images(row.get(columns.image), image_root)
        if len(images) != 1:
            raise SampleError(
                Reason.NO_IMAGE if not images else Reason.IMAGE_COUNT, f"{len(images)} images, expected one"
            )
        return images[0], _caption(row.get(columns.caption), columns.caption, class_names)

    if columns.messages:
        yield guarded(
            key,
            lambda: conversations.conversation(
                key, row.get(columns.messages), _images(row.get(columns.image), image_root)
            ),
        )
    elif captions:
        yield from captions.items(key, pair)
    else:
        yield guarded(key, lambda: conversations.document(key, _decoded(row.get(columns.text)), columns.text))


def _images(value: Any, image_root: str) -> list[bytes]:
    values = [] if value is None else value if isinstance(value, list) else [value]
    check_image_count(len(values))
    return [_image(image, image_root) for image in values]


def _image(value: Any, image_root: str) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None and isinstance(value, dict) and isinstance(value.get("path"), str):
        if not image_root:
            raise SampleError(Reason.MISSING_FILE, f"{value['path']!r} has no bytes, and --image_root is not given")
        return read_below(image_root, value["path"], MAX_IMAGE_BYTES)
    if not isinstance(data, bytes):
        raise SampleError(Reason.BAD_FIELD, f"an image is a {type(data).__name__}, expected bytes")
    if len(data) > MAX_IMAGE_BYTES:
        raise SampleError(Reason.TOO_LARGE, f"an image of {len(data)} bytes, at most {MAX_IMAGE_BYTES} allowed")
    return data


def _caption(value: Any, column: str, class_names: Sequence[str]) -> str:
    if class_names and isinstance(value, int):
        if not 0 <= value < len(class_names):
            raise SampleError(Reason.BAD_FIELD, f"{column} is {value}, expected a class below {len(class_names)}")
        value = class_names[value].split(",")[0]
    return clean_caption(_decoded(value), column)


def _decoded(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
