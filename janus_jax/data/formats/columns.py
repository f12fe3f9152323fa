"""Rows of a table, Hugging Face parquet or TFDS, become records according to their columns."""

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from janus_jax.data.dropped_samples import Note, Reason, SampleError
from janus_jax.data.formats import conversations
from janus_jax.data.formats.base import ReadItem, check_image_count, guarded
from janus_jax.data.formats.captions import CaptionTasks, clean_caption
from janus_jax.data.formats.media_keys import MEDIA_KEYS, looks_like_media
from janus_jax.data.formats.pictures import Pictures, listed
from janus_jax.errors import UserError

# Column names that are tried in this order when no option names a column.
IMAGE_COLUMNS = ("image", "images", "jpg")
MESSAGES_COLUMNS = ("messages", "conversations", "conversation")
CAPTION_COLUMNS = ("caption", "text", "label")
TEXT_COLUMNS = ("text", "content")
NO_COLUMN = "none"  # Value of --image_column for tables whose images are not wanted.


class Kind(enum.Enum):
    """What a column holds, by its type."""

    MEDIA = enum.auto()  # Images, video or sound, or a structure with them.
    BYTES = enum.auto()  # They are taken for media if the column's name or their first bytes say so.
    TEXT = enum.auto()  # A text or a structure of texts, which may be paths of media.
    OTHER = enum.auto()


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
    suspects: tuple[str, ...] = ()  # Columns that may name or hold the media of a text or conversation.
    unread: tuple[str, ...] = ()  # Columns that look like media and are not read.

    @classmethod
    def choose(cls, kinds: Mapping[str, Kind], image: str, messages: str, text: str, origin: str) -> "Columns":
        """Chooses columns by options or by name.

        Args:
            kinds: Kind of each column by its name.
            image: Option image_column; NO_COLUMN reads no images.
            messages: Option messages_column.
            text: Option text_column.
            origin: Name of the table, for messages.

        Raises:
            UserError: A named column, or every known one, is missing; or no option says that a column of media is not
                wanted.
        """
        without_images = image == NO_COLUMN and NO_COLUMN not in kinds
        named = {"image_column": "" if without_images else image, "messages_column": messages, "text_column": text}
        for option, column in named.items():
            if column and column not in kinds:
                raise UserError(f"--{option}={column}: {origin} has no such column, only {sorted(kinds)}")

        def first(candidates: Sequence[str]) -> str:
            return next((column for column in candidates if column in kinds), "")

        # A text column that an option names is used instead of conversations, unless an option names these too.
        messages = messages or ("" if text else first(MESSAGES_COLUMNS))
        chosen = "" if without_images else image or first(IMAGE_COLUMNS)
        is_caption = bool(chosen) and not messages
        caption = (text or first(CAPTION_COLUMNS)) if is_caption else ""
        text = (text or first(TEXT_COLUMNS)) if not chosen and not messages else ""
        if not (messages or caption or text):
            raise UserError(
                f"{origin}: none of the columns {sorted(kinds)} has a known name; "
                "give --text_column, --image_column or --messages_column"
            )
        others = sorted(set(kinds) - {chosen, messages, caption, text})
        unread = tuple(column for column in others if kinds[column] is Kind.MEDIA or looks_like_media(column))
        media = [column for column in unread if _is_media(column, kinds[column])]
        if media and not image:
            known = f"--image_column={chosen} to read that one alone, " if chosen else ""
            raise UserError(
                f"{origin}: nobody reads the column {media[0]!r} of images, video or sound; give {known}"
                f"--image_column={media[0]} to read it, or --image_column={NO_COLUMN} to read no images"
            )
        is_checked = not caption and not image
        suspects = tuple(column for column in others if is_checked and kinds[column] in (Kind.TEXT, Kind.BYTES))
        return cls(image=chosen, messages=messages, caption=caption, text=text, suspects=suspects, unread=unread)

    def captions(self, tasks: tuple[str, ...], question: str) -> CaptionTasks | None:
        """Which records a row with a caption becomes; None if rows are conversations or texts.

        Raises UserError for a task that captions cannot be used for.
        """
        return CaptionTasks(tasks=tasks, question=question) if self.caption else None

    @property
    def used(self) -> list[str]:
        return [column for column in (self.image, self.messages, self.caption, self.text, *self.suspects) if column]

    @property
    def notes(self) -> list[Note]:
        """Notes on the columns that are not read, for each row or file."""
        return [Note(f"column not read: {column}") for column in self.unread]


def _is_media(column: str, kind: Kind) -> bool:
    """Whether a column must not be passed over without an option that says so."""
    if kind is Kind.BYTES or (kind is Kind.TEXT and column.lower() in MEDIA_KEYS):
        return looks_like_media(column)
    return kind is Kind.MEDIA


def row_items(
    key: str,
    row: Mapping[str, Any],
    columns: Columns,
    captions: CaptionTasks | None,
    class_names: Sequence[str],
    pictures: Pictures,
) -> Iterator[ReadItem]:
    """The records of one row.

    Args:
        row: Python values. An image is anything that `pictures` reads, or a list of such values.
        class_names: Names of the classes, if the caption column holds integers.
    """
    suspects = {name: row.get(name) for name in columns.suspects}
    if columns.messages:

        def build():
            images = listed(row.get(columns.image), columns.image)
            conversations.check_unread(suspects, (), bool(images))
            return conversations.conversation(key, row.get(columns.messages), images, pictures)

        yield guarded(key, build)
    elif captions:

        def pair() -> tuple[bytes, str]:
            images = listed(row.get(columns.image), columns.image)
            check_image_count(len(images))
            if len(images) != 1:
                reason = Reason.IMAGE_COUNT if images else Reason.NO_IMAGE
                raise SampleError(reason, f"{len(images)} images, expected one")
            return pictures.read(images[0], columns.image), _caption(
                row.get(columns.caption), columns.caption, class_names
            )

        yield from captions.items(key, pair)
    else:

        def read_text():
            conversations.check_unread(suspects, (), has_images=False)
            return conversations.document(key, row.get(columns.text), columns.text)

        yield guarded(key, read_text)


def _caption(value: Any, column: str, class_names: Sequence[str]) -> str:
    if class_names and isinstance(value, int):
        if not 0 <= value < len(class_names):
            raise SampleError(Reason.BAD_FIELD, f"{column} is {value}, expected a class below {len(class_names)}")
        value = class_names[value].split(",")[0]
    return clean_caption(value, column)
