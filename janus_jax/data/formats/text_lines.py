"""JSON Lines of text, uncompressed (`.jsonl`) or compressed (`.jsonl.gz`, `.jsonl.zst`, `.json.gz`, `.json.zst`).

Each line becomes a document, or a conversation if it has messages.
"""

import codecs
import dataclasses
from collections.abc import Iterator

from etils import epath

from janus_jax.data.dropped_samples import DroppedSample, Reason, SampleError
from janus_jax.data.formats import conversations, fields, streams
from janus_jax.data.formats.base import MAX_TEXT_BYTES, FileFormat, RecordOrDrop, Unit, files, guarded, name
from janus_jax.data.records import Record

UNIT_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextLines(FileFormat):
    """Units are byte ranges of uncompressed files and whole compressed files. A key is file name and line offset."""

    text_field: str = "text"  # Some data sets use "content".
    messages_field: str = "messages"  # Used instead of the text if a line has it.

    def units(self) -> list[Unit]:
        units = []
        for path in files(self.input, (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")):
            size = epath.Path(path).stat().length
            step = UNIT_BYTES if path.endswith(".jsonl") else max(size, 1)
            units += [Unit(path, start, min(start + step, size)) for start in range(0, size, step)]
        return units

    def read(self, unit: Unit) -> Iterator[RecordOrDrop]:
        """The lines that begin in the range of the unit."""
        try:
            with streams.open_stream(unit.path) as stream:
                offset = 0
                if unit.start:  # Go to the first line that begins at or after `start`.
                    stream.seek(unit.start - 1)
                    offset = unit.start - 1
                    while (part := stream.readline(streams.CHUNK)) and not part.endswith(b"\n"):
                        offset += len(part)
                    offset += len(part)
                for start, line in streams.lines(stream, offset):
                    if unit.path.endswith(".jsonl") and start >= unit.stop:
                        return
                    yield self._item(f"{name(unit.path)}:{start}", start, line)
        except streams.damage() as error:
            yield DroppedSample(name(unit.path), Reason.CORRUPT, f"{type(error).__name__}: {error}")

    def _item(self, key: str, start: int, line: bytes | None) -> RecordOrDrop:
        def build() -> Record:
            if line is None:
                raise SampleError(Reason.TOO_LARGE, f"a line of more than {MAX_TEXT_BYTES} bytes")
            value = fields.as_object(fields.parse_json(line.removeprefix(codecs.BOM_UTF8) if start == 0 else line))
            if value.get(self.messages_field) is not None:
                return conversations.conversation(key, value[self.messages_field], ())
            return conversations.document(key, value.get(self.text_field), self.text_field)

        return guarded(key, build)
