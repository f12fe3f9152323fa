"""Tells during a run of the quickstart how long the whole run will still take, beside the bar of each phase."""

import time
from collections.abc import Mapping

import tqdm

from janus_jax.training.actions import Action, ActionFactory, Moment
from janus_jax.training.sample_log import SampleLog
from janus_jax.training.start import Run

LINES = 4  # Number of lines for each phase.


class RunProgress:
    """Estimates the time that is left from the time that has passed.

    Args:
        typical: seconds of each part of the run on some machine. Only their proportions count.
        seconds: seconds of the parts that are done, which the caller updates.
    """

    def __init__(self, typical: Mapping[str, float], seconds: Mapping[str, float]):
        self._typical, self._seconds = typical, seconds

    def remaining(self, part: str, done: float, elapsed: float) -> float:
        """Seconds that the run still takes when a share `done` of a part, the current one, took `elapsed` seconds."""
        names = list(self._typical)
        finished = names[: names.index(part)]
        spent = sum(self._seconds.get(name, 0.0) for name in finished) + elapsed
        expected = sum(self._typical[name] for name in finished) + done * self._typical[part]
        return (sum(self._typical.values()) - expected) * spent / expected

    def action(self, phase: str) -> ActionFactory:
        """A periodic action of a training run that prints the remaining time."""

        def make(run: Run, log: SampleLog) -> Action:
            del log
            return _PrintRemaining(self, phase, run.config.train.num_steps, self._seconds.get(phase, 0.0))

        return make


class _PrintRemaining:
    def __init__(self, progress: RunProgress, phase: str, num_steps: int, earlier: float):
        self._progress, self._phase, self._num_steps = progress, phase, num_steps
        self._start = time.monotonic() - earlier  # an interrupted phase took some time before

    def is_due(self, moment: Moment) -> bool:
        return moment.step % max(self._num_steps // LINES, 1) == 0 and not moment.is_last

    def __call__(self, moment: Moment) -> None:
        elapsed = time.monotonic() - self._start
        left = self._progress.remaining(self._phase, moment.step / self._num_steps, elapsed)
        tqdm.tqdm.write(f"whole run: about {left:.0f} s left")

    def close(self) -> None:
        pass
