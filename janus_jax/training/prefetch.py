"""Puts batches on the devices ahead of the training loop, so that the thread of the loop only has to start steps."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding

from janus_jax.data.stream import Stream

AHEAD = 2  # number of batches on the devices that wait for their step
POLL_SECONDS = 0.5  # time between two checks whether a wait for a batch shall end


class DevicePrefetch:
    """Batches of a stream as global arrays, of which this process holds its rows.

    `state` is the state of the stream after the last batch that was returned. The iteration ends when `stopping()` is
    true while no batch is ready.
    """

    def __init__(self, stream: Stream, sharding: NamedSharding, stopping: Callable[[], bool] = lambda: False):
        self.state = stream.get_state()
        self._stopping, self._stopped = stopping, False
        self._waited = 0.0
        self._stream, self._sharding = stream, sharding
        self._batches: queue.Queue[tuple[Any, Any, BaseException | None]] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True, name="device-prefetch")
        self._thread.start()

    def __iter__(self) -> "DevicePrefetch":
        return self

    def __next__(self) -> Any:
        """The next batch. Raises what the stream raised."""
        start = time.monotonic()
        try:
            batch, state, error = self._get()
        finally:
            self._waited += time.monotonic() - start
        if error is not None:
            raise error
        self.state = state
        return batch

    def take_waited(self) -> float:
        """Seconds that the loop has waited for data since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """Stops the thread and the stream. Leaves both alone if a stop found no batch, since they may never end."""
        self._closed.set()
        while self._thread.is_alive() and not self._stopped:
            try:
                self._batches.get(timeout=0.1)  # the thread may wait for a free place in the queue
            except queue.Empty:
                continue
        if not self._stopped:
            self._stream.close()

    def _get(self) -> tuple[Any, Any, BaseException | None]:
        while True:
            try:
                return self._batches.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if self._stopping():
                    self._stopped = True
                    raise StopIteration from None

    def _fill(self) -> None:
        while not self._closed.is_set():
            try:
                batch = jax.tree.map(self._put, next(self._stream))
                self._batches.put((batch, self._stream.get_state(), None))
            except BaseException as error:  # the loop must see every error
                self._batches.put((None, None, error))
                return

    def _put(self, x: Any) -> jax.Array:
        return jax.make_array_from_process_local_data(self._sharding, x)
