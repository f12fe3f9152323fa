"""Image-caption pairs -> records to understand the image, to draw it, or both."""

import dataclasses
import functools
import html
import re
from collections.abc import Callable, Iterator
from typing import Any

from janus_jax.data.dropped_samples import Bad, Reason
from janus_jax.data.formats import fields
from janus_jax.data.formats.base import Drop, Item, guarded
from janus_jax.data.prompts import IMAGE_MARKER, Message
from janus_jax.data.records import Record
from janus_jax.errors import UserError

CAPTION_TASKS = ("understand", "generate")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_FILE_NAME = re.compile(r"\S+\.(jpe?g|png|gif|webp|bmp|tiff?|svg)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionTasks:
    """What to make of a pair. `question` may be empty: the caption then follows the image directly (Janus, stage I)."""

    tasks: tuple[str, ...]
    question: str

    def __post_init__(self) -> None:
        if not self.tasks or not set(self.tasks) <= set(CAPTION_TASKS):
            raise UserError(f"--task={','.join(self.tasks)}: pairs of image and caption are for {CAPTION_TASKS}")

    def items(self, key: str, read: Callable[[], tuple[bytes, str]]) -> Iterator[Item]:
        """A record per task of one pair, or one Bad; `read` gives image and caption or raises Drop."""
        try:
            image, caption = read()
        except Drop as drop:
            yield Bad(key, drop.reason, drop.detail)
            return
        for task in self.tasks:
            task_key = f"{key}/{task}" if len(self.tasks) > 1 else key
            yield guarded(task_key, functools.partial(self._record, task, task_key, image, caption))

    def _record(self, task: str, key: str, image: bytes, caption: str) -> Record:
        if task == "generate":
            messages = (Message("user", caption), Message("assistant", IMAGE_MARKER))
        else:
            messages = (Message("user", f"{IMAGE_MARKER}\n{self.question}".strip()), Message("assistant", caption))
        return Record(task=task, messages=messages, images=(image,), key=key)


def clean_caption(value: Any, field: str) -> str:
    """One line of text from the web: entities decoded, white space collapsed, no control character, no image marker.

    Raises Drop when nothing is left, or only the name of a file.
    """
    text = fields.as_text(value, field) if value is not None else ""
    text = " ".join(_CONTROL.sub(" ", html.unescape(text)).replace(IMAGE_MARKER, " ").split())
    if not text:
        raise Drop(Reason.NO_TEXT, f"{field} is empty")
    if _FILE_NAME.fullmatch(text):
        raise Drop(Reason.NO_TEXT, f"{field} is the name of a file: {text}")
    return text
