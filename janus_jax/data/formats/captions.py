"""Pairs of image and caption become records for understanding the image, for generating it, or both."""

import dataclasses
import functools
import html
import re
from collections.abc import Callable, Iterator
from typing import Any

from janus_jax.data.dropped_samples import DroppedSample, Reason, SampleError
from janus_jax.data.formats import fields
from janus_jax.data.formats.base import RecordOrDrop, guarded
from janus_jax.data.prompts import IMAGE_MARKER, Message
from janus_jax.data.records import Record
from janus_jax.errors import UserError

CAPTION_TASKS = ("understand", "generate")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_FILE_NAME = re.compile(r"\S+\.(jpe?g|png|gif|webp|bmp|tiff?|svg)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionTasks:
    """Which records a pair becomes.

    The caption answers `question` about the image. If the question is empty, the caption follows the image directly, as
    in stage I of Janus.
    """

    tasks: tuple[str, ...]
    question: str

    def __post_init__(self) -> None:
        if not self.tasks or not set(self.tasks) <= set(CAPTION_TASKS):
            expected = " or ".join(CAPTION_TASKS)
            raise UserError(f"--task={','.join(self.tasks)}: an image with a caption can only become {expected}")

    def items(self, key: str, read: Callable[[], tuple[bytes, str]]) -> Iterator[RecordOrDrop]:
        """One record per task, or one DroppedSample; `read` returns image and caption or raises SampleError."""
        try:
            image, caption = read()
        except SampleError as error:
            yield DroppedSample(key, error.reason, error.detail)
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
    """Cleans a caption from the web, which is text, bytes, or a list of captions, of which the first is taken.

    HTML entities are decoded, runs of white space become one space, control characters and image markers are removed.
    Raises SampleError when nothing is left, or only the name of a file.
    """
    if isinstance(value, list):
        value = next((caption for caption in value if caption is not None), None)
    text = fields.as_text(value, field) if value is not None else ""
    text = " ".join(_CONTROL.sub(" ", html.unescape(text)).replace(IMAGE_MARKER, " ").split())
    if not text:
        raise SampleError(Reason.NO_TEXT, f"{field} is empty")
    if _FILE_NAME.fullmatch(text):
        raise SampleError(Reason.NO_TEXT, f"{field} is the name of a file: {text}")
    return text
