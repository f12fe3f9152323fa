"""The one training loop: mesh, state (restored or fresh), data, compiled step, steps, checkpoints."""

import contextlib
import functools
import json
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from janus_jax.data.stream import drop_reports, format_reports
from janus_jax.data.tokenizer import FILE_NAME, Tokenizer
from janus_jax.errors import UserError
from janus_jax.hardware import peak_flops
from janus_jax.models.config import JanusConfig, ModelConfig, VAEConfig
from janus_jax.models.params import Params, abstract_params
from janus_jax.sharding import own_rows
from janus_jax.storage import prepare_folder, write_whole
from janus_jax.training.checkpointing import Checkpoints
from janus_jax.training.freezing import format_table, merge, module_table
from janus_jax.training.initialization import format_origins, initial_params
from janus_jax.training.input_stall import IdleTime
from janus_jax.training.latents import Preparation, make_preparation, open_vae
from janus_jax.training.metrics_log import MetricsLog
from janus_jax.training.optimizer import make_schedule
from janus_jax.training.plan import Plan, make_plan, model_flops
from janus_jax.training.prefetch import DevicePrefetch
from janus_jax.training.profiler import Profile
from janus_jax.training.resilience.nan_guard import FiniteCheck
from janus_jax.training.resilience.preemption import DataStalled, StopRequest
from janus_jax.training.resilience.watchdog import Watchdog
from janus_jax.training.setup import open_stream, open_tokenizer
from janus_jax.training.stored_codes import check_stored_codes
from janus_jax.training.train_state import TrainState
from janus_jax.weights.native import save_params, write_architecture
from janus_jax.weights.vae import VAE_FOLDER


def train(config: ConfigDict, workdir: epath.PathLike, watchdog: Watchdog | None = None) -> dict[str, float]:
    """Trains one stage to `config.train.num_steps`, resuming by itself when the workdir holds a checkpoint.

    Ctrl-C and SIGTERM finish the step, save a checkpoint and raise KeyboardInterrupt, also while data is waited for;
    with several processes, which must share the workdir, SIGTERM to any of them does so in all when they have done the
    step that they agree on. Only the first process prints and writes logs.

    Args:
        watchdog: ends the process when its steps, or the run after the last one, do not end; closed at the end.

    Returns:
        The last written metrics.

    Raises:
        UserError: anything wrong with the config, the workdir, the data or the checkpoint; before any step.
        OSError: a checkpoint or the metrics cannot be written; earlier checkpoints stay as they are.
        FloatingPointError: a loss or gradient is not finite; the batch is kept in the workdir.
        DataStalled: a KeyboardInterrupt while no data came; threads that read it are left behind.
    """
    plan = make_plan(config)
    architecture = plan.architecture
    tokenizer = open_tokenizer(config, architecture)
    workdir = prepare_folder("workdir", workdir)
    checkpoints = Checkpoints(workdir, architecture, config.checkpoint.keep)
    if tokenizer is not None:
        _require_same_tokenizer(workdir / FILE_NAME, tokenizer)
    vae = open_vae(config, architecture, workdir)
    process_index, process_count = own_rows(plan.rows, config.train.batch_size)
    stream = open_stream(config, architecture, tokenizer, process_index=process_index, process_count=process_count)
    _say(format_table(module_table(abstract_params(architecture), plan.mask)))
    restored = checkpoints.restore_newest(plan.state, plan.mask)
    if restored is None:
        params, origins = initial_params(config, architecture, plan.mesh, tokenizer)
        _say(format_origins(origins))
        state = plan.new_state(params)
    else:
        state, data_state = restored
        stream.set_state(data_state)
        _say(f"resumed from checkpoint {int(state.step)} in {workdir}")
    if config.data.stored_codes and isinstance(architecture, JanusConfig):
        vq = merge(state.trainable, state.frozen)["vq"]
        check_stored_codes(stream.patterns, architecture.vq, vq)
    if _primary():
        _write_run(workdir, config, architecture, tokenizer, vae)
    prepare = make_preparation(config, architecture, plan.mesh, vae)
    step_fn = plan.make_step()
    log = MetricsLog(
        workdir if _primary() else None,
        config.name,
        config.train.num_steps,
        int(state.step),
        _ideal_seconds(config, plan),
    )
    finite = FiniteCheck(workdir / "not_finite")
    profile = Profile(workdir / "profile", **config.profile)
    # Around the endings too: a signal while the last checkpoint is being written shall not cost it.
    with StopRequest() as stop, contextlib.ExitStack() as ending:
        if watchdog is not None:
            ending.callback(watchdog.close)  # last: with several processes a save may wait for one that hangs
        batches = DevicePrefetch(stream, plan.rows, stop.pending)
        ending.callback(lambda: _say(format_reports(batches.state, stream.patterns)))
        idle = IdleTime()
        for part in (idle, log, checkpoints, profile, batches):  # closed from the last one on
            ending.push(functools.partial(_close, part))
        if watchdog is not None:
            ending.callback(watchdog.run_ends)  # first, also after an error
        return _run(config, state, prepare, step_fn, batches, idle, checkpoints, log, finite, profile, stop, watchdog)


