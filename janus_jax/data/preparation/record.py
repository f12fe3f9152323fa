"""Preparing one record: its images checked and brought to the training size, its length in tokens."""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image

from janus_jax.data.dropped_samples import Bad, Reason
from janus_jax.data.images import IMAGE_FORMATS, MAX_PIXELS, decode_image, generation_pixels, understanding_pixels
from janus_jax.data.prompts import STYLES, generation_prompt
from janus_jax.data.records import Record
from janus_jax.data.sample_builder import conversation
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError

# Pillow's default level of 6 takes twice the time for 5 % less.
ENCODINGS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 2},
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
# uint8 pixels [B, size, size, 3] -> VQ codes [B, N]. Given by whoever may import JAX.
EncodeCodes = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lengths:
    """What a record's length in tokens depends on."""

    prompt_style: str  # a key of STYLES
    understanding_tokens: int  # per image
    generation_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides the bytes of the prepared records, besides source, tokenizer and image tokenizer."""

    tasks: tuple[str, ...] = ()  # records of other tasks are counted and left out; () keeps all
    image_size: int = 0  # side of the training images; 0 leaves images as they are
    image_encoding: str = "png"  # of resized images; "png" keeps every pixel
    max_aspect: float = 32.0  # longer side / shorter side
    keep_images: bool = True  # also where codes are stored
    lengths: Lengths | None = None  # None: lengths are not stored
    code_size: int = 0  # side of the images whose codes are stored; 0: no codes
    code_batch: int = 16

    def __post_init__(self) -> None:
        if self.image_encoding not in ENCODINGS:
            raise UserError(f"--image_encoding={self.image_encoding}: expected one of {', '.join(ENCODINGS)}")
        if self.image_size < 0:
            raise UserError(
                f"--image_size={self.image_size}: expected a side in pixels, or 0 to leave images as they are"
            )
        if self.image_size and self.code_size and self.image_size != self.code_size:
            raise UserError(f"--image_size={self.image_size}: the checkpoint encodes images of {self.code_size} pixels")
        if self.code_batch < 1:
            raise UserError(f"--code_batch={self.code_batch}: expected at least 1")
        if not self.max_aspect >= 1:
            raise UserError(f"--max_aspect={self.max_aspect}: expected at least 1")
        if not self.keep_images and not self.code_size:
            raise UserError("--keep_images=false needs codes to keep instead: give a --checkpoint")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A record, and the pixels [size, size, 3] uint8 from which its codes are to be computed."""

    record: Record
    pixels: np.ndarray | None
    animated: bool  # one of its images is an animation, of which the first frame is used


def prepare_record(record: Record, settings: Settings, tokenizer: Tokenizer | None) -> Prepared | Bad:
    """Decodes every image, so that no bad one reaches training; the pixels that training sees stay the same.

    Those of resized images equal what training makes of the originals, exactly with "png". Codes are computed from
    what is stored, so that they equal those of the training step also with "jpeg".
    """
    images, pixels, animated = [], None, False
    for data in record.images:
        opened = _open(record.key, data, settings)
        if isinstance(opened, Bad):
            return opened
        image, is_animated = opened
        animated |= is_animated
        if settings.image_size:
            resize = generation_pixels if record.task == "generate" else understanding_pixels
            image = PIL.Image.fromarray(resize(image, settings.image_size))
            data = _encode(image, settings.image_encoding)
            if settings.image_encoding != "png":
                image = decode_image(data, record.key)
        if record.task == "generate" and settings.code_size:
            pixels = generation_pixels(image, settings.code_size)
        images.append(data)
    tokens = None
    if tokenizer is not None and settings.lengths is not None:
        tokens = count_tokens(record, tokenizer, settings.lengths)
    if record.task == "generate" and settings.code_size and pixels is None:
        return Bad(record.key, Reason.NO_IMAGE, "only codes are stored, of another image tokenizer or size")
    resized = bool(images) and settings.image_size > 0  # codes of an earlier preparation are then no longer true
    codes = b"" if resized else record.codes
    return Prepared(dataclasses.replace(record, images=tuple(images), tokens=tokens, codes=codes), pixels, animated)


def count_tokens(record: Record, tokenizer: Tokenizer, lengths: Lengths) -> int:
    """Length of the training sample: what `SampleBuilder` makes of the record."""
    style = STYLES[lengths.prompt_style]
    if record.task == "generate":
        caption = next(message.text for message in record.messages if message.role == "user")
        return len(tokenizer.encode(generation_prompt(caption, style))) + lengths.generation_tokens
    # An image's placeholder becomes begin-of-image, its features and end-of-image.
    text, _ = conversation(record, style)
    return len(tokenizer.encode(text)) + len(record.images) * (lengths.understanding_tokens + 1)


def _open(key: str, data: bytes, settings: Settings) -> tuple[PIL.Image.Image, bool] | Bad:
    """(decoded image, whether it is an animation)."""
    try:
        with PIL.Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as header:
            width, height = header.size
            animated = bool(getattr(header, "is_animated", False))
    except PIL.Image.DecompressionBombError as error:
        return Bad(key, Reason.IMAGE_SHAPE, str(error))
    except PIL.UnidentifiedImageError:  # its message has an address in memory, another one in every run
        return Bad(key, Reason.BAD_IMAGE, f"none of {', '.join(IMAGE_FORMATS)}")
    except Exception as error:  # Pillow's parsers raise many types on damaged files
        return Bad(key, Reason.BAD_IMAGE, f"{type(error).__name__}: {error}")
    if width * height > MAX_PIXELS or min(width, height) < 1:
        return Bad(key, Reason.IMAGE_SHAPE, f"{width}x{height}, at most {MAX_PIXELS} pixels allowed")
    if max(width, height) > settings.max_aspect * min(width, height):
        return Bad(key, Reason.IMAGE_SHAPE, f"{width}x{height} is more extreme than {settings.max_aspect:g} : 1")
    try:
        return decode_image(data, key, training=True), animated
    except UserError as error:
        return Bad(key, Reason.BAD_IMAGE, str(error))


def _encode(image: PIL.Image.Image, encoding: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **ENCODINGS[encoding])
    return buffer.getvalue()
