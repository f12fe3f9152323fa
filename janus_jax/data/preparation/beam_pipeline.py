"""The Apache Beam pipeline of `prepare_data`: one element per shard, in local worker processes or on any other engine.

A module of its own, since workers import it by name.
"""

import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from janus_jax.data.preparation import job as shard_job
from janus_jax.data.preparation.job import Job
from janus_jax.data.preparation.record import EncodeCodes
from janus_jax.errors import UserError


def run(
    job: Job,
    shards: Sequence[int],
    open_image_tokenizer: Callable[[], EncodeCodes] | None,
    num_workers: int,
    runner: str,
    options: Sequence[str],
) -> None:
    """Writes the shards.

    Args:
        open_image_tokenizer: called in each worker, once per shard, to get the function that computes codes; it must be
            picklable and should remember its result. None stores no codes.
        num_workers: processes on this machine, where `runner` is "".
        runner: a Beam runner by name, or "".
        options: passed on to Beam.

    Raises:
        UserError: what a worker met, or Beam is not installed.
    """
    logging.set_verbosity(logging.ERROR)  # Beam warns of parts that are not installed and not needed
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError("prepare_data needs Apache Beam: pip install 'janus_jax[data]'") from error
    if not runner:
        threading.excepthook = _stop_when_a_worker_dies
    engine = runner or _local_processes(job)
    defaults = [] if runner else [f"--direct_num_workers={min(num_workers, len(shards))}"]
    try:
        with beam.Pipeline(engine, PipelineOptions([*defaults, *options])) as pipeline:
            pipeline | beam.Create(shards) | beam.Reshuffle() | beam.Map(write_shard, job, open_image_tokenizer)
    except Exception as error:
        raise shard_job.failure(job) or error from error
    failure = shard_job.failure(job)
    if failure:
        raise failure


def write_shard(shard: int, job: Job, open_image_tokenizer: Callable[[], EncodeCodes] | None) -> None:
    """In a worker: writes one shard, unless another one has met an error."""
    if shard_job.failure(job):
        return
    try:
        shard_job.write_shard(job, shard, open_image_tokenizer() if open_image_tokenizer else None)
    except UserError as error:
        shard_job.fail(job, error)


def _stop_when_a_worker_dies(arguments: threading.ExceptHookArgs) -> None:
    """Beam would wait for ever for a worker that was killed, for example by a lack of memory."""
    if "Worker subprocess exited" not in str(arguments.exc_value):
        threading.__excepthook__(arguments)
        return
    print("error: a worker process died, perhaps of a lack of memory; run the command again", file=sys.stderr)
    sys.stderr.flush()
    os._exit(3)  # an ordinary exit would wait for Beam's threads


def _local_processes(job: Job) -> Any:
    """An engine that starts worker processes here.

    Beam's "DirectRunner" would first try to download an engine of another language, and its workers would write their
    log to the terminal.
    """
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.transforms import environments

    log = os.devnull if "://" in job.output else os.path.join(job.output, "progress", "workers.log")
    python = f"{shlex.quote(sys.executable)} -m apache_beam.runners.worker.sdk_worker_main"
    # Ctrl-C on a terminal reaches the workers too; they end by themselves when the command does.
    command = f"trap '' INT; exec {python} 2>> {shlex.quote(log)}"
    return fn_runner.FnApiRunner(default_environment=environments.SubprocessSDKEnvironment.from_command_string(command))
