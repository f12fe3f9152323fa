"""Ends a run between two steps when a signal asks for it, even while it waits for the data of the next step."""

import signal
import types

import jax
from absl import logging
from jax._src import distributed  # JAX 0.10 to 0.12 have no public way to read the notice
from jax.experimental import multihost_utils

_NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # key under which the coordination service stores the time of a SIGTERM


class DataStalled(KeyboardInterrupt):
    """A stop while no data came. The command must end at once, since threads may wait for that data for ever."""


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a request to stop. A second Ctrl-C interrupts at once.

    With several processes, JAX's coordination service watches for SIGTERM and lets all of them agree on a step to stop
    after. So a process whose data stalls cannot stop alone; the `Watchdog` ends it.
    """

    def __enter__(self) -> "StopRequest":
        self._requested = self._agreed = False
        self._asked = 0
        numbers = () if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether the run shall end now. Several processes agree on one of their questions, so all must ask alike."""
        if jax.process_count() == 1:
            return self._requested
        self._asked += 1  # numbers all questions, of which each process must have asked the same ones
        self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(self._asked)
        return self._agreed

    def pending(self) -> bool:
        """Whether this process was asked to stop. Always false with several processes, which only stop together."""
        return self._requested

    def _request(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self._requested = True
        signal.signal(number, signal.default_int_handler)
        logging.warning("signal %d: ending the work in hand and one step at most, then saving a checkpoint", number)


def stop_announced() -> bool:
    """Whether any of several processes has received a SIGTERM."""
    client = distributed.global_state.client
    if client is None:
        return False
    try:
        return bool(client.key_value_try_get(_NOTICE))
    except jax.errors.JaxRuntimeError:  # no process has received one: the key does not exist
        return False
