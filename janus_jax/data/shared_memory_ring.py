"""Hands arrays from a worker process to its parent through memory that both keep mapped.

Fresh shared memory costs about 1 ms/MB, since the operating system clears and maps it page by page. A copy into pages
that are already mapped costs a tenth of that (both measured on a CPU machine). So each logical shard has a ring of
slots that are written again and again. A block that finds its slot still in use, or too small, is left to Grain, which
shares it in fresh memory: that is slower, but never wrong.
"""

from collections.abc import Mapping
from multiprocessing import shared_memory
from typing import Any

import numpy as np

ALIGNMENT = 64  # bytes


class Ring:
    """Slots of shared memory for one writer and one reader. A pickled copy is attached to the same memory.

    Args:
        slots: Number of slots.
        size: Bytes of each slot. Pages that are never written take no memory.
    """

    def __init__(self, slots: int, size: int):
        self._slots, self._size = slots, _aligned(size)
        self._next = 0
        self._read: list[int] = []
        self._memory = shared_memory.SharedMemory(create=True, size=_aligned(slots) + slots * self._size)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_next": 0, "_read": []}

    def write(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
        """Copies arrays into the next slot. Returns what `read` needs, as JSON values, or None if there is no room."""
        slot = self._next
        if self._flags()[slot] or sum(_aligned(array.nbytes) for array in arrays.values()) > self._size:
            return None
        offset, places = _aligned(self._slots) + slot * self._size, {}
        for name, array in arrays.items():
            self._view(array.shape, array.dtype, offset)[...] = array
            places[name] = (array.shape, array.dtype.str, offset)
            offset += _aligned(array.nbytes)
        self._flags()[slot] = 1
        self._next = (slot + 1) % self._slots
        return {"slot": slot, "places": places}

    def read(self, written: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The arrays as views of their slot. They do not change until `release`."""
        self._read.append(written["slot"])
        return {name: self._view(*place) for name, place in written["places"].items()}

    def release(self) -> None:
        """Returns the slots that were read to the writer."""
        self._flags()[self._read] = 0
        self._read = []

    def close(self) -> None:
        """Frees the memory. Only the process that made it may call this, after all views are gone."""
        self._memory.close()
        self._memory.unlink()

    def _flags(self) -> np.ndarray:
        """[slots] uint8: 1 for each slot between `write` and `release`."""
        return self._view((self._slots,), "u1", 0)

    def _view(self, shape: Any, dtype: Any, offset: int) -> np.ndarray:
        return np.ndarray(shape, dtype, buffer=self._memory.buf, offset=offset)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
