"""Decoding of untrusted images, and the two resizing rules of the Janus family (`image_processing_vlm.py`)."""

import io
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from janus_jax.data.image_metadata import without_metadata
from janus_jax.errors import UserError

MAX_PIXELS = 64 * 1024 * 1024  # Larger images are refused before they are decoded.
# Pillow would try every format it knows. The formats left out start other programs (EPS) or read other files.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_ORIENTATION_TAG = 0x0112
# How pixels are turned upright for each number of the EXIF tag, as in `PIL.ImageOps.exif_transpose`. That function also
# rewrites all other tags, and fails on damaged ones that do not matter here.
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
MIN_SIZE = 14  # Shortest side after resizing, in pixels.


class Normalization(NamedTuple):
    """Pixels to inputs of SigLIP: (byte / 255 - mean) / std in each channel. Padding has the colour of the mean."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def pad_colour(self) -> tuple[int, ...]:
        return tuple(int(255 * mean) for mean in self.mean)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [..., 3] to float32 of the same shape."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (pixels.astype(np.float32) / 255 - mean) / std


class DecodedImage(NamedTuple):
    """A decoded image in RGB, and what was found on the way."""

    image: PIL.Image.Image
    animated: bool  # Whether the file is an animation, of which the image is the first frame.
    metadata_ignored: bool  # Whether metadata that cannot be read was passed over.


JANUS_NORMALIZATION = Normalization((0.5,) * 3, (0.5,) * 3)  # All released models: [-1, 1], grey padding.


def decode_image(data: bytes, origin: str, training: bool = False) -> PIL.Image.Image:
    """The image of `decode`."""
    return decode(data, origin, training).image


def decode(data: bytes, origin: str, training: bool = False) -> DecodedImage:
    """Decodes bytes in one of IMAGE_FORMATS to an RGB image, which is the first frame of an animation; see `to_rgb`.

    Metadata such as colour profiles, comments and EXIF never decide whether there are pixels: where they cannot be
    read, they are passed over.

    Raises:
        UserError: The image is unreadable, truncated, has 32 bits per channel, or is larger than MAX_PIXELS. The
            message names `origin`.
    """
    try:
        return _decode(data, origin, training)
    except UserError as error:
        pixels = without_metadata(data)
        if pixels is None:
            raise
        try:
            return _decode(pixels, origin, training)._replace(metadata_ignored=True)
        except UserError:
            raise error from None  # The image is damaged itself.


def encoded_size(data: bytes) -> tuple[int, int]:
    """(width, height) that the header of an encoded image tells. Raises what Pillow raises for damaged headers."""
    try:
        with PIL.Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as header:
            return header.size
    except PIL.Image.DecompressionBombError:
        raise
    except Exception:  # Pillow raises many types for damaged headers; the metadata may be what is damaged.
        pixels = without_metadata(data)
        if pixels is None:
            raise
        with PIL.Image.open(io.BytesIO(pixels), formats=IMAGE_FORMATS) as header:
            return header.size


def _decode(data: bytes, origin: str, training: bool) -> DecodedImage:
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except PIL.UnidentifiedImageError as error:
        # The text of this error holds a memory address, by which reports of equal runs would differ.
        raise UserError(f"{origin}: not a readable image (of no known format)") from error
    except Exception as error:  # Pillow's decoders raise many types for damaged files.
        raise UserError(f"{origin}: not a readable image ({error})") from error
    animated = bool(getattr(image, "is_animated", False))
    rgb = to_rgb(image, origin, training)
    return DecodedImage(rgb, animated, metadata_ignored=training and _orientation(image) is None)


def to_rgb(image: PIL.Image.Image, origin: str, training: bool = False) -> PIL.Image.Image:
    """Converts any opened image to RGB.

    With `training`, photos are turned upright by their EXIF tag and transparent images are put on white. DeepSeek's
    inference code does neither (plain `convert("RGB")`), so this is off by default. 16-bit grey is rescaled in both
    cases, since `convert` would clip it.

    Raises:
        UserError: The image is truncated, has 32 bits per channel, or is larger than MAX_PIXELS. The message names
            `origin`.
    """
    try:
        if image.width * image.height > MAX_PIXELS:
            raise UserError(f"{origin}: image of {image.width}x{image.height} is over the limit of {MAX_PIXELS} pixels")
        image.load()
        turn = _TURNS.get(_orientation(image) or 0) if training else None
        if turn is not None:
            image = image.transpose(turn)
        if image.mode.startswith("I;16"):
            image = PIL.Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        if image.mode in ("I", "F"):  # Its range is unknown, and `convert` would clip it to black or white.
            raise UserError(f"{origin}: image of mode {image.mode}, expected 8 or 16 bits per channel")
        if training and image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = PIL.Image.new("RGBA", rgba.size, "white")
            image.alpha_composite(rgba)
        return image if image.mode == "RGB" else image.convert("RGB")
    except UserError:
        raise
    except Exception as error:  # Pixels are decoded late, so damage may show only here.
        raise UserError(f"{origin}: not a readable image ({error})") from error


def _orientation(image: PIL.Image.Image) -> int | None:
    """The number of the EXIF tag, 1 where there is none; None if the metadata cannot be read."""
    try:
        number = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # Pillow raises many types for damaged EXIF.
        return None
    return number if isinstance(number, int) else None


def load_image(path: str | os.PathLike) -> PIL.Image.Image:
    """Reads an image file as DeepSeek's inference code does. Raises UserError that names the path."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"image {path}: cannot be read ({error.strerror})") from error
    return decode_image(data, f"image {path}")


