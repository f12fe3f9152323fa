"""Joins the processes of a run: one per host of a TPU slice or cluster, or several on one machine."""

import math
from typing import Any

import jax
from absl import flags

from janus_jax.errors import UserError

MULTIHOST = flags.DEFINE_bool("multihost", False, "join the other hosts, as TPU metadata, GKE or Slurm name them")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where nothing names the hosts")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "with --coordinator: of the run", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "with --coordinator: of this process", lower_bound=0)
PEER_TIMEOUT = flags.DEFINE_integer(
    "peer_timeout", 100, "seconds without a sign of life of another host after which this one stops", lower_bound=1
)


STEP_TIMEOUT = flags.DEFINE_integer(
    "step_timeout",
    1800,
    "seconds without the end of a step after which one of several processes ends",
    lower_bound=1,
)
STOP_TIMEOUT = flags.DEFINE_integer(
    "stop_timeout",
    120,
    "the same once one of them got a SIGTERM: all must do the step that they agree to stop after",
    lower_bound=1,
)


def join() -> None:
    """To be called before anything touches JAX's devices. Raises UserError for flags that do not go together.

    From then on a host that dies or is stopped ends the others: JAX's coordination service asks each for heartbeats.
    Those go on in a process that hangs while it lives; `--step_timeout` is for that.
    """
    limits: dict[str, Any] = {
        "heartbeat_timeout_seconds": PEER_TIMEOUT.value,
        "shutdown_timeout_seconds": PEER_TIMEOUT.value,
    }
    coordinator, count, process = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    if coordinator is None and count is None and process is None:
        if MULTIHOST.value:
            try:
                jax.distributed.initialize(**limits)
            except (ValueError, RuntimeError) as error:
                raise UserError(
                    f"--multihost: the other hosts cannot be found or joined ({error}); on a machine that neither TPU "
                    "metadata, GKE nor Slurm describes, give --coordinator, --num_processes and --process_id"
                ) from error
        return
    if coordinator is None or count is None or process is None or MULTIHOST.value:
        raise UserError("expected --coordinator, --num_processes and --process_id together, without --multihost")
    if process >= count:
        raise UserError(f"--process_id={process}, expected less than --num_processes={count}")
    jax.distributed.initialize(coordinator, count, process, **limits)


def step_timeout() -> float:
    """Of this process, in seconds: infinite for one that trains alone."""
    return STEP_TIMEOUT.value if jax.process_count() > 1 else math.inf
