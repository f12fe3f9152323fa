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
        self._requested = False
        numbers = () if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Whether the run shall end after this step. Must be called exactly once per step, in every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def pending(self) -> bool:
        """Whether this process was asked to stop. Always false with several processes, which only stop together."""
        return self._requested

    def _request(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self._requested = True
        signal.signal(number, signal.default_int_handler)
        logging.warning("signal %d: saving a checkpoint after this step", number)


def stop_announced() -> bool:
    """Whether any of several processes has received a SIGTERM."""
    client = distributed.global_state.client
    if client is None:
        return False
    try:
        return bool(client.key_value_try_get(_NOTICE))
    except jax.errors.JaxRuntimeError:  # no process has received one: the key does not exist
        return False
