"""Runs a job with Apache Beam: one element per part, in local worker processes or on any other engine.

This is a module of its own because workers import it by name.
"""

import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from janus_jax.data.preparation import writer
from janus_jax.data.preparation.job import Job
from janus_jax.data.preparation.output_folder import fail, failure
from janus_jax.data.preparation.record import EncodeCodes
from janus_jax.errors import UserError


def run(
    job: Job,
    parts: Sequence[int],
    open_image_tokenizer: Callable[[], EncodeCodes] | None,
    num_workers: int,
    runner: str,
    options: Sequence[str],
) -> None:
    """Writes some parts of a job.

    Args:
        parts: Numbers of the parts.
        open_image_tokenizer: Returns the function that computes codes. Each worker calls it once per part. It must be
            picklable and should remember its result. None stores no codes.
        num_workers: Number of processes on this machine, if `runner` is "".
        runner: Name of a Beam runner, or "" for processes on this machine.
        options: Arguments for Beam.

    Raises:
        UserError: A worker raised it, or Beam is not installed.
    """
    logging.set_verbosity(logging.ERROR)  # Beam warns about parts that are not installed and not needed.
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError("prepare_data needs Apache Beam: pip install 'janus_jax[data]'") from error
    if not runner:
        threading.excepthook = _stop_when_a_worker_dies
    engine = runner or _local_processes(job)
    defaults = [] if runner else [f"--direct_num_workers={min(num_workers, len(parts))}"]
    try:
        with beam.Pipeline(engine, PipelineOptions([*defaults, *options])) as pipeline:
            pipeline | beam.Create(parts) | beam.Reshuffle() | beam.Map(write_part, job, open_image_tokenizer)
    except Exception as error:
        raise failure(job) or error from error
    stored = failure(job)
    if stored:
        raise stored


def write_part(part: int, job: Job, open_image_tokenizer: Callable[[], EncodeCodes] | None) -> None:
    """Runs in a worker: writes one part, unless a part has failed already."""
    if failure(job):
        return
    try:
        writer.write_part(job, part, open_image_tokenizer() if open_image_tokenizer else None)
    except UserError as error:
        fail(job, error)


def _stop_when_a_worker_dies(arguments: threading.ExceptHookArgs) -> None:
    """Ends the command when a worker is killed, for example for lack of memory. Beam would wait for it for ever."""
    if "Worker subprocess exited" not in str(arguments.exc_value):
        threading.__excepthook__(arguments)
        return
    print(
        "error: a worker process died, perhaps for lack of memory; run the command again to continue", file=sys.stderr
    )
    sys.stderr.flush()
    os._exit(3)  # An ordinary exit would wait for Beam's threads.


def _local_processes(job: Job) -> Any:
    """A Beam engine that starts worker processes on this machine.

    Beam's own "DirectRunner" would first try to download an engine in another language, and its workers would write
    their log to the terminal.
    """
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.transforms import environments

    log = os.devnull if "://" in job.output else os.path.join(job.output, "progress", "workers.log")
    python = f"{shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main"
    # Ctrl-C on a terminal reaches the workers too. They ignore it, since they end by themselves when the command does.
    command = f"trap '' INT; exec {python} 2>> {shlex.quote(log)}"
    return fn_runner.FnApiRunner(default_environment=environments.SubprocessSDKEnvironment.from_command_string(command))
