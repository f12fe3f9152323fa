"""Ends a run between two steps when a signal asks for it, also while the next step's data does not come."""

import signal
import types

import jax
from absl import logging
from jax._src import distributed  # no public reader of the notice exists
from jax.experimental import multihost_utils

_NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # where the coordination service puts the time of a SIGTERM


class DataStalled(KeyboardInterrupt):
    """A stop while no data came: a command must end at once, since threads may go on waiting for that data."""


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; a second Ctrl-C interrupts at once.

    With several processes, JAX's coordination service watches for SIGTERM and lets all of them agree on a step; so
    that one whose data stalls cannot stop alone: see `Watchdog`.
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
        """Whether the run shall end after this step; to be asked once per step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def pending(self) -> bool:
        """Whether a process that trains alone has been asked to stop."""
        return self._requested

    def _request(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self._requested = True
        signal.signal(number, signal.default_int_handler)
        logging.warning("signal %d: saving a checkpoint after this step", number)


def stop_announced() -> bool:
    """Whether any of several processes has got a SIGTERM."""
    client = distributed.global_state.client
    if client is None:
        return False
    try:
        return bool(client.key_value_try_get(_NOTICE))
    except jax.errors.JaxRuntimeError:  # there is no such key
        return False
