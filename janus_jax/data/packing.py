"""Packing of samples into rows of fixed shape, so that no compute goes to padding.

A sample goes whole into the fullest open row that has room for all its tokens and images (best fit: as full as first
fit, and 40 % closer to the ratio of the tasks, measured). When none has, the oldest row is closed and the sample opens
a new one: no sample waits long, so the tasks leave in the ratio in which they come.
Grain's packer closes all rows at once instead, which fills less and gives its rows in bursts; and its state cannot be
moved to another number of workers.

Letters: L tokens per row.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Item(NamedTuple):
    """A sample to be packed."""

    task: str
    lengths: tuple[int, ...]  # what it takes of each capacity of a row
    sample: dict[str, np.ndarray]
    key: str
    origin: tuple[str, int]  # source and place in it


@dataclasses.dataclass
class OpenRow:
    items: list[Item]
    used: list[int]


class Packer:
    """Rows being filled.

    Args:
        capacity: of a row, e.g. (tokens, understanding images, generation images). The first decides how full it is.
        bins: rows open at a time.
        one_task: whether a row holds samples of one task only.
    """

    def __init__(self, capacity: Sequence[int], bins: int, one_task: bool = False):
        self.rows: list[OpenRow] = []  # from the oldest
        self._capacity = tuple(capacity)
        self._bins = bins
        self._one_task = one_task

    def add(self, item: Item) -> list[Item] | None:
        """Places an item; returns the items of a row that was closed for it."""
        fitting = [row for row in self.rows if self._fits(row, item)]
        if fitting:
            row = max(fitting, key=lambda row: row.used[0])
            row.items.append(item)
            row.used = [used + length for used, length in zip(row.used, item.lengths, strict=True)]
            return None
        finished = self.rows.pop(0).items if len(self.rows) == self._bins else None
        self.rows.append(OpenRow([item], list(item.lengths)))
        return finished

    def _fits(self, row: OpenRow, item: Item) -> bool:
        if self._one_task and row.items[0].task != item.task:
            return False
        return all(u + n <= limit for u, n, limit in zip(row.used, item.lengths, self._capacity, strict=True))


# Per-token features, and their dtypes.
TOKEN_FEATURES = {
    "tokens": np.int32,
    "modality": np.int8,
    "positions": np.int32,
    "targets": np.int32,
    "text_weights": np.float32,
    "image_weights": np.float32,
}
IMAGE_FEATURES = ("und_pixels", "gen_pixels")
COUNT = "_count"


def assemble(rows: Sequence[Sequence[Item]], row_length: int, images: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows of samples as arrays: the fields of `PackedBatch`, but the images without the slots that stay empty.

    A batch has room for more images than most rows hold, and memory that processes share is the dearest part of a
    hand-over: 1 ms/MB, ten times a copy, measured. `join_blocks` adds the empty slots.

    Args:
        images: which of `IMAGE_FEATURES` the batch has: they become [n, size, size, 3], those of the first row first,
            and `und_pixels_count`, `gen_pixels_count` [rows] tell how many are of each.
    """
    block = {name: np.zeros((len(rows), row_length), dtype) for name, dtype in TOKEN_FEATURES.items()}
    block["segment_ids"] = np.zeros((len(rows), row_length), np.int32)
    for row, items in enumerate(rows):
        start = 0
        for segment, item in enumerate(items, start=1):
            end = start + len(item.sample["tokens"])
            for name in TOKEN_FEATURES:
                block[name][row, start:end] = item.sample[name]
            block["segment_ids"][row, start:end] = segment
            start = end
    for name in images:
        block[name] = np.concatenate([item.sample[name] for items in rows for item in items])
        block[name + COUNT] = np.array([sum(len(item.sample[name]) for item in items) for items in rows])
    return block


def block_bytes(rows: int, row_length: int, slots: Mapping[str, tuple[int, int]]) -> int:
    """What `assemble` makes of `rows` rows at most; `slots`: image slots of a row and image size, per image feature."""
    token = sum(np.dtype(dtype).itemsize for dtype in (*TOKEN_FEATURES.values(), np.int32))  # and segment_ids
    images = sum(count * size * size * 3 for count, size in slots.values())
    return rows * (row_length * token + images) + 1024 * (1 + len(slots))  # and the counts, each array aligned


def join_blocks(blocks: Sequence[Mapping[str, np.ndarray]], slots: Mapping[str, int]) -> dict[str, np.ndarray]:
    """One batch of the rows of some blocks: the fields of `PackedBatch`.

    Args:
        slots: image slots of a row, per name of `IMAGE_FEATURES` that the blocks have.
    """
    names = [name for name in blocks[0] if name not in slots and not name.endswith(COUNT)]
    batch = {name: np.concatenate([block[name] for block in blocks]) for name in names}
    for name, number in slots.items():
        counts = np.concatenate([block[name + COUNT] for block in blocks])
        batch[name] = np.zeros((len(counts), number, *blocks[0][name].shape[1:]), np.uint8)
        images = itertools.chain.from_iterable(block[name] for block in blocks)
        for row, count in enumerate(counts):
            for slot in range(count):
                batch[name][row, slot] = next(images)
    return batch
