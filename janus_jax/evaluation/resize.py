"""How images become inputs of the networks that measure them, as the known tools resize and normalise them.

Tools for the Fréchet distance disagree mostly because they resize differently (Parmar et al., 2022). So every result
names its mode, and figures of two modes are never compared.

Letters: H W rows and columns of an image, C channels.
"""

import math
from typing import NamedTuple

import numpy as np
import PIL.Image

INCEPTION_SIZE = 299  # rows and columns that Inception reads
_BICUBIC, _LANCZOS = PIL.Image.Resampling.BICUBIC, PIL.Image.Resampling.LANCZOS


class Mode(NamedTuple):
    """How a tool prepares an image for Inception."""

    bilinear: bool  # PyTorch's bilinear resizing; otherwise Pillow's bicubic one, which averages when an image shrinks
    offset: float  # a pixel from 0 to 255 becomes (pixel - offset) / scale
    scale: float
    square: int | None  # first the centre is cropped to a square and resized to this size, in bytes; None: not at all


MODES = {
    "clean": Mode(False, 128.0, 128.0, None),  # clean-fid's default
    "pytorch_fid": Mode(True, 127.5, 127.5, None),
    "gigagan": Mode(False, 128.0, 128.0, 256),  # GigaGAN's protocol for COCO: a Lanczos step, then clean-fid
}


def inception_pixels(image: PIL.Image.Image, mode: str) -> np.ndarray:
    """An RGB image of any size -> [299, 299, 3] float32, what Inception reads in a mode, which is a key of `MODES`."""
    rule = MODES[mode]
    if rule.square is not None:
        image = centre_square(image, rule.square, _LANCZOS)
    pixels = np.asarray(image, np.float32)
    if image.size != (INCEPTION_SIZE, INCEPTION_SIZE):
        resize = resize_bilinear if rule.bilinear else resize_bicubic
        pixels = np.clip(resize(pixels, INCEPTION_SIZE, INCEPTION_SIZE), 0.0, 255.0)
    return (pixels - np.float32(rule.offset)) / np.float32(rule.scale)


def resize_bicubic(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, C] float32 -> [height, width, C] by Pillow, without rounding to bytes (clean-fid)."""
    channels = [PIL.Image.fromarray(channel) for channel in np.ascontiguousarray(pixels.transpose(2, 0, 1))]
    return np.stack([np.asarray(channel.resize((width, height), _BICUBIC)) for channel in channels], axis=-1)


def resize_bilinear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W, C] float32 -> [height, width, C], as PyTorch's `interpolate(mode="bilinear", align_corners=False)`."""
    for axis, size in enumerate((height, width)):
        centres = np.clip((np.arange(size) + 0.5) * (pixels.shape[axis] / size) - 0.5, 0, pixels.shape[axis] - 1)
        before = np.floor(centres).astype(int)
        after = np.minimum(before + 1, pixels.shape[axis] - 1)
        share = np.expand_dims((centres - before).astype(np.float32), tuple({0, 1, 2} - {axis}))
        pixels = pixels.take(before, axis) * (1 - share) + pixels.take(after, axis) * share
    return pixels


def centre_square(image: PIL.Image.Image, size: int, resampling: PIL.Image.Resampling) -> PIL.Image.Image:
    """Crops the centre to the short side, then resizes to `size` in bytes (GigaGAN, `evaluation.py`).

    Offsets that end in a half are rounded to even numbers, as Python and torchvision's centre crop do.
    """
    side = min(image.size)
    left, top = (round((length - side) / 2) for length in image.size)
    square = image.crop((left, top, left + side, top + side))
    return square if side == size else square.resize((size, size), resampling)


def clip_pixels(image: PIL.Image.Image, size: int) -> np.ndarray:
    """Resizes the short side to `size` (bicubic) and crops the centre: uint8 [size, size, 3], as CLIP's own code.

    Pillow 12 and 13 round images with hard edges differently, by up to 15 of 255 levels in single pixels.
    """
    short_side = min(image.size)
    width, height = (math.floor(side * size / short_side) for side in image.size)
    resized = image.resize((width, height), _BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))
