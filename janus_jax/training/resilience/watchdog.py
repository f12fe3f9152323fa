"""Ends a process whose first step, later ones or last save do not end, as when another process hangs but lives."""

import sys
import threading
import time
from collections.abc import Callable

from janus_jax.training.resilience.exit_codes import RESTART, end_at_once


class Watchdog:
    """Without a first `step_ended` in `start_seconds`, or another one in `seconds`, says so and ends with code RESTART.

    Also without `close` in `start_seconds` after `run_ends`: a last save may take as long as reading one at the start.
    At once, without closing anything: whoever hangs cannot be asked. The last complete checkpoint stays.

    Args:
        stopping: whether the run has been asked to stop; from then on a step but the first has `stop_seconds` at most.
        patience: seconds more, for a process that the others need to end by themselves.
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
        self._step, self._ended = step, time.monotonic()

    def run_ends(self) -> None:
        """No step has to end any more, but what is left to do: the last save, above all. Only the first call counts."""
        self._ending = self._ending or time.monotonic()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        asked: float | None = None  # when the run was asked to stop
        while not self._closed.wait(min(1.0, self._stop_seconds / 4)):
            now = time.monotonic()
            if self._ending is not None:
                if now - self._ending > self._start_seconds + self._patience:
                    self._end(f"no end of saving {self._start_seconds:g} s after step {self._step} (--start_timeout)")
                continue
            if self._ended is None:
                if now - self._started > self._start_seconds + self._patience:
                    self._end(f"no first step has ended {self._start_seconds:g} s after the start (--start_timeout)")
                continue
            if asked is None and self._stopping():
                asked = now
            if now - self._ended > self._seconds + self._patience:
                self._end(f"no step has ended for {self._seconds:g} s after step {self._step}")
            if asked is not None and now - max(asked, self._ended) > self._stop_seconds + self._patience:
                self._end(f"asked to stop, but no step has ended for {self._stop_seconds:g} s after step {self._step}")

    def _end(self, reason: str) -> None:
        print(f"error: {reason}: this process, its data or another process of the run hangs", file=sys.stderr)
        end_at_once(RESTART)
