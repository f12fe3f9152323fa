"""Prompts are read in pieces of two sizes, so that prompts of any length and number of images take the same programs.

A piece of text holds `Buckets.prompt` tokens of each row, and a piece of an image the tokens of one image of each row.
The rows of a batch have their images in the same pieces. What a row has less of than others is padding, which is
written to the cache like tokens and which nothing attends to.

Letters: B rows, T tokens of a piece, S slots of the cache.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """A part of the prompts of a batch. Tokens are aligned to the right; padding is segment 0."""

    tokens: np.ndarray  # [B, T] int32; without meaning in a piece of an image
    segment_ids: np.ndarray  # [B, T] int32, 1 on the prompt
    positions: np.ndarray  # [B, T] int32, 0 at each prompt's first token
    images: tuple[int | None, ...] | None  # number of the image of each row, None without one; None: a piece of text


def split(
    prompts: Sequence[Sequence[int]], image_ids: Sequence[int], image_tokens: int, text_tokens: int, first: int = 0
) -> list[Piece]:
    """Divides prompts into pieces.

    Args:
        prompts: token ids of each row.
        image_ids: token ids whose positions are filled with the features of an image.
        image_tokens: number of consecutive positions that an image fills.
        text_tokens: size of a piece of text.
        first: position of the first token of each prompt.
    """
    rows = [_texts_and_images(np.asarray(prompt, np.int32), image_ids, image_tokens) for prompt in prompts]
    num_images = max(len(texts) for texts in rows) - 1
    # A row with fewer images than others has the last ones, because all rows end in the same piece of text.
    rows = [[np.zeros(0, np.int32)] * (num_images + 1 - len(texts)) + texts for texts in rows]
    missing = [num_images - _count_images(prompt, image_ids, image_tokens) for prompt in prompts]
    read, pieces = np.full(len(rows), first), []
    for group in range(num_images + 1):
        texts = [texts[group] for texts in rows]
        length = -(-max(map(len, texts)) // text_tokens) * text_tokens
        padded = np.stack([np.pad(text, (length - len(text), 0)) for text in texts])
        filled = np.stack([np.arange(length) >= length - len(text) for text in texts])
        positions = _positions(filled, read)
        for start in range(0, length, text_tokens):
            part = np.s_[:, start : start + text_tokens]
            pieces.append(Piece(padded[part], filled[part].astype(np.int32), positions[part], None))
        read = read + filled.sum(axis=1)
        if group < num_images:
            images = tuple(group - gap if group >= gap else None for gap in missing)
            filled = np.repeat([[image is not None] for image in images], image_tokens, axis=1)
            tokens = np.zeros(filled.shape, np.int32)
            pieces.append(Piece(tokens, filled.astype(np.int32), _positions(filled, read), images))
            read = read + filled.sum(axis=1)
    return pieces


def total_length(pieces: Sequence[Piece]) -> int:
    """Number of slots of the cache that pieces fill."""
    return sum(piece.tokens.shape[1] for piece in pieces)


def longest(pieces: Sequence[Piece]) -> int:
    """Number of tokens of the longest piece."""
    return max(piece.tokens.shape[1] for piece in pieces)


def _positions(filled: np.ndarray, read: np.ndarray) -> np.ndarray:
    return np.where(filled, read[:, None] + np.cumsum(filled, axis=1) - 1, 0).astype(np.int32)


def _count_images(prompt: Sequence[int], image_ids: Sequence[int], image_tokens: int) -> int:
    return int(np.isin(np.asarray(prompt), image_ids).sum()) // image_tokens


def _texts_and_images(prompt: np.ndarray, image_ids: Sequence[int], image_tokens: int) -> list[np.ndarray]:
    """The texts before, between and after the images of a prompt, one more than it has images."""
    starts = np.flatnonzero(np.isin(prompt, image_ids))[::image_tokens]
    bounds = [0, *(bound for start in starts for bound in (start, start + image_tokens)), len(prompt)]
    return [prompt[begin:end] for begin, end in zip(bounds[::2], bounds[1::2], strict=True)]
