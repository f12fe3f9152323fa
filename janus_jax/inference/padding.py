"""Batches of prompts of different lengths, padded on the left to a bucketed length.

Letters: B prompts, P padded length.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from janus_jax.batches import Modality
from janus_jax.errors import UserError


class Buckets(NamedTuple):
    """Numbers of tokens to which lengths are rounded up, so that a new length rarely compiles a new program."""

    prompt: int = 32  # size of the pieces of text in which prompts are read
    answer: int = 64  # the finest step of the lengths of caches (`cache_lengths`)


BUCKETS = Buckets()
MAX_BUCKET = 1 << 16


def check_buckets(buckets: Buckets) -> None:
    """Raises UserError unless both buckets are whole numbers from 1 to `MAX_BUCKET`."""
    if not isinstance(buckets, Buckets):
        raise UserError(f"buckets={buckets!r}, expected janus_jax.inference.padding.Buckets(prompt, answer)")
    for name, value in buckets._asdict().items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_BUCKET:
            raise UserError(f"buckets.{name}={value!r}, expected a whole number from 1 to {MAX_BUCKET}")


def round_up(length: int, bucket: int) -> int:
    """The smallest multiple of `bucket` that is at least `length`."""
    return -(-length // bucket) * bucket


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`, which is at least 1."""
    return 1 << (number - 1).bit_length()


class PaddedPrompts(NamedTuple):
    """Left-padded prompts. Padding is segment 0, which no token attends to."""

    tokens: np.ndarray  # [B, P] int32
    modality: np.ndarray  # [B, P] int8
    segment_ids: np.ndarray  # [B, P] int32, 1 on the prompt
    positions: np.ndarray  # [B, P] int32, 0 at each prompt's first token


def pad_prompts(prompts: Sequence[Sequence[int]], image_ids: Sequence[int], bucket: int) -> PaddedPrompts:
    """Makes one batch of the token ids of each prompt.

    Args:
        image_ids: token ids whose positions are filled with the features of an understanding image.
        bucket: the padded length is a multiple of it.
    """
    padded_length = round_up(max(len(prompt) for prompt in prompts), bucket)
    tokens = np.zeros((len(prompts), padded_length), np.int32)
    segment_ids = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, padded_length - len(prompt) :] = prompt
        segment_ids[row, padded_length - len(prompt) :] = 1
    is_image = np.isin(tokens, image_ids)
    modality = np.where(is_image, Modality.UNDERSTANDING_IMAGE, Modality.TEXT) * segment_ids
    positions = np.maximum(np.cumsum(segment_ids, axis=1) - 1, 0)
    return PaddedPrompts(tokens, modality.astype(np.int8), segment_ids, positions.astype(np.int32))
