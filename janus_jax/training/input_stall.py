"""Measures how long the devices have nothing to do because no data comes."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax


class InputStall:
    """Counts the seconds in which the last step had ended on the devices and there was no batch for the next one.

    On accelerators the loop only starts a step, and may wait for a batch while the devices still compute. So a thread
    waits for the end of the step and records the time.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "step-end")
        self._end: Future[float] | None = None
        self._seconds = 0.0

    def step_started(self, metrics: Any) -> None:
        """To be called with the metrics that the step returned, whose computation may not have ended."""
        self._end = self._thread.submit(_end_of, metrics)

    def waited(self, seconds: float) -> None:
        """To be called when the loop has just waited for data for so many seconds.

        Seconds before the first step do not count, since they belong to the start. Raises what the last step raised.
        """
        if self._end is not None and self._end.done():
            self._seconds += min(seconds, time.monotonic() - self._end.result())

    def take(self) -> float:
        """Seconds counted since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def close(self) -> None:
        """Waits for the end of the last step, and ends the thread."""
        self._thread.shutdown()


def _end_of(metrics: Any) -> float:
    jax.block_until_ready(metrics)
    return time.monotonic()
