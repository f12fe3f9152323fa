"""The run of `launch.evaluate --benchmarks=reconstruction`, whose model is an image tokenizer, of its own or Janus'."""

from collections.abc import Callable, Sequence

import jax
from etils import epath

from janus_jax.errors import UserError
from janus_jax.evaluation import job
from janus_jax.evaluation.identity import hold_identity, versions
from janus_jax.evaluation.image_benchmarks.reconstruction import ReconstructionModel
from janus_jax.evaluation.results import RUN_FILE
from janus_jax.evaluation.runner import StopSignal, Worker
from janus_jax.inference.image_tokenizer import load_image_tokenizer


def is_reconstruction(task: job.Task) -> bool:
    """Whether the requests of a task are images to reconstruct."""
    return getattr(task.benchmark.requests[0], "image", None) is not None


def evaluate(
    tasks: Sequence[job.Task], checkpoint: str, output: epath.Path, worker: Worker, on_scored: Callable[[], object]
) -> job.Outcome:
    """Runs it; see `job.evaluate`. Raises UserError for other benchmarks beside it, or a folder without a tokenizer."""
    others = [task.benchmark.name for task in tasks if not is_reconstruction(task)]
    if others:
        raise UserError(f"--benchmarks={others[0]}: an image tokenizer is evaluated alone, without other benchmarks")
    tokenizer = load_image_tokenizer(checkpoint)
    identity = {"tokenizer": tokenizer.sha256, "device": jax.devices()[0].device_kind, "versions": versions()}
    hold_identity(output / RUN_FILE, identity, {"checkpoint": checkpoint})
    for task in tasks:
        job.hold_task(task, {"image_size": tokenizer.config.image_size}, {})
    model = ReconstructionModel(tokenizer)
    with StopSignal() as stop:
        return job.evaluate(tasks, lambda task: model, worker, stop=lambda: stop.requested, on_scored=on_scored)
