"""Several image codes per pass, and the same image: guesses that one pass checks.

A sampled code is a function of the image's random key, its place and the logits alone. So a pass over guessed codes
yields at each place what sampling one code at a time would, as long as all guesses before that place are right, and a
guess is right if it equals what the pass yields there. This is predictive sampling with fixed noise (Wiggers and
Hoogeboom, ICML 2020). Each image of a batch goes on by its own right guesses, as long as it is not too far ahead of the
slowest one.

Letters: R images, N codes per image, W window: codes of an image that a pass reads, the last known one and W - 1
guesses, L places for codes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int

from janus_jax.models.config import CodeModelConfig, FamilyConfig, JanusVariantConfig
from janus_jax.ops.row_places import put

AUTO = "auto"
MAX_WINDOW = 1024
# About the rows of a product whose weights take as long to be read from memory as the rows to be computed, in bfloat16:
# operations per second / bytes per second, 206 on an H200, 240 on a TPU v5e, 160 on a v5p. With 256 rows, 16 images and
# 8 codes, the predicted time of an image is still shorter than with half of them (docs/performance.md).
FREE_ROWS = 256
# Codes that an image may be ahead of the slowest. A pass writes so many more slots of the cache in one block.
MOST_AHEAD = 32
LARGEST_AUTO = 32  # with more, codes per pass hardly grow (docs/performance.md)


def automatic_window(config: CodeModelConfig, images: int, platform: str, shares: int = 1) -> int:
    """The largest power of two whose rows a pass computes in about the time of one row.

    It is 1 on a CPU, where more rows take longer: a window gives little there, or nothing (docs/performance.md).

    Args:
        images: images of a batch, each of which has two rows for each code.
        platform: "cpu", "gpu" or "tpu".
        shares: parts into which the devices divide the images.
    """
    if platform == "cpu" or not supports_windows(config):
        return 1
    most = min(FREE_ROWS * shares // (2 * images), LARGEST_AUTO, config.image_tokens)
    return 1 << (max(most, 1).bit_length() - 1)


def supports_windows(config: FamilyConfig) -> bool:
    """Whether codes can be guessed: a semantic decoder, with a cache of its own, takes them one by one."""
    return not (isinstance(config, JanusVariantConfig) and config.semantic is not None)


def most_ahead(images: int, num_codes: int) -> int:
    """How many codes an image may be ahead of the slowest of its batch."""
    return 0 if images == 1 else min(MOST_AHEAD, num_codes - 1)


def num_right(sampled: Int[Array, "R W"], read: Int[Array, "R W"]) -> Int[Array, " R"]:
    """Number of sampled codes of each image, from 1 to W, up to the first wrong guess.

    Args:
        read: what the pass read: the last known code and the guesses of all but the last sampled code.
    """
    right = sampled[:, :-1] == read[:, 1:]
    return 1 + jnp.sum(jnp.cumprod(right.astype(jnp.int32), axis=1), axis=1)


def advance(known: Int[Array, " R"], right: Int[Array, " R"], num_codes: int) -> Int[Array, " R"]:
    """Number of known codes of each image after `right` more, or fewer if the image would be too far ahead."""
    known = jnp.minimum(known + right, num_codes)
    return jnp.minimum(known, jnp.min(known) + most_ahead(len(known), num_codes))


def put_codes(codes: Int[Array, "R L"], sampled: Int[Array, "R W"], known: Int[Array, " R"]) -> Int[Array, "R L"]:
    """Writes what a pass sampled behind the known codes, and guesses behind that: the last sampled code.

    What a pass sampled behind a wrong guess stays as a guess for the next one.
    """
    sources = jnp.arange(codes.shape[1]) - known[:, None]
    return put(codes, sampled, jnp.minimum(sources, sampled.shape[1] - 1), axis=1)
