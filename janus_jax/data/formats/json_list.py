"""Samples as a JSON list, which may have gigabytes, or as JSON Lines, and their images.

LLaVA and ShareGPT4V hold conversations, ShareGPT-4o-Image images to generate from texts and other images.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, ClassVar

from janus_jax.data.condition_images import with_markers
from janus_jax.data.dropped_samples import DroppedSample, Reason, SampleError
from janus_jax.data.formats import conversations, fields, json_lines, streams
from janus_jax.data.formats.base import FileFormat, ReadItem, Unit, check_image_count, name
from janus_jax.data.formats.json_elements import list_elements
from janus_jax.data.formats.json_samples import object_items
from janus_jax.data.formats.media_keys import IMAGE_KEYS
from janus_jax.data.formats.pictures import Pictures, listed
from janus_jax.data.prompts import IMAGE_MARKER, Message
from janus_jax.data.records import Record

UNIT_SAMPLES = 1000
MESSAGES_KEYS = ("conversations", "messages", "conversation")  # The first that a sample has is read.


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonList(FileFormat):
    """Units of a list are byte ranges with a fixed number of elements, found by one scan; of lines, byte ranges.

    No file is ever held in memory. A key is file name and number of the element, or file name and line offset.
    """

    tasks_given: ClassVar[tuple[str, ...]] = ("understand", "text")
    suffixes = (".json", *json_lines.SUFFIXES)
    read_keys: ClassVar[tuple[str, ...]] = (*MESSAGES_KEYS, *IMAGE_KEYS)

    image_root: tuple[str, ...] = ()
    follow_links: str = "inside"

    def __post_init__(self) -> None:
        self._pictures()

    def units(self) -> list[Unit]:
        units = []
        for path in self.files():
            units += _list_units(path) if path.endswith(".json") else json_lines.line_units(path)
        return units

    def read(self, unit: Unit) -> Iterator[ReadItem]:
        build = functools.partial(self.record, pictures=self._pictures())
        read = self.read_keys
        try:
            if not unit.path.endswith(".json"):
                for line in json_lines.read_lines(unit):
                    yield from object_items(f"{name(unit.path)}:{line.offset}", line.data, read, build)
                return
            for number, element in enumerate(list_elements(unit.path, unit.start, unit.stop), unit.first):
                key = f"{name(unit.path)}/{number}"
                if element.bad:
                    yield DroppedSample(key, element.bad.reason, element.bad.detail)
                else:
                    yield from object_items(key, element.data, read, build)
        except streams.damage() as error:
            yield DroppedSample(name(unit.path), Reason.CORRUPT, f"{type(error).__name__}: {error}")

    def record(self, key: str, values: dict[str, Any], pictures: Pictures) -> Record:
        """The record of an object. Raises SampleError."""
        messages = next((key for key in MESSAGES_KEYS if values.get(key) is not None), MESSAGES_KEYS[0])
        return conversations.sample(key, values, messages, pictures)

    def _pictures(self) -> Pictures:
        return Pictures.parse(self.image_root, self.follow_links)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedImages(JsonList):
    """ShareGPT-4o-Image: `output_image` is generated from the text `input_prompt` and the images `input_image`."""

    tasks_given: ClassVar[tuple[str, ...]] = ("generate",)
    read_keys = ("input_prompt", "input_image", "output_image")

    def record(self, key: str, values: dict[str, Any], pictures: Pictures) -> Record:
        conversations.check_unread(values, self.read_keys, has_images=False)
        prompt = fields.as_text(values.get("input_prompt"), "input_prompt")
        conversations.check_markers(prompt, at_edges=True)
        conditions = listed(values.get("input_image"), "input_image")
        check_image_count(len(conditions))
        if not prompt.strip():
            raise SampleError(Reason.NO_TEXT, "input_prompt is empty")
        images = [pictures.read(image, "input_image") for image in conditions]
        images.append(pictures.read(values.get("output_image"), "output_image"))
        messages = (Message("user", with_markers(prompt, len(conditions))), Message("assistant", IMAGE_MARKER))
        return Record(task="generate", messages=messages, images=tuple(images), key=key)


def _list_units(path: str) -> list[Unit]:
    try:
        if streams.text_file_encoding(path) != "utf-8":
            return [Unit(path)]  # Offsets in the converted text do not lead to places in the file.
        elements = enumerate(list_elements(path, 0, 0))
        starts = [(number, element.begin) for number, element in elements if number % UNIT_SAMPLES == 0]
    except streams.damage():
        return [Unit(path)]  # Counted when it is read.
    starts = [(0, 0), *starts[1:]]  # The first unit begins with the bracket of the list.
    # The last unit reaches to the end of the file, so that it meets and counts what stopped the scan.
    stops = [begin for _, begin in starts[1:]] + [0]
    return [Unit(path, begin, stop, number) for (number, begin), stop in zip(starts, stops, strict=True)]
