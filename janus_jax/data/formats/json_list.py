"""LLaVA and ShareGPT4V: a JSON list of conversations, which may have gigabytes, and folders of images."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from janus_jax.data.dropped_samples import DroppedSample, Reason, SampleError
from janus_jax.data.formats import conversations, fields
from janus_jax.data.formats.base import (
    MAX_IMAGE_BYTES,
    FileFormat,
    RecordOrDrop,
    Unit,
    check_image_count,
    files,
    guarded,
    name,
)
from janus_jax.data.formats.json_elements import list_elements
from janus_jax.data.formats.safe_paths import check_relative, read_below
from janus_jax.data.records import Record
from janus_jax.errors import UserError

UNIT_SAMPLES = 1000


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
            detail = f"{path!r} has no PREFIX of --image_root, and no other folder is given"
            raise SampleError(Reason.MISSING_FILE, detail)
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
            elements = enumerate(list_elements(path, 0, 0))
            starts = [(number, element.begin) for number, element in elements if number % UNIT_SAMPLES == 0]
            starts = [(0, 0), *starts[1:]]  # The first unit begins with the bracket of the list.
            # The last unit reaches to the end of the file, so that it meets and counts what stopped the scan.
            stops = [begin for _, begin in starts[1:]] + [0]
            units += [Unit(path, begin, stop, number) for (number, begin), stop in zip(starts, stops, strict=True)]
        return units

    def read(self, unit: Unit) -> Iterator[RecordOrDrop]:
        roots = ImageRoots.parse(self.image_root)
        with epath.Path(unit.path).open("rb") as file:
            for number, (begin, stop, bad) in enumerate(list_elements(unit.path, unit.start, unit.stop), unit.first):
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
