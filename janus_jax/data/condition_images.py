"""Prompts of images that are generated from other images, the condition images, in the layout of Janus-4o.

A condition image is `<begin_of_image>`, its features of the vision encoder, `<end_of_image>`, `<begin_of_image>`, its
VQ codes, `<end_of_image>`. Where its codes are left out, pad tokens take their places (train_janus.py of
ShareGPT-4o-Image).

Letters: L tokens, N features of an image, C codes of an image.
"""

import numpy as np

from janus_jax.data.prompts import (
    BEGIN_OF_IMAGE,
    END_OF_IMAGE,
    IMAGE_MARKER,
    IMAGE_PLACEHOLDER,
    PAD,
    PromptStyle,
    generation_prompt,
)
from janus_jax.data.tokenizer import Tokenizer

_LAYOUT = f"{BEGIN_OF_IMAGE}{IMAGE_PLACEHOLDER}{END_OF_IMAGE}{BEGIN_OF_IMAGE}{PAD}{END_OF_IMAGE}"


def with_markers(prompt: str, number: int) -> str:
    """A prompt with `<image>` for each condition image: in front, as Janus-4o has them, unless it has some already."""
    return prompt if IMAGE_MARKER in prompt else IMAGE_MARKER * number + prompt


def conditioned_prompt(caption: str, tokenizer: Tokenizer, style: PromptStyle, features: int, codes: int) -> np.ndarray:
    """Ids [L] of the prompt of an image: the placeholder at features of condition images, pad at their codes.

    Args:
        caption: holds `<image>` for each condition image.
        features: N.
        codes: C.
    """
    text = generation_prompt(caption.replace(IMAGE_MARKER, _LAYOUT), style)
    ids = np.array(tokenizer.encode(text), np.int32)
    lengths = np.where(ids == tokenizer.image_id, features, 1)
    lengths[np.flatnonzero(ids == tokenizer.image_id) + 3] = codes
    return np.repeat(ids, lengths)


def code_positions(ids: np.ndarray, image_id: int, features: int, codes: int) -> np.ndarray:
    """Positions [n, C] of the codes of the n condition images of a prompt of `conditioned_prompt`."""
    first = np.flatnonzero(ids == image_id)[::features]
    return (first + features + 2)[:, None] + np.arange(codes)
