"""Prepares one record: checks its images, resizes them to the training size, and counts its tokens."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL.Image

from janus_jax.data.condition_images import conditioned_prompt
from janus_jax.data.dropped_samples import DroppedSample, Reason
from janus_jax.data.images import (
    IMAGE_FORMATS,
    MAX_PIXELS,
    DecodedImage,
    decode,
    decode_image,
    encoded_size,
    generation_pixels,
    understanding_pixels,
)
from janus_jax.data.prompts import STYLES
from janus_jax.data.records import Record
from janus_jax.data.sample_builder import conversation
from janus_jax.data.tokenizer import Tokenizer
from janus_jax.errors import UserError

# Pillow's default compression level of 6 takes twice the time and saves 5 % of the bytes (measured).
ENCODINGS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 2},
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
# A function from uint8 pixels [B, size, size, 3] to VQ codes [B, N]. The caller provides it, since this package must
# not import JAX.
EncodeCodes = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthSettings:
    """What the length of a record in tokens depends on."""

    prompt_style: str  # A key of STYLES.
    understanding_tokens: int  # Number of tokens of an understanding image.
    generation_tokens: int  # Number of tokens of a generation image.


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """Everything that decides the bytes of prepared records, besides the data set and the two tokenizers."""

    tasks: tuple[str, ...] = ()  # Records of other tasks are counted and left out; () keeps all.
    image_size: int = 0  # Side of the training images in pixels; 0 leaves images as they are.
    image_encoding: str = "png"  # Encoding of resized images; "png" keeps every pixel.
    max_aspect: float = 32.0  # Largest allowed ratio of longer to shorter side.
    keep_images: bool = True  # Whether to keep images whose codes are stored.
    lengths: LengthSettings | None = None  # None: lengths are not stored.
    code_size: int = 0  # Side of the images that are encoded to codes; 0: no codes.
    code_batch: int = 16  # Number of images encoded at once.

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
            raise UserError("--keep_images=false would keep nothing of an image; give --checkpoint to store codes")


@dataclasses.dataclass(frozen=True)
class PreparedRecord:
    """A prepared record."""

    record: Record
    pixels: Sequence[np.ndarray]  # [size, size, 3] uint8 of each image whose codes must be computed.
    animated: bool  # Whether an image is an animation, whose first frame is used.
    metadata_ignored: bool = False  # Whether an image has metadata that cannot be read.


def prepare_record(
    record: Record, settings: RecordSettings, tokenizer: Tokenizer | None
) -> PreparedRecord | DroppedSample:
    """Prepares a record, or says why it is dropped.

    Every image is decoded, so that no bad one reaches training. With "png", training gets the same pixels of a resized
    image as of the original. Codes are computed from the stored image, so that they equal those of the training step
    with "jpeg" too.
    """
    images, animated, metadata_ignored = [], False, False
    pixels: list[np.ndarray] = []
    for number, data in enumerate(record.images):
        is_generated = record.task == "generate" and number == record.num_conditions
        opened = _open(record.key, data, settings)
        if isinstance(opened, DroppedSample):
            return opened
        image = opened.image
        animated |= opened.animated
        metadata_ignored |= opened.metadata_ignored
        resize = generation_pixels if is_generated else understanding_pixels
        if settings.image_size:
            image = PIL.Image.fromarray(resize(image, settings.image_size))
            data = _encode(image, settings.image_encoding)
            if settings.image_encoding != "png":
                image = decode_image(data, record.key)
        if record.task == "generate" and settings.code_size:
            pixels.append(resize(image, settings.code_size))
        images.append(data)
    tokens = None
    if tokenizer is not None and settings.lengths is not None:
        tokens = count_tokens(record, tokenizer, settings.lengths)
    if record.task == "generate" and settings.code_size and len(images) == record.num_conditions:
        return DroppedSample(
            record.key,
            Reason.NO_IMAGE,
            "it has codes of another tokenizer or size, but no image",
        )
    resized = bool(images) and settings.image_size > 0  # Codes of an earlier preparation would not fit.
    codes = b"" if resized else record.codes
    record = dataclasses.replace(record, images=tuple(images), tokens=tokens, codes=codes)
    return PreparedRecord(record, pixels, animated, metadata_ignored)


def count_tokens(record: Record, tokenizer: Tokenizer, lengths: LengthSettings) -> int:
    """Number of tokens of the training sample that `SampleBuilder` makes of a record."""
    style = STYLES[lengths.prompt_style]
    if record.task == "generate":
        sizes = lengths.understanding_tokens, lengths.generation_tokens
        return len(conditioned_prompt(record.messages[0].text, tokenizer, style, *sizes)) + lengths.generation_tokens
    # The placeholder of an image becomes begin-of-image, its features and end-of-image.
    text, _ = conversation(record, style)
    return len(tokenizer.encode(text)) + len(record.images) * (lengths.understanding_tokens + 1)


def _open(key: str, data: bytes, settings: RecordSettings) -> DecodedImage | DroppedSample:
    """The decoded image, or why it cannot be used."""
    try:
        width, height = encoded_size(data)
    except PIL.Image.DecompressionBombError as error:
        return DroppedSample(key, Reason.IMAGE_SHAPE, str(error))
    except PIL.UnidentifiedImageError:  # Its message holds a memory address, which differs between runs.
        return DroppedSample(key, Reason.BAD_IMAGE, f"its format is none of {', '.join(IMAGE_FORMATS)}")
    except Exception as error:  # Pillow's parsers raise many types for damaged files.
        return DroppedSample(key, Reason.BAD_IMAGE, f"{type(error).__name__}: {error}")
    if width * height > MAX_PIXELS or min(width, height) < 1:
        return DroppedSample(key, Reason.IMAGE_SHAPE, f"{width}x{height}, at most {MAX_PIXELS} pixels allowed")
    if max(width, height) > settings.max_aspect * min(width, height):
        return DroppedSample(
            key, Reason.IMAGE_SHAPE, f"{width}x{height} is more extreme than {settings.max_aspect:g} : 1"
        )
    try:
        return decode(data, key, training=True)
    except UserError as error:
        return DroppedSample(key, Reason.BAD_IMAGE, str(error))


def _encode(image: PIL.Image.Image, encoding: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **ENCODINGS[encoding])
    return buffer.getvalue()
