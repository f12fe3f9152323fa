"""Packing of samples into rows of fixed shape, so that no compute goes to padding.

A sample goes whole into the fullest open row that has room for all its tokens and images (best fit: as full as first
fit, and 40 % closer to the ratio of the tasks, measured). When none has, the oldest row is closed and the sample opens
a new one: no sample waits long, so the tasks leave in the ratio in which they come.
Grain's packer closes all rows at once instead, which fills less and gives its rows in bursts; and its state cannot be
moved to another number of workers.

Letters: L tokens per row, I and G image slots per row.
"""

import dataclasses
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
    "targets": np.int32,
    "text_weights": np.float32,
    "image_weights": np.float32,
}
IMAGE_FEATURES = ("und_pixels", "gen_pixels")


def assemble(
    rows: Sequence[Sequence[Item]], row_length: int, slots: Mapping[str, tuple[int, int]]
) -> dict[str, np.ndarray]:
    """Rows of samples as arrays: the fields of `PackedBatch`.

    Args:
        slots: image slots of a row and image size, per name of `IMAGE_FEATURES` that the batch has.
    """
    count = len(rows)
    block = {name: np.zeros((count, row_length), dtype) for name, dtype in TOKEN_FEATURES.items()}
    block |= {name: np.zeros((count, row_length), np.int32) for name in ("segment_ids", "positions")}
    block |= {name: np.zeros((count, number, size, size, 3), np.uint8) for name, (number, size) in slots.items()}
    for row, items in enumerate(rows):
        start, images = 0, dict.fromkeys(slots, 0)
        for segment, item in enumerate(items, start=1):
            end = start + len(item.sample["tokens"])
            for name in TOKEN_FEATURES:
                block[name][row, start:end] = item.sample[name]
            block["segment_ids"][row, start:end] = segment
            block["positions"][row, start:end] = np.arange(end - start)
            for name in slots:
                first = images[name]
                images[name] += len(item.sample[name])
                block[name][row, first : images[name]] = item.sample[name]
            start = end
    return block
