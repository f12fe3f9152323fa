"""Several image codes per pass, and the same image: guesses that one pass checks.

A sampled code is a function of the image's random key, its place and the logits alone. So a pass over guessed codes
yields at each place what sampling one code at a time would, as long as all guesses before that place are right, and a
guess is right if it equals what the pass yields there. All images of a batch go on by as many codes as the image with
the fewest right guesses. This is predictive sampling with fixed noise (Wiggers and Hoogeboom, ICML 2020).

Letters: R images, N codes per image, W window: codes of an image that a pass reads, the last known one and W - 1
guesses.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from janus_jax.models.config import CodeModelConfig, FamilyConfig, JanusVariantConfig

Count = Int[Array, ""] | int

AUTO = "auto"
MAX_WINDOW = 1024
# Rows of a product whose weights take longer to be read from memory than the rows to be computed, in bfloat16: 989e12
# operations per second / 2 / 4.8e12 bytes per second * 2 bytes on an H200; more on TPU v5e and v6e, fewer on a v5p.
FREE_ROWS = 192
LARGEST_AUTO = 32  # with more, codes per pass hardly grow (docs/performance.md)


def automatic_window(config: CodeModelConfig, images: int, platform: str, shares: int = 1) -> int:
    """The largest power of two whose rows a pass computes in about the time of one row.

    It is 1 on a CPU, where a second row already costs about what it gives (docs/performance.md).

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


def num_known(sampled: Int[Array, "R W"], read: Int[Array, "R W"]) -> Int[Array, ""]:
    """Number of sampled codes, from 1 to W, that are right in every image.

    Args:
        read: what the pass read: the last known code and the guesses of all but the last sampled code.
    """
    right = sampled[:, :-1] == read[:, 1:]
    return 1 + jnp.min(jnp.sum(jnp.cumprod(right.astype(jnp.int32), axis=1), axis=1))


def guess(codes: Int[Array, "R L"], known: Count, sampled: Count, window: int) -> Int[Array, "R L"]:
    """Puts guesses at the W - 1 places behind the known codes.

    What the last pass sampled there stays; places that no pass has reached get the code to the left.

    Args:
        codes: with L >= known + W - 1 places.
        known, sampled: number of known codes, and of codes that were sampled, right or wrong.
    """
    places = known + jnp.arange(window - 1)
    guesses = jnp.take(codes, jnp.minimum(places, sampled - 1), axis=1)
    return jax.lax.dynamic_update_slice_in_dim(codes, guesses, known, axis=1)
