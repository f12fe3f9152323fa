"""The progress of a long command, counted in bytes."""

import math
import sys
from typing import Self

import tqdm

_LINES = 10


class Progress:
    """Shows a bar on a terminal. Elsewhere it prints a line for every tenth of the bytes, so that a log stays short."""

    def __init__(self, size: int):
        self.tensors = 0
        self._size = size
        self._done = 0
        is_terminal = sys.stderr.isatty()
        self._bar = tqdm.tqdm(total=size, unit="B", unit_scale=True, disable=not is_terminal)
        self._next_line = math.inf if is_terminal else size / _LINES

    def add(self, nbytes: int) -> None:
        """Counts a tensor of `nbytes` bytes that was written."""
        self.tensors += 1
        self._done += nbytes
        self._bar.set_postfix_str(f"{self.tensors} tensors", refresh=False)
        self._bar.update(nbytes)
        if self._done >= self._next_line:
            percent = 100 * self._done // self._size
            print(f"{percent}%: {self.tensors} tensors, {self._done / 1e9:.2f} GB", file=sys.stderr, flush=True)
            self._next_line = (_LINES * self._done // self._size + 1) * self._size / _LINES

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
