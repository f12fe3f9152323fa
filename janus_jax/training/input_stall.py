"""How long the devices have nothing to do because no data comes."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax


class IdleTime:
    """Counts the seconds in which the last step had ended on the devices and no batch was there for the next one.

    Off a CPU a step is only started, and the loop may wait for a batch while the devices still do it: a thread notes
    when it ends.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "step-end")
        self._end: Future[float] | None = None
        self._seconds = 0.0

    def step_started(self, metrics: Any) -> None:
        """The metrics are those that the step returned."""
        self._end = self._thread.submit(_end_of, metrics)

    def waited(self, seconds: float) -> None:
        """The loop has waited for data so many seconds, until now.

        Those before the first step do not count: they are a part of the start. Raises what the last step raised.
        """
        if self._end is not None and self._end.done():
            self._seconds += min(seconds, time.monotonic() - self._end.result())

    def take(self) -> float:
        """Seconds since this was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def close(self) -> None:
        """Waits for the end of the last step."""
        self._thread.shutdown()


def _end_of(metrics: Any) -> float:
    jax.block_until_ready(metrics)
    return time.monotonic()
