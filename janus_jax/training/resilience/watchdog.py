"""Ends a process whose steps or last save do not end, as when another process of the run is alive but hangs."""

import sys
import threading
import time
from collections.abc import Callable

from janus_jax.training.resilience.exit_codes import RESTART, end_at_once


class Watchdog:
    """A thread that ends the process with exit code RESTART when one of its time limits is exceeded.

    It ends the process at once and closes nothing, since the thread that hangs cannot be interrupted. The last complete
    checkpoint stays.

    Args:
        start_seconds: Limit from the start to the end of the first step, and from `run_ends` to `close`: a last save
            may take as long as reading a checkpoint at the start.
        seconds: Limit from the end of one step to the end of the next.
        stopping: Tells whether the run was asked to stop.
        stop_seconds: Limit for each step after the first one, once the run was asked to stop.
        patience: Seconds added to every limit, for a process that the others need in order to end by themselves.
    """

    def __init__(
        self,
        start_seconds: float,
        seconds: float,
        stopping: Callable[[], bool],
        stop_seconds: float,
        patience: float = 0.0,
    ):
        self._start_seconds, self._seconds, self._patience = start_seconds, seconds, patience
        self._stopping, self._stop_seconds = stopping, min(stop_seconds, seconds)
        self._started = time.monotonic()
        self._step = 0
        self._ended: float | None = None
        self._ending: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def step_ended(self, step: int) -> None:
        """Starts the limit of the next step. May be called again for the same step, by work that takes long."""
        self._step, self._ended = step, time.monotonic()

    def run_ends(self) -> None:
        """Starts the limit for everything after the last step, above all the last save. Only the first call counts."""
        self._ending = self._ending or time.monotonic()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        asked: float | None = None  # time at which the run was asked to stop
        while not self._closed.wait(min(1.0, self._stop_seconds / 4)):
            now = time.monotonic()
            if self._ending is not None:
                if now - self._ending > self._start_seconds + self._patience:
                    self.end(f"no end of saving {self._start_seconds:g} s after step {self._step} (--start_timeout)")
                continue
            if self._ended is None:
                if now - self._started > self._start_seconds + self._patience:
                    self.end(f"no first step has ended {self._start_seconds:g} s after the start (--start_timeout)")
                continue
            if asked is None and self._stopping():
                asked = now
            if now - self._ended > self._seconds + self._patience:
                self.end(f"no step has ended for {self._seconds:g} s after step {self._step}")
            if asked is not None and now - max(asked, self._ended) > self._stop_seconds + self._patience:
                self.end(f"asked to stop, but no step has ended for {self._stop_seconds:g} s after step {self._step}")

    def end(self, reason: str) -> None:
        """Prints the reason and ends the process. Tests replace it."""
        print(f"error: {reason}: this process, its data or another process of the run hangs", file=sys.stderr)
        end_at_once(RESTART)
