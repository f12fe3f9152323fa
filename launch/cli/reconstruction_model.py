"""The run of `launch.evaluate --benchmarks=reconstruction`, whose model is an image tokenizer or a VAE.

It may be one on its own or that of a Janus or JanusFlow model.
"""

from collections.abc import Callable, Sequence

import jax
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation import job
from janus_jax.evaluation.identity import hold_identity, versions
from janus_jax.evaluation.image_benchmarks.autoencoders import open_autoencoder
from janus_jax.evaluation.image_benchmarks.reconstruction import Reconstruction, ReconstructionModel
from janus_jax.evaluation.results import RUN_FILE
from janus_jax.evaluation.runner import StopSignal, Worker


def is_reconstruction(task: job.Task) -> bool:
    """Whether the requests of a task are images to reconstruct."""
    return isinstance(task.benchmark, Reconstruction)


def evaluate(
    tasks: Sequence[job.Task],
    checkpoint: str,
    ema: bool,
    output: epath.Path,
    worker: Worker,
    on_scored: Callable[[], object],
) -> job.Outcome:
    """Runs it; see `job.evaluate`. Raises UserError for other benchmarks beside it, or a folder without a tokenizer."""
    others = [task.benchmark.name for task in tasks if not is_reconstruction(task)]
    if others:
        raise UserError(f"--benchmarks={others[0]}: an image tokenizer is evaluated alone, without other benchmarks")
    (task,) = tasks
    assert isinstance(task.benchmark, Reconstruction)
    autoencoder, options = open_autoencoder(checkpoint, ema), task.benchmark.options
    model = ReconstructionModel(autoencoder, options.image_size, options.eval_size)
    identity = {"tokenizer": autoencoder.sha256, "device": jax.devices()[0].device_kind, "versions": versions()}
    hold_identity(output / RUN_FILE, identity, {"checkpoint": checkpoint})
    job.hold_task(task, {"image_size": model.image_size, "eval_size": model.eval_size}, {})
    with StopSignal() as stop:
        return job.evaluate(tasks, lambda task: model, worker, stop=lambda: stop.requested, on_scored=on_scored)
