"""Ends a process whose steps no longer end, as when another process of the run hangs but lives."""

import os
import sys
import threading
import time


class Watchdog:
    """From the first `step_ended` on: without another one for `seconds`, says so and ends the process with code 1.

    At once, without closing anything: whoever hangs cannot be asked. The last complete checkpoint stays.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._step = 0
        self._ended: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def step_ended(self, step: int) -> None:
        self._step, self._ended = step, time.monotonic()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            ended = self._ended
            if ended is not None and time.monotonic() - ended > self._seconds:
                print(
                    f"error: no step has ended for {self._seconds:g} s after step {self._step}: this process, "
                    "its data or another process of the run hangs",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
