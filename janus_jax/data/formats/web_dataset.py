"""Tar archives of images and captions, as WebDataset and img2dataset write them: `.tar`, `.tar.gz`, `.tgz`."""

import dataclasses
import functools
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import PIL.Image

from janus_jax.data.dropped_samples import DroppedSample, Note, Reason, SampleError
from janus_jax.data.formats import fields, streams
from janus_jax.data.formats.base import MAX_IMAGE_BYTES, FileFormat, ReadItem, Unit, name
from janus_jax.data.formats.captions import CAPTION_TASKS, CaptionTasks, clean_caption
from janus_jax.data.formats.media_keys import is_media_file
from janus_jax.data.formats.tar_members import members
from janus_jax.data.images import decode_image

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
MAX_FIELDS = 64  # Largest number of fields of a sample.
# WebDataset's rule: the key ends at the first dot of the file name, and the field is the rest in lower case.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_ORIENTATION = 0x0112
# img2dataset keeps the orientation of the camera only as text, in the words of the exifread library.
_ORIENTATIONS = {
    "Mirrored horizontal": 2,
    "Rotated 180": 3,
    "Mirrored vertical": 4,
    "Mirrored horizontal then rotated 90 CCW": 5,
    "Rotated 90 CW": 6,
    "Mirrored horizontal then rotated 90 CW": 7,
    "Rotated 90 CCW": 8,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebDataset(FileFormat):
    """Units are whole archives; a truncated one gives its complete samples. A key is archive name and sample key.

    The caption is the `.txt` member, or the field `caption` of the `.json` member if there is none or it cannot be
    used. With `caption_key` the caption is that field of the `.json` member, for captions that another model wrote.
    """

    tasks_given = CAPTION_TASKS
    suffixes = (".tar", ".tar.gz", ".tgz")

    tasks: tuple[str, ...] = ("generate",)
    question: str = "Describe the image in detail."
    caption_key: str = ""

    def __post_init__(self) -> None:
        self._captions()

    def units(self) -> list[Unit]:
        return [Unit(path) for path in self.files()]

    def read(self, unit: Unit) -> Iterator[ReadItem]:
        for item in _groups(unit.path):
            if isinstance(item, Note):
                yield item
                continue
            key, group, bad = item
            key = f"{name(unit.path)}/{key}"  # It has no sample key if the archive itself is damaged.
            if bad:
                yield DroppedSample(key, bad.reason, bad.detail)
                continue
            notes: list[Note] = []
            yield from self._captions().items(key, functools.partial(self._pair, group, notes))
            yield from notes

    def _captions(self) -> CaptionTasks:
        return CaptionTasks(tasks=self.tasks, question=self.question)

    def _pair(self, group: Mapping[str, bytes], notes: list[Note]) -> tuple[bytes, str]:
        """Image and caption of a sample; what is passed over is added to `notes`. Raises SampleError."""
        images = [field for field in IMAGE_FIELDS if field in group]
        if not images:
            raise SampleError(Reason.NO_IMAGE, f"fields {sorted(group)[:8]}, expected one of {IMAGE_FIELDS}")
        if len(images) > 1:
            raise SampleError(Reason.IMAGE_COUNT, f"images {images}, expected one")
        metadata: dict[str, Any] = {}
        damage: SampleError | None = None
        if "json" in group:
            try:
                metadata = fields.as_object(fields.parse_json(group["json"]))
            except SampleError as error:
                damage = error
        caption, unusable = self._caption(group, metadata, damage)
        if unusable:
            notes.append(Note(f"{unusable.reason} in .txt, caption taken from .json"))
        if damage:
            notes.append(Note(f"{damage.reason} in .json, caption taken from .txt"))
        notes += [
            Note(f"member not read: .{field}") for field in sorted({*group} - {images[0]}) if is_media_file(f".{field}")
        ]
        return _upright(group[images[0]], metadata.get("exif")), caption

    def _caption(
        self, group: Mapping[str, bytes], metadata: Mapping[str, Any], damage: SampleError | None
    ) -> tuple[str, SampleError | None]:
        """The caption, and why the `.txt` member was not used if there is one. Raises SampleError."""
        unusable = None
        if "txt" in group and not self.caption_key:
            try:
                return clean_caption(group["txt"], "txt"), None
            except SampleError as error:
                unusable = error
        if damage:
            raise unusable or damage
        field = self.caption_key or "caption"
        try:
            return clean_caption(metadata.get(field), field), unusable
        except SampleError as error:
            raise unusable or error from error


def _groups(path: str) -> Iterator[tuple[str, dict[str, bytes], SampleError | None] | Note]:
    """(key, bytes of each field, error) of adjacent members with the same key, and notes on members without a field.

    A bad member affects only its sample.
    """
    key: str | None = None
    group: dict[str, bytes] = {}
    bad: SampleError | None = None
    damage: SampleError | None = None
    try:
        with streams.open_stream(path) as stream:
            for member in members(stream):
                match = _NAME.fullmatch(member.name.removeprefix("./"))
                if match is None and member.bad is None:
                    yield Note("member not read: a name without a suffix")  # WebDataset ignores it too.
                    continue
                member_key, field = match.groups() if match else (member.name, "")
                if member_key != key:
                    if key is not None:
                        yield key, group, bad
                    key, group, bad = member_key, {}, None
                field = field.lower()
                if member.bad:
                    bad = bad or member.bad
                elif field in group:
                    bad = bad or SampleError(Reason.BAD_FIELD, f"field {field!r} twice")
                elif len(group) == MAX_FIELDS or sum(map(len, group.values())) > MAX_IMAGE_BYTES:
                    bad = bad or SampleError(Reason.TOO_LARGE, f"over {MAX_FIELDS} fields or {MAX_IMAGE_BYTES} bytes")
                else:
                    group[field] = member.data
                if bad:
                    group = {}
    except SampleError as error:
        damage = error
    except streams.damage() as error:
        damage = SampleError(Reason.CORRUPT, f"{type(error).__name__}: {error}")
    if key is not None:
        yield key, group, bad
    if damage:
        yield "", {}, damage


def _upright(image: bytes, exif: Any) -> bytes:
    """The image with the orientation of its metadata as an EXIF tag.

    img2dataset loses the tag when it encodes an image again, but leaves the pixels as the camera wrote them. An image
    that still has a tag was not encoded again.
    """
    if not isinstance(exif, str):
        return image
    try:
        values = fields.parse_json(exif)
    except SampleError:
        return image
    text = values.get("Image Orientation") if isinstance(values, dict) else None
    orientation = _ORIENTATIONS.get(text) if isinstance(text, str) else None
    if orientation is None:
        return image
    try:
        with PIL.Image.open(io.BytesIO(image)) as opened:
            if _ORIENTATION in opened.getexif():
                return image
        tag = PIL.Image.Exif()
        tag[_ORIENTATION] = orientation
        if image.startswith(b"\xff\xd8"):  # A JPEG keeps its pixels: the tag becomes its first segment.
            segment = tag.tobytes()
            return image[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + image[2:]
        buffer = io.BytesIO()
        decode_image(image, "image").save(buffer, "PNG", exif=tag)
        return buffer.getvalue()
    except Exception:  # An unreadable image: whatever decodes it later reports why.
        return image
