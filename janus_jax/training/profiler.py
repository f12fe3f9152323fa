"""Records a profile of chosen steps, for TensorBoard or Perfetto."""

import jax
from etils import epath

from janus_jax.training.actions import Moment


class ProfileSteps:
    """Records steps `first_step` to `first_step + steps - 1`. A periodic action, which is due between two steps.

    Args:
        folder: Folder for the trace.
        first_step: Number of the first recorded step, counted from 1. The first step of a process compiles, so leave
            it out.
        steps: Number of steps; 0 records nothing.
        next_step: Number of the first step that this process does.
    """

    def __init__(self, folder: epath.Path, first_step: int, steps: int, next_step: int):
        self._folder = folder
        self._first = max(first_step, 1)
        self._end = self._first + steps
        self._recording = False
        if self._contains(next_step):
            self._start()

    def is_due(self, moment: Moment) -> bool:
        return not moment.is_last and self._contains(moment.step + 1) != self._recording

    def __call__(self, moment: Moment) -> None:
        """Starts or ends the recording, once the step before has ended on the devices."""
        jax.block_until_ready(moment.metrics)
        if self._recording:
            self.close()
        else:
            self._start()

    def close(self) -> None:
        """Ends a recording that has begun."""
        if self._recording:
            jax.profiler.stop_trace()
            self._recording = False

    def _contains(self, step: int) -> bool:
        return self._first <= step < self._end

    def _start(self) -> None:
        jax.profiler.start_trace(str(self._folder))
        self._recording = True
