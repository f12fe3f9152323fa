"""The one training loop: mesh, state (restored or fresh), data, compiled step, steps, checkpoints."""

import json
import math
import signal
import types
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from janus_jax.checkpoints import prepare_folder, write_architecture
from janus_jax.data.pipeline import drop_reports, format_reports
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer
from janus_jax.errors import UserError
from janus_jax.models.config import ModelConfig
from janus_jax.models.parameters import Params, abstract_params
from janus_jax.sharding import batch_sharding, make_mesh, own_rows
from janus_jax.training.checkpoint import Checkpoints
from janus_jax.training.experiment import check_config, execution, model_config, open_stream, open_tokenizer
from janus_jax.training.initial import format_origins, initial_params
from janus_jax.training.metrics import MetricsLog
from janus_jax.training.objectives import Metrics, make_loss
from janus_jax.training.optimizer import make_optimizer, make_schedule
from janus_jax.training.prefetch import DevicePrefetch
from janus_jax.training.stages import format_table, module_table, trainable_mask
from janus_jax.training.state import TrainState, create_state, make_step, state_shardings


def train(config: ConfigDict, workdir: epath.PathLike) -> dict[str, float]:
    """Trains one stage to `config.train.num_steps`, resuming by itself when the workdir holds a checkpoint.

    Ctrl-C and SIGTERM finish the step, save a checkpoint and raise KeyboardInterrupt; with several processes, which
    must share the workdir, SIGTERM to any of them does so in all. Only the first process prints and writes logs.

    Returns:
        The last written metrics.

    Raises:
        UserError: anything wrong with the config, the workdir, the data or the checkpoint; before any step.
        FloatingPointError: the loss is not finite.
    """
    check_config(config)
    architecture = model_config(config)
    mesh = make_mesh(config.mesh)
    rows = batch_sharding(mesh, config.train.batch_size)
    optimizer = make_optimizer(config.train)
    mask = trainable_mask(abstract_params(architecture), config.trainable)
    loss_fn = make_loss(architecture, execution(config), config.loss)
    tokenizer = open_tokenizer(config, architecture)
    workdir = prepare_folder("workdir", workdir)
    checkpoints = Checkpoints(workdir, architecture, config.checkpoint.keep)
    if tokenizer is not None:
        _require_same_tokenizer(workdir / FILE_NAME, tokenizer)
    process_index, process_count = own_rows(rows, config.train.batch_size)
    stream = open_stream(config, architecture, tokenizer, process_index=process_index, process_count=process_count)
    _say(format_table(module_table(abstract_params(architecture), mask)))

    def new_state(params: Params) -> TrainState:
        return create_state(params, mask, optimizer)

    abstract_state = jax.eval_shape(new_state, abstract_params(architecture))
    shardings = state_shardings(architecture, mask, optimizer, abstract_state, mesh)
    first_step = checkpoints.latest_step()
    if first_step is None:
        params, origins = initial_params(config, architecture, mesh, tokenizer)
        _say(format_origins(origins))
        state = jax.jit(new_state, out_shardings=shardings)(params)
    else:
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_state,
            shardings,
        )
        state, data_state = checkpoints.restore(first_step, target, mask)
        stream.set_state(data_state)
        _say(f"resumed from checkpoint {first_step} in {workdir}")
    if _primary():
        _write_run(workdir, config, architecture, tokenizer)
    step_fn = make_step(loss_fn, optimizer, shardings, mesh)
    log = MetricsLog(workdir if _primary() else None, config.name, config.train.num_steps, first_step or 0)
    batches = DevicePrefetch(stream, rows)
    try:
        return _run(config, state, step_fn, batches, checkpoints, log)
    finally:
        batches.close()
        checkpoints.close()
        log.close()
        _say(format_reports(batches.state))


def _run(
    config: ConfigDict,
    state: TrainState,
    step_fn: Any,
    batches: DevicePrefetch,
    checkpoints: Checkpoints,
    log: MetricsLog,
) -> dict[str, float]:
    schedule = make_schedule(config.train)
    # Queued steps take a CPU's cores from each other: five times slower (measured), deadlocks with several devices.
    on_cpu = jax.default_backend() == "cpu"
    means: dict[str, float] = {}
    start = int(state.step)
    with StopRequest() as stop:
        for step in range(start + 1, config.train.num_steps + 1):
            state, metrics = step_fn(state, next(batches))
            if on_cpu:
                jax.block_until_ready(metrics)
            log.add(metrics)
            stopping = stop.requested(step)  # once, so that a signal in between waits for the next step
            last = step == config.train.num_steps or stopping
            if last or step % config.log_every == 0:
                dropped = {f"dropped/{name}": report.rate for name, report in drop_reports(batches.state).items()}
                extra = {"learning_rate": float(schedule(step - 1)), **dropped}
                means = log.write(step, batches.take_waited(), extra)
                _require_finite(step, metrics)
            if last or step % config.checkpoint.every_steps == 0:
                _require_finite(step, metrics)
                checkpoints.save(state, batches.state)
            if stopping:
                raise KeyboardInterrupt(f"stopped by a signal after step {step}, which is saved")
    return means


def _primary() -> bool:
    return jax.process_index() == 0


def _say(text: str) -> None:
    if _primary():
        print(text, flush=True)


def _write_run(workdir: epath.Path, config: ConfigDict, architecture: ModelConfig, tokenizer: Tokenizer | None) -> None:
    """What tells what the workdir holds: only once nothing can fail any more before the first step."""
    write_architecture(workdir, architecture)
    (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(workdir / FILE_NAME)


def _require_same_tokenizer(path: epath.Path, tokenizer: Tokenizer) -> None:
    """Raises UserError when the workdir's model was trained with other ids; to overwrite its file would ruin it."""
    if path.exists() and Tokenizer.from_file(path).backend.get_vocab() != tokenizer.backend.get_vocab():
        raise UserError(f"{path}: another vocabulary than that of config.data.tokenizer")


def _require_finite(step: int, metrics: Metrics) -> None:
    """Raises FloatingPointError when the loss, or its gradient, is not finite: from then on no step ever is."""
    for name in ("loss", "grad_norm"):
        if name in metrics and not math.isfinite(value := float(metrics[name][0])):
            raise FloatingPointError(f"{name} is {value} at or before step {step}; the last checkpoint is kept")


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; a second Ctrl-C interrupts at once.

    With several processes, JAX's coordination service watches for SIGTERM and lets all of them agree on a step.
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

    def _request(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self._requested = True
        signal.signal(number, signal.default_int_handler)
        logging.warning("signal %d: saving a checkpoint after this step", number)


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """The lines of a workdir's metrics.jsonl."""
    return [json.loads(line) for line in (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