def _close(part: Any, kind: Any, error: BaseException | None, trace: Any) -> None:
    """Of several errors the first one is told: the others may follow from it."""
    del kind, trace
    try:
        part.close()
    except Exception as another:
        if error is None:
            raise
        logging.error("%s", another)


def _run(
    config: ConfigDict,
    state: TrainState,
    prepare: Preparation,
    step_fn: Any,
    batches: DevicePrefetch,
    idle: IdleTime,
    checkpoints: Checkpoints,
    log: MetricsLog,
    finite: FiniteCheck,
    profile: Profile,
    stop: StopRequest,
    watchdog: Watchdog | None,
) -> dict[str, float]:
    schedule = make_schedule(config.train)
    # Queued steps take a CPU's cores from each other: five times slower (measured), deadlocks with several devices.
    on_cpu = jax.default_backend() == "cpu"
    means: dict[str, float] = {}
    metrics = None
    start = int(state.step)

    def end_of(step: int, last: bool) -> None:
        """Writes and saves, where it is time or the last chance."""
        nonlocal means
        writing = log.has_steps and (last or step % config.log_every == 0)
        saving = last or step % config.checkpoint.every_steps == 0
        if writing or saving:
            finite.check()  # what is written or saved is finite
        if last and watchdog is not None:
            watchdog.run_ends()  # now that the last step has ended: to save it may take longer than a step
        if writing:
            checkpoints.check()
            dropped = {f"dropped/{name}": report.rate for name, report in drop_reports(batches.state).items()}
            extra = {"learning_rate": float(schedule(step - 1)), "memory/save_gib": checkpoints.host_gib, **dropped}
            means = log.write(step, idle.take(), checkpoints.take_blocked(), extra)
        if saving:
            checkpoints.save(state, batches.state)

    for step in range(start + 1, config.train.num_steps + 1):
        profile.before(step, metrics)
        rows = next(batches, None)
        idle.waited(batches.take_waited())
        if rows is None:  # told to stop while no data came
            if step == start + 1:
                raise DataStalled("stopped by a signal while no data came, before any step")
            end_of(step - 1, last=True)
            raise DataStalled(f"stopped by a signal while no data came after step {step - 1}, which is saved")
        batch = prepare(rows, step)
        state, metrics = step_fn(state, batch)
        idle.step_started(metrics)
        if on_cpu:
            jax.block_until_ready(metrics)
        finite.add(step, metrics, batch)
        log.add(metrics)
        if watchdog is not None:
            watchdog.step_ended(step)
        stopping = stop.requested(step)  # once, so that a signal in between waits for the next step
        end_of(step, last=step == config.train.num_steps or stopping)
        if stopping:
            raise KeyboardInterrupt(f"stopped by a signal after step {step}, which is saved")
    return means


def _ideal_seconds(config: ConfigDict, plan: Plan) -> float | None:
    flops, peak = model_flops(config, plan), peak_flops(plan.mesh.devices.flat)
    return None if flops is None or peak is None else flops / peak


def _primary() -> bool:
    return jax.process_index() == 0


def _say(text: str) -> None:
    if _primary():
        print(text, flush=True)


def _write_run(
    workdir: epath.Path,
    config: ConfigDict,
    architecture: ModelConfig,
    tokenizer: Tokenizer | None,
    vae: tuple[VAEConfig, Params] | None,
) -> None:
    """What tells what the workdir holds: only once nothing can fail any more before the first step.

    Each start writes the same again; where that fails, the workdir stays readable.
    """
    write_architecture(workdir, architecture)
    write_whole(workdir / "config.json", config.to_json_best_effort(indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(workdir / FILE_NAME)
    if vae is not None and not (workdir / VAE_FOLDER).exists():
        save_params(workdir / VAE_FOLDER, *vae)


def _require_same_tokenizer(path: epath.Path, tokenizer: Tokenizer) -> None:
    """Raises UserError when the workdir's model was trained with other ids; to overwrite its file would ruin it."""
    if path.exists() and Tokenizer.from_file(path).backend.get_vocab() != tokenizer.backend.get_vocab():
        raise UserError(f"{path}: another vocabulary than that of config.data.tokenizer")


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """The lines of a workdir's metrics.jsonl."""
    return [json.loads(line) for line in (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
