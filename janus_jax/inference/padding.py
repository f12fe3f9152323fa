"""Batches of prompts of different lengths, padded on the left to a bucketed length.

Letters: B prompts, P padded length, I image slots.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from janus_jax.batches import Modality
from janus_jax.errors import UserError


class Buckets(NamedTuple):
    """Lengths are rounded up to multiples of these, so that a new one rarely compiles a new program.

    Small ones waste little memory and compute, large ones compile less.
    """

    prompt: int = 32
    answer: int = 64


BUCKETS = Buckets()
MAX_BUCKET = 1 << 16


def check_buckets(buckets: Buckets) -> None:
    """Raises UserError for other than two whole numbers from 1 to `MAX_BUCKET`."""
    if not isinstance(buckets, Buckets):
        raise UserError(f"buckets={buckets!r}, expected inference.prompt.Buckets(prompt, answer)")
    for name, value in buckets._asdict().items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_BUCKET:
            raise UserError(f"buckets.{name}={value!r}, expected a whole number from 1 to {MAX_BUCKET}")


def round_up(length: int, bucket: int) -> int:
    """The smallest multiple of `bucket` that holds `length`."""
    return -(-length // bucket) * bucket


class Prompts(NamedTuple):
    """Left-padded prompts; padding is segment 0, so it changes nothing for the others."""

    tokens: np.ndarray  # [B, P] int32
    modality: np.ndarray  # [B, P] int8
    segment_ids: np.ndarray  # [B, P] int32, 1 on the prompt
    positions: np.ndarray  # [B, P] int32, 0 at each prompt's first token


def pad_prompts(prompts: Sequence[Sequence[int]], image_ids: Sequence[int], bucket: int) -> Prompts:
    """Token ids per prompt -> one batch. The places of `image_ids` become understanding-image positions."""
    padded_length = round_up(max(len(prompt) for prompt in prompts), bucket)
    tokens = np.zeros((len(prompts), padded_length), np.int32)
    segment_ids = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, padded_length - len(prompt) :] = prompt
        segment_ids[row, padded_length - len(prompt) :] = 1
    is_image = np.isin(tokens, image_ids)
    modality = np.where(is_image, Modality.UNDERSTANDING_IMAGE, Modality.TEXT) * segment_ids
    positions = np.maximum(np.cumsum(segment_ids, axis=1) - 1, 0)
    return Prompts(tokens, modality.astype(np.int8), segment_ids, positions.astype(np.int32))
