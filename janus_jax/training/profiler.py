"""A profile of chosen steps, for TensorBoard or Perfetto."""

import jax
from etils import epath

from janus_jax.training.objectives.base import Metrics


class Profile:
    """Records steps `first_step` .. `first_step + steps - 1`.

    Args:
        folder: gets the trace.
        first_step: counted from 1; leave out the first steps of a process, which compile.
        steps: 0 records nothing.
    """

    def __init__(self, folder: epath.Path, first_step: int, steps: int):
        self._folder = folder
        self._first = max(first_step, 1)
        self._end = self._first + steps
        self._recording = False

    def before(self, step: int, metrics: Metrics | None) -> None:
        """To be called before each step, with the metrics of the one before, whose end a recording waits for."""
        if self._recording and step >= self._end:
            jax.block_until_ready(metrics)
            self.close()
        elif not self._recording and self._first <= step < self._end:
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(str(self._folder))
            self._recording = True

    def close(self) -> None:
        """Ends a recording that is under way."""
        if self._recording:
            jax.profiler.stop_trace()
            self._recording = False
