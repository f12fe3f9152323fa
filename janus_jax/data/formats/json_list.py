"""LLaVA and ShareGPT4V: a JSON list of conversations, which may have gigabytes, and folders of images."""

import codecs
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from janus_jax.data.dropped_samples import DroppedSample, Reason, SampleError
from janus_jax.data.formats import conversations, fields
from janus_jax.data.formats.base import (
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    FileFormat,
    RecordOrDrop,
    Unit,
    check_image_count,
    files,
    guarded,
    name,
)
from janus_jax.data.formats.safe_paths import check_relative, read_below
from janus_jax.data.records import Record
from janus_jax.errors import UserError

UNIT_SAMPLES = 1000
_SPACE = " \t\r\n"
_LONGEST_LITERAL = len("-Infinity")  # The decoder reports an error in a literal at the literal's beginning.
# Finds where an element ends. Numbers stay text, since `int` refuses huge ones.
_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str, strict=False)


class ImageRoots(NamedTuple):
    """Folders of images: the longest matching prefix of a path becomes its folder; other paths are in `default`."""

    default: str
    by_prefix: Mapping[str, str]

    @classmethod
    def parse(cls, roots: Sequence[str]) -> "ImageRoots":
        """Parses roots of the form `DIR` or `PREFIX=DIR`. Raises UserError for a folder that does not exist."""
        default, by_prefix = "", {}
        for root in roots:
            prefix, separator, folder = root.rpartition("=")
            if not epath.Path(folder).is_dir():
                raise UserError(f"--image_root={root}: {folder!r} is not a folder")
            if separator:
                by_prefix[prefix.rstrip("/") + "/"] = folder
            else:
                default = folder
        return cls(default, by_prefix)

    def read(self, path: str) -> bytes:
        """The bytes of an image. Raises SampleError."""
        check_relative(path)
        prefixes = [prefix for prefix in self.by_prefix if path.startswith(prefix)]
        if prefixes:
            prefix = max(prefixes, key=len)
            return read_below(self.by_prefix[prefix], path.removeprefix(prefix), MAX_IMAGE_BYTES)
        if not self.default:
            raise SampleError(
                Reason.MISSING_FILE, f"{path!r} has no PREFIX of --image_root, and no other folder is given"
            )
        return read_below(self.default, path, MAX_IMAGE_BYTES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonList(FileFormat):
    """Units are byte ranges with a fixed number of elements, found by one scan. No file is ever held in memory."""

    image_root: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ImageRoots.parse(self.image_root)

    def units(self) -> list[Unit]:
        units = []
        for path in files(self.input, (".json",)):
            elements = enumerate(_elements(path, 0, 0))
            starts = [(number, element.begin) for number, element in elements if number % UNIT_SAMPLES == 0]
            starts = [(0, 0), *starts[1:]]  # The first unit begins with the bracket of the list.
            # The last unit reaches to the end of the file, so that it meets and counts what stopped the scan.
            stops = [begin for _, begin in starts[1:]] + [0]
            units += [Unit(path, begin, stop, number) for (number, begin), stop in zip(starts, stops, strict=True)]
        return units

    def read(self, unit: Unit) -> Iterator[RecordOrDrop]:
        roots = ImageRoots.parse(self.image_root)
        with epath.Path(unit.path).open("rb") as file:
            for number, (begin, stop, bad) in enumerate(_elements(unit.path, unit.start, unit.stop), unit.first):
                key = f"{name(unit.path)}/{number}"
                if bad:
                    yield DroppedSample(key, bad.reason, bad.detail)
                    continue
                file.seek(begin)
                yield self._item(key, file.read(stop - begin), roots)

    def _item(self, key: str, data: bytes, roots: ImageRoots) -> RecordOrDrop:
        def build() -> Record:
            sample = fields.as_object(fields.parse_json(data))
            image = sample.get("image")
            paths = [] if image is None else image if isinstance(image, list) else [image]
            check_image_count(len(paths))
            images = [roots.read(fields.as_text(path, "image")) for path in paths]
            return conversations.conversation(key, sample.get("conversations"), images)

        return guarded(key, build)


class _Element(NamedTuple):
    begin: int
    stop: int
    bad: SampleError | None


def _elements(path: str, start: int, stop: int) -> Iterator[_Element]:
    """Byte ranges of the list's elements that begin in [start, stop); `stop` 0 means the end of the file.

    Where the file does not continue as a list, the last element is bad, since nothing after it can be trusted.
    """
    with epath.Path(path).open("rb") as file:
        file.seek(start)
        buffer, position, base = "", 0, start  # Latin-1 has a character per byte, so positions are byte offsets.
        more = True

        def fill(size: int) -> None:
            nonlocal buffer, position, base, more
            data = file.read(size)
            more = len(data) == size
            buffer, base, position = buffer[position:] + data.decode("latin-1"), base + position, 0

        def skip(characters: str) -> str:
            """Moves past `characters`; returns the next character, or "" at the end of the file."""
            nonlocal position
            while True:
                while position < len(buffer) and buffer[position] in characters:
                    position += 1
                if position < len(buffer) or not more:
                    return buffer[position : position + 1]
                fill(MAX_TEXT_BYTES)

        if start == 0:
            skip("")
            bom = codecs.BOM_UTF8.decode("latin-1")
            position = len(bom) if buffer.startswith(bom) else 0
            if skip(_SPACE) != "[":
                yield _Element(base + position, base + position, SampleError(Reason.CORRUPT, "not a JSON list"))
                return
            position += 1
        while True:
            following = skip(_SPACE + ",")
            if stop and base + position >= stop:
                return
            if following == "]":
                begin, position = base + position, position + 1
                if skip(_SPACE):
                    yield _Element(
                        begin, begin, SampleError(Reason.CORRUPT, f"more data after the list's end at byte {begin}")
                    )
                return
            if not following:
                yield _Element(base + position, base + position, SampleError(Reason.CORRUPT, "the list is not closed"))
                return
            while True:
                try:
                    end = _SCANNER.raw_decode(buffer, position)[1]
                    break
                except (ValueError, RecursionError) as error:
                    cut_off = more and _is_cut_off(error, len(buffer))
                    if cut_off and len(buffer) - position <= MAX_TEXT_BYTES:
                        fill(MAX_TEXT_BYTES)
                        continue
                    reason = Reason.TOO_LARGE if cut_off else Reason.CORRUPT
                    detail = f"element at byte {base + position}: {error}; what follows is lost"
                    yield _Element(base + position, base + position, SampleError(reason, detail))
                    return
            begin, position = base + position, end
            yield _Element(begin, base + end, None)


def _is_cut_off(error: Exception, size: int) -> bool:
    """Whether the error may come from the end of the text of `size` characters, so that reading more can cure it."""
    return isinstance(error, json.JSONDecodeError) and (
        error.msg.startswith("Unterminated string") or error.pos >= size - _LONGEST_LITERAL
    )
