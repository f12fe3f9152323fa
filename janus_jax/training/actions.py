"""Periodic actions: the work that a run does between two steps, such as validating, logging and saving.

The training loop knows actions only by the protocol here. `train(..., actions=[factory])` adds further ones, which may
be built on packages that `training` does not import.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from etils import epath

from janus_jax.data.stream import drop_metrics
from janus_jax.models.params import Params
from janus_jax.storage import read_json, write_json
from janus_jax.training.checkpointing import Checkpoints
from janus_jax.training.freezing import merge
from janus_jax.training.input_stall import InputStall
from janus_jax.training.metrics_log import MetricsLog
from janus_jax.training.objectives.base import Metrics
from janus_jax.training.prefetch import DevicePrefetch
from janus_jax.training.sample_log import SampleLog
from janus_jax.training.start import Run, is_first_process
from janus_jax.training.train_state import TrainState
from janus_jax.training.validation import Validation


class Moment(NamedTuple):
    """The time between two steps, as an action sees it."""

    step: int  # number of the step that was done last
    state: TrainState  # state after that step; the next step donates it, so an action must not keep its arrays
    metrics: Metrics | None  # metrics of that step, whose computation may not have ended
    is_last: bool  # whether this process does no further step
    is_stopping: bool  # whether a signal asked to stop; there may be little time left
    keep_alive: Callable[[], None]  # to be called now and then by work that may take longer than a step
    # Whether a signal has asked to stop meanwhile, for work that can end early. All processes must ask equally often.
    stop_requested: Callable[[], bool]

    def params(self, ema: bool = False) -> Params:
        """All parameters of the model, without a copy. With `ema`, the trained ones are those of the moving average."""
        trainable = self.state.ema if ema else self.state.trainable
        if trainable is None:
            raise ValueError("the run keeps no moving average of its parameters")
        return merge(trainable, self.state.frozen)


class Action(Protocol):
    """Work between two steps. With several processes, all of them call it at the same steps."""

    def is_due(self, moment: Moment) -> bool:
        """Whether to call the action now. Asked after every step, so it must not wait for the devices."""
        ...

    def __call__(self, moment: Moment) -> None: ...

    def close(self) -> None:
        """Called once when the run ends, also after an error."""
        ...


# What makes an action of another package once the run is set up, before its first step.
ActionFactory = Callable[[Run, SampleLog], Action]
# The same for an action that reports figures, which are written with the metrics of its step.
MeasureFactory = Callable[[Run, MetricsLog], Action]


def every(steps: int, moment: Moment) -> bool:
    """Whether an action is due that runs every so many steps (0: never) and after the last step of the whole run.

    It is not due in a run that stops because of a signal. After a restart its next interval comes as usual. A signal
    that comes while an action works stops the run after the next step. An action that takes long should end early then.
    """
    return bool(steps) and not moment.is_stopping and (moment.is_last or moment.step % steps == 0)


class OtherWork:
    """An action whose time does not count as time of the steps, in none of the logged rates."""

    def __init__(self, action: Action, log: MetricsLog):
        self._action, self._log = action, log

    def is_due(self, moment: Moment) -> bool:
        return self._action.is_due(moment)

    def __call__(self, moment: Moment) -> None:
        start = time.monotonic()
        self._action(moment)
        self._log.leave_out(time.monotonic() - start)
        moment.keep_alive()

    def close(self) -> None:
        self._action.close()


class Validate:
    """Evaluates held-out rows every `every_steps` steps and after the last one; the log gets `validation/...`.

    A signal ends it after the batch in hand, without a result.

    Where the run is evaluated before its first step, the log also gets `validation/change/...`, the change since then.

    Args:
        start_file: file in the workdir that keeps the metrics before the first step, also for a resumed run.
    """

    def __init__(self, validation: Validation, every_steps: int, log: MetricsLog, start_file: epath.Path):
        self._validation, self._every_steps, self._log, self._start_file = validation, every_steps, log, start_file
        self._start: dict[str, float] = {}

    def begin(self, state: TrainState, is_new: bool) -> None:
        """Evaluates the state before the first step. A resumed run reads what it was, if it is known."""
        if is_new:
            measured = self._validation.evaluate(state)
            assert measured is not None  # nothing asks it to stop
            self._start = measured
            if is_first_process():
                write_json(self._start_file, self._start)
            self._log.say(f"validation before the first step: {self._summary(self._start)}")
        elif self._start_file.exists():
            self._start = read_json(self._start_file)

    def is_due(self, moment: Moment) -> bool:
        return every(self._every_steps, moment)

    def __call__(self, moment: Moment) -> None:
        means = self._validation.evaluate(moment.state, moment.keep_alive, moment.stop_requested)
        if means is None:
            self._log.say(f"validation after step {moment.step}: stopped by a signal, without a result")
            return
        changes = {f"change/{name}": means[name] - self._start[name] for name in means if name in self._start}
        self._log.report({f"validation/{name}": value for name, value in (means | changes).items()})
        self._log.say(f"validation after step {moment.step}: {self._summary(means)}")

    def close(self) -> None:
        self._validation.close()

    def _summary(self, means: Mapping[str, float]) -> str:
        """The losses, with their changes since the start in brackets."""
        losses = {name: value for name, value in means.items() if name.startswith("loss")}
        changes = {
            name: f" ({value - self._start[name]:+.4f})" for name, value in losses.items() if name in self._start
        }
        if means is self._start:
            changes = {}
        return ", ".join(f"{name} {value:.4f}{changes.get(name, '')}" for name, value in losses.items())


class WriteMetrics:
    """Writes the mean metrics since the last write every `every_steps` steps and after the last step.

    Also writes when another action has reported values of this step, so that they share a line with its metrics.
    """

    def __init__(
        self,
        log: MetricsLog,
        every_steps: int,
        schedule: Callable[[int], Any],
        batches: DevicePrefetch,
        checkpoints: Checkpoints,
        input_stall: InputStall,
        warnings_of: Callable[[int, Mapping[str, float]], Sequence[str]],  # (step, metrics) -> sentences to show
    ):
        self._warnings_of = warnings_of
        self._log, self._every_steps, self._schedule = log, every_steps, schedule
        self._batches, self._checkpoints, self._input_stall = batches, checkpoints, input_stall

    def is_due(self, moment: Moment) -> bool:
        at_interval = moment.is_last or moment.step % self._every_steps == 0
        return self._log.has_steps and (at_interval or self._log.has_reports)

    def __call__(self, moment: Moment) -> None:
        self._checkpoints.check()
        others = {
            "learning_rate": float(self._schedule(moment.step - 1)),
            "memory/save_gib": self._checkpoints.host_gib,
            **drop_metrics(self._batches.state),
        }
        means = self._log.write(moment.step, self._input_stall.take(), self._checkpoints.take_blocked(), others)
        for warning in self._warnings_of(moment.step, means):
            self._log.say(f"warning: {warning}")

    def close(self) -> None:
        self._log.close()


class SaveCheckpoint:
    """Saves a checkpoint every `every_steps` steps and after the last step of this process."""

    def __init__(self, checkpoints: Checkpoints, every_steps: int, batches: DevicePrefetch):
        self._checkpoints, self._every_steps, self._batches = checkpoints, every_steps, batches

    def is_due(self, moment: Moment) -> bool:
        return moment.is_last or moment.step % self._every_steps == 0

    def __call__(self, moment: Moment) -> None:
        self._checkpoints.save(moment.state, self._batches.state)

    def close(self) -> None:
        pass  # the loop closes the checkpoints, after everything that works with them
