"""JSON Lines of text, uncompressed (`.jsonl`) or compressed (`.jsonl.gz`, `.jsonl.zst`, `.json.gz`, `.json.zst`).

Each line becomes a document, or a conversation if it has messages.
"""

import dataclasses
from collections.abc import Iterator

from janus_jax.data.dropped_samples import DroppedSample, Reason
from janus_jax.data.formats import conversations, json_lines, streams
from janus_jax.data.formats.base import FileFormat, ReadItem, Unit, name
from janus_jax.data.formats.json_samples import object_items
from janus_jax.data.formats.media_keys import IMAGE_KEYS
from janus_jax.data.formats.pictures import Pictures
from janus_jax.data.records import Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextLines(FileFormat):
    """Units are byte ranges of uncompressed files and whole compressed files. A key is file name and line offset."""

    tasks_given = ("understand", "text")
    suffixes = json_lines.SUFFIXES

    text_field: str = "text"  # Some data sets use "content".
    messages_field: str = "messages"  # Used instead of the text if a line has it.
    image_root: tuple[str, ...] = ()  # Folders of images of conversations.
    follow_links: str = "inside"

    def __post_init__(self) -> None:
        self._pictures()

    def units(self) -> list[Unit]:
        return [unit for path in self.files() for unit in json_lines.line_units(path)]

    def read(self, unit: Unit) -> Iterator[ReadItem]:
        pictures = self._pictures()

        def build(key: str, values: dict) -> Record:
            if values.get(self.messages_field) is not None:
                return conversations.sample(key, values, self.messages_field, pictures)
            return conversations.plain(key, values, self.text_field)

        read = (self.text_field, self.messages_field, *IMAGE_KEYS)
        try:
            for line in json_lines.read_lines(unit):
                yield from object_items(f"{name(unit.path)}:{line.offset}", line.data, read, build)
        except streams.damage() as error:
            yield DroppedSample(name(unit.path), Reason.CORRUPT, f"{type(error).__name__}: {error}")

    def _pictures(self) -> Pictures:
        return Pictures.parse(self.image_root, self.follow_links)
