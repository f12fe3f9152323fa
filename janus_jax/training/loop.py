"""The training loop of all models and stages.

`train` opens the run (`start.py`), and a `Trainer` does its steps, with the periodic actions (`actions.py`) in between.
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from janus_jax.data.stream import format_reports
from janus_jax.hardware import peak_flops
from janus_jax.phases import phase
from janus_jax.training.actions import (
    Action,
    ActionFactory,
    MeasureFactory,
    Moment,
    OtherWork,
    SaveCheckpoint,
    Validate,
    WriteMetrics,
)
from janus_jax.training.input_stall import InputStall
from janus_jax.training.latents import make_preparation
from janus_jax.training.metrics_log import MetricsLog
from janus_jax.training.objectives.base import Metrics
from janus_jax.training.optimizer import make_schedule
from janus_jax.training.plan import Plan, model_flops
from janus_jax.training.prefetch import DevicePrefetch
from janus_jax.training.profiler import ProfileSteps
from janus_jax.training.resilience.nan_guard import NanGuard
from janus_jax.training.resilience.preemption import DataStalled, StopRequest
from janus_jax.training.resilience.watchdog import Watchdog
from janus_jax.training.sample_log import SampleLog
from janus_jax.training.start import Run, is_first_process, open_run, say
from janus_jax.training.tokenizer_warnings import tokenizer_warnings
from janus_jax.training.train_state import TrainState
from janus_jax.training.validation import Validation

START_METRICS_FILE = "validation_at_start.json"  # in the workdir: metrics of held-out rows before the first step


def train(
    config: ConfigDict,
    workdir: epath.PathLike,
    watchdog: Watchdog | None = None,
    actions: Sequence[ActionFactory] = (),
    measures: Sequence[MeasureFactory] = (),
) -> dict[str, float]:
    """Trains one stage to `config.train.num_steps`. Continues by itself when the workdir holds a checkpoint.

    Ctrl-C and SIGTERM finish the step, save a checkpoint and raise KeyboardInterrupt, also while the loop waits for
    data. Several processes must share the workdir. SIGTERM to any of them stops all of them, after a step that they
    agree on. Only the first process prints and writes logs.

    Args:
        watchdog: Ends the process when a step or the end of the run takes too long. Closed at the end.
        actions: Further periodic actions. They run after the checkpoint of their step was started.
        measures: Periodic actions that report figures. They run before the metrics of their step are written.

    Returns:
        The last written metrics.

    Raises:
        UserError: Something is wrong with the config, the workdir, the data or the checkpoint. Raised before any step.
        OSError: A checkpoint or the metrics cannot be written. Earlier checkpoints stay as they are.
        FloatingPointError: A loss or gradient is not finite. The batch is kept in the workdir.
        DataStalled: A KeyboardInterrupt while no data came. The threads that read it are left behind.
    """
    run, state = open_run(config, workdir)
    # Around the end of the run too, so that a signal while the last checkpoint is written does not lose it.
    with StopRequest() as stop, contextlib.ExitStack() as ending:
        if watchdog is not None:
            ending.callback(watchdog.close)  # with several processes, a save may wait for one that hangs
        ending.push(_closing(run.checkpoints))
        metrics = Trainer(run, state, stop, ending, watchdog, actions, measures).train()
    say(f"checkpoint {config.train.num_steps} in {run.workdir} is complete")
    return metrics


class Trainer:
    """Does the steps of a run, and between two steps the periodic actions that are due.

    Owns the training state. Everything that it opens is closed by `ending`, the data first. Of several errors the first
    one is raised, since it may be the reason for the others.
    """

    def __init__(
        self,
        run: Run,
        state: TrainState,
        stop: StopRequest,
        ending: contextlib.ExitStack,
        watchdog: Watchdog | None = None,
        actions: Sequence[ActionFactory] = (),
        measures: Sequence[MeasureFactory] = (),
    ):
        config, plan = run.config, run.plan
        self._state, self._stop, self._watchdog = state, stop, watchdog
        self._first_step, self._num_steps = int(state.step) + 1, config.train.num_steps
        self._prepare = make_preparation(config, plan.architecture, plan.mesh, run.vae)
        self._step = plan.make_step()
        self._nan_guard = NanGuard(run.workdir / "not_finite")
        self._log = MetricsLog(
            run.workdir if is_first_process() else None,
            config.name,
            self._num_steps,
            int(state.step),
            _ideal_seconds(config, plan),
        )
        samples = SampleLog(run.workdir, self._log.tensorboard)
        others = [OtherWork(make(run, samples), self._log) for make in actions]
        profile = ProfileSteps(run.workdir / "profile", next_step=self._first_step, **config.profile)
        self._input_stall = InputStall()
        self._batches = DevicePrefetch(run.stream, plan.rows, stop.pending)
        self._actions: list[Action] = [
            *self._validation(run),
            *(OtherWork(make(run, self._log), self._log) for make in measures),
            WriteMetrics(
                self._log,
                config.log_every,
                make_schedule(config.train),
                self._batches,
                run.checkpoints,
                self._input_stall,
                functools.partial(tokenizer_warnings, config.loss),
            ),
            SaveCheckpoint(run.checkpoints, config.checkpoint.every_steps, self._batches),
            *others,
            profile,
        ]
        # Queued steps take the cores of a CPU from each other: they were five times slower (measured on 2 cores), and
        # with several devices they deadlock.
        self._block_each_step = jax.default_backend() == "cpu"
        self._close_with(ending, run)

    def train(self) -> dict[str, float]:
        """Does all steps that are left. Returns the last written metrics."""
        metrics: Metrics | None = None
        for step in range(self._first_step, self._num_steps + 1):
            rows = next(self._batches, None)
            self._input_stall.waited(self._batches.take_waited())
            if rows is None:  # asked to stop while no data came
                if step == self._first_step:
                    raise DataStalled("stopped by a signal while no data came, before any step")
                self._between_steps(step - 1, metrics, is_last=True, is_stopping=True)
                raise DataStalled(f"stopped by a signal while no data came after step {step - 1}, which is saved")
            metrics = self._do_step(step, rows)
            is_stopping = self._stop.requested()  # asked once, so that a later signal waits for the next step
            self._between_steps(step, metrics, is_stopping or step == self._num_steps, is_stopping)
            if is_stopping:
                raise KeyboardInterrupt(f"stopped by a signal after step {step}, which is saved")
        return self._log.last_means

    def _do_step(self, step: int, rows: Any) -> Metrics:
        """Starts a step on the devices. Returns its metrics."""
        shown = phase("compiling the training step") if step == self._first_step else contextlib.nullcontext()
        with shown:
            batch = self._prepare(rows, step)
            self._state, metrics = self._step(self._state, batch)
        self._input_stall.step_started(metrics)
        if self._block_each_step:
            jax.block_until_ready(metrics)
        self._nan_guard.add(step, metrics, batch)
        self._log.add(metrics)
        if self._watchdog is not None:
            self._watchdog.step_ended(step)
        return metrics

    def _between_steps(self, step: int, metrics: Metrics | None, is_last: bool, is_stopping: bool) -> None:
        """Does the actions that are due."""

        def keep_alive() -> None:
            if self._watchdog is not None:
                self._watchdog.step_ended(step)

        moment = Moment(step, self._state, metrics, is_last, is_stopping, keep_alive, self._stop.requested)
        for action in self._actions:
            if action.is_due(moment):
                self._nan_guard.check()  # so that nothing is written or saved that is not finite
                if is_last and self._watchdog is not None:
                    self._watchdog.run_ends()  # the last step has ended; to save it may take longer than a step
                action(moment)

    def _validation(self, run: Run) -> list[Action]:
        """The action that evaluates the held-out rows, if the run is validated."""
        if run.held_out is None:
            return []
        fields = run.config.validate
        validation = Validation(
            run.plan,
            run.held_out,
            self._prepare,
            num_rows=fields.num_rows,
            batch_size=run.config.train.batch_size,
            process_index=run.process_index,
            process_count=run.process_count,
        )
        validate = Validate(validation, fields.every_steps, self._log, run.workdir / START_METRICS_FILE)
        if fields.at_start:
            validate.begin(self._state, is_new=self._first_step == 1)
        return [OtherWork(validate, self._log)]

    def _close_with(self, ending: contextlib.ExitStack, run: Run) -> None:
        """Registers everything to be closed. The stack closes in reverse order."""
        ending.callback(lambda: say(format_reports(self._batches.state, run.stream.patterns)))
        for part in (self._input_stall, *self._actions, self._batches):
            ending.push(_closing(part))
        if self._watchdog is not None:
            ending.callback(self._watchdog.run_ends)  # also after an error


def _closing(part: Any) -> Any:
    """An exit function that closes a part. When an error ends the run already, one in closing is only logged.

    A signal is no error: its message promises that the last step is saved.
    """

    def close(kind: Any, error: BaseException | None, trace: Any) -> None:
        del kind, trace
        try:
            part.close()
        except Exception as another:
            if error is None or isinstance(error, KeyboardInterrupt):
                raise
            logging.error("%s", another)

    return close


def _ideal_seconds(config: ConfigDict, plan: Plan) -> float | None:
    """Seconds of a step at the peak of the devices; None if the FLOPs or the peak are not known."""
    flops, peak = model_flops(config, plan), peak_flops(plan.mesh.devices.flat)
    return None if flops is None or peak is None else flops / peak