def understanding_pixels(
    image: PIL.Image.Image, size: int, pad_colour: tuple[int, ...] = JANUS_NORMALIZATION.pad_colour
) -> np.ndarray:
    """Resizes the long side to `size` (bicubic) and pads the short side: uint8 [size, size, 3].

    Sizes are truncated, not rounded, as in DeepSeek's code. transformers 5 rounds and may differ by one pixel.
    """
    long_side = max(image.size)
    width, height = (max(int(side / long_side * size), MIN_SIZE) for side in image.size)
    resized = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
    square = max(width, height)
    canvas = PIL.Image.new("RGB", (square, square), pad_colour)
    canvas.paste(resized, ((square - width) // 2, (square - height) // 2))
    return np.asarray(canvas)


class Crop(NamedTuple):
    """How a square of `size` pixels is cut out of a generation image or an image for the image tokenizer."""

    random: bool = False  # Whether the place is random (JanusFlow); otherwise it is the centre (Janus, 4.2).
    max_zoom: float = 1.0  # The short side is sampled between size and max_zoom * size (LlamaGen: 1.25).
    flip: bool = False  # Whether half of the images are mirrored (LlamaGen).
    # Whether images are resized by halves first and places are whole pixels, exactly as in LlamaGen's script.
    halving: bool = False


CENTRE = Crop()


def generation_pixels(
    image: PIL.Image.Image, size: int, crop: Crop = CENTRE, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Resizes the short side to `size` (bicubic) and crops the long side: uint8 [size, size, 3] (Janus, 4.2).

    Args:
        crop: Where the image is cropped, and augmentation. A random place, zoom and flip need `rng`.

    Raises:
        UserError: With `crop.halving`, the image is too long.
    """
    if crop.halving:
        return _halving_crop(image, size, crop, rng)
    zoom, x, y, mirror = rng.random(4) if rng else (0.0, 0.5, 0.5, 1.0)
    if not crop.random:
        x = y = 0.5
    target = round(size * (1 + zoom * (crop.max_zoom - 1)))
    short_side = min(image.size)
    width, height = (max(round(side / short_side * target), target) for side in image.size)
    left, top = int(x * (width - size)), int(y * (height - size))
    # Only the part inside the crop is resized, which bounds the memory that a panorama needs. Pillow keeps the box in
    # float32, so about one pixel in a thousand differs by one level of 255 from a crop of the whole resized image.
    scale_x, scale_y = image.width / width, image.height / height
    right, bottom = min((left + size) * scale_x, image.width), min((top + size) * scale_y, image.height)
    box = (left * scale_x, top * scale_y, right, bottom)
    pixels = np.asarray(image.resize((size, size), PIL.Image.Resampling.BICUBIC, box))
    return np.ascontiguousarray(pixels[:, ::-1]) if crop.flip and mirror < 0.5 else pixels


def _halving_crop(image: PIL.Image.Image, size: int, crop: Crop, rng: np.random.Generator | None) -> np.ndarray:
    """`generation_pixels` for a crop with `halving`. Short side, top and left are sampled with both ends included."""
    zoomed = math.ceil(size * crop.max_zoom)
    resized = _resized_in_halves(image, int(rng.integers(size, zoomed, endpoint=True)) if rng else size)
    room = (resized.height - size, resized.width - size)
    top, left = (int(rng.integers(0, r, endpoint=True)) if rng and crop.random else r // 2 for r in room)
    pixels = np.asarray(resized.crop((left, top, left + size, top + size)))
    return np.ascontiguousarray(pixels[:, ::-1]) if crop.flip and rng and rng.random() < 0.5 else pixels


def _resized_in_halves(image: PIL.Image.Image, short_side: int) -> PIL.Image.Image:
    """Resizes the short side as LlamaGen's script does (`dataset/augmentation.py`).

    The image is halved, by means of 2 x 2 pixels, while its short side is at least twice the one that is wanted. Then
    it is resized as a whole (bicubic).

    Raises:
        UserError: The image is so long that the whole of it would have more than MAX_PIXELS.
    """
    size = image.size
    while min(image.size) >= 2 * short_side:
        image = image.resize((image.width // 2, image.height // 2), PIL.Image.Resampling.BOX)
    scale = short_side / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_PIXELS:
        raise UserError(
            f"image of {size[0]}x{size[1]}: {width}x{height} after resizing, expected at most {MAX_PIXELS} pixels"
        )
    return image.resize((width, height), PIL.Image.Resampling.BICUBIC)


def to_images(pixels: np.ndarray) -> list[PIL.Image.Image]:
    """Images of model output [B, H, W, 3] in [-1, 1]; levels are truncated, not rounded, as in DeepSeek's code."""
    clipped = np.clip((np.asarray(pixels, np.float32) + 1) / 2 * 255, 0, 255)
    return [PIL.Image.fromarray(image) for image in clipped.astype(np.uint8)]


def grid(images: Sequence[PIL.Image.Image], columns: int) -> PIL.Image.Image:
    """One image that shows images of one size side by side, row by row."""
    width, height = images[0].size
    canvas = PIL.Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), "white")
    for i, image in enumerate(images):
        canvas.paste(image, (i % columns * width, i // columns * height))
    return canvas
