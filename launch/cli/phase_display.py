"""Shows on the terminal what a command is doing, so that nothing that takes long is silent.

Only on stderr, and only if that is a terminal: logs and pipes stay as they are.
"""

import contextlib
import sys
import threading
from collections.abc import Iterator

import tqdm

from janus_jax import phases

QUIET_SECONDS = 0.5  # a phase that ends before is not shown
REFRESH_SECONDS = 0.5
KEPT_SECONDS = 2.0  # the line of a phase that took longer stays on the terminal


def show_phases() -> None:
    """Shows the phases of the library from now on, if stderr is a terminal."""
    if sys.stderr.isatty():
        phases.show_with(terminal_line)


@contextlib.contextmanager
def terminal_line(name: str, total: int | None, unit: str) -> Iterator[phases.Advance]:
    """A line with the time that a phase has taken so far and, where its amount is known, a bar."""
    line = _Line(name, total, unit)
    thread = threading.Thread(target=line.show, daemon=True)
    thread.start()
    try:
        yield line.advance
    finally:
        line.ended.set()
        thread.join()


class _Line:
    """A line of the terminal, which a thread of its own writes, so that it moves while the phase waits."""

    def __init__(self, name: str, total: int | None, unit: str):
        self.ended = threading.Event()
        self._name, self._total, self._unit = name, total, unit
        self._done = 0

    def advance(self, amount: int) -> None:
        self._done += amount

    def show(self) -> None:
        if self.ended.wait(QUIET_SECONDS):
            return
        # A phase of unknown amount has a clock in place of a bar.
        form = "{desc}: {elapsed}" if self._total is None else None
        with tqdm.tqdm(
            desc=self._name, total=self._total, unit=self._unit, unit_scale=True, bar_format=form, file=sys.stderr
        ) as bar:
            bar.start_t -= QUIET_SECONDS
            while True:
                ended = self.ended.wait(REFRESH_SECONDS)
                bar.update(self._done - bar.n)
                bar.refresh()
                if ended:
                    bar.leave = bar.format_dict["elapsed"] >= KEPT_SECONDS
                    return
