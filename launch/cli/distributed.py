"""Joins the processes of a run: one per host of a TPU slice or cluster, or several on one machine."""

import socket
import time
from typing import Any

import jax
from absl import flags
from jax._src.distributed import global_state as state  # public readers of it wait for the devices of all

from janus_jax.errors import UserError
from janus_jax.training.resilience.preemption import stop_announced
from janus_jax.training.resilience.watchdog import Watchdog

MULTIHOST = flags.DEFINE_bool("multihost", False, "join the other hosts, as TPU metadata, GKE or Slurm name them")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where nothing names the hosts")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "with --coordinator: of the run", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "with --coordinator: of this process", lower_bound=0)
COORDINATOR_TIMEOUT = flags.DEFINE_integer(
    "coordinator_timeout", 300, "seconds in which process 0 must be there, and all others join it", lower_bound=1
)
PEER_TIMEOUT = flags.DEFINE_integer(
    "peer_timeout", 100, "seconds without a sign of life of another host after which this one stops", lower_bound=1
)
START_TIMEOUT = flags.DEFINE_integer(
    "start_timeout",
    3600,
    "seconds after which one of several processes ends that has joined the others and not ended its first step; also "
    "one that has ended its last step and not saved it",
    lower_bound=1,
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
# Seconds by which the first process outlives the others: JAX aborts whoever loses it, before its own message.
COORDINATOR_PATIENCE = 5.0


def join() -> None:
    """To be called before anything touches JAX's devices. Raises UserError for flags that do not go together.

    From then on a host that dies or is stopped ends the others: JAX's coordination service asks each for heartbeats.
    Those go on in a process that hangs while it lives; `watchdog` is for that.
    """
    limits: dict[str, Any] = {
        "heartbeat_timeout_seconds": PEER_TIMEOUT.value,
        "shutdown_timeout_seconds": PEER_TIMEOUT.value,
        "initialization_timeout": COORDINATOR_TIMEOUT.value,
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
    address = _host_and_port(coordinator)
    if process > 0:
        _wait_for(address, COORDINATOR_TIMEOUT.value)
    jax.distributed.initialize(coordinator, count, process, **limits)


def _host_and_port(coordinator: str) -> tuple[str, int]:
    """Raises UserError for anything else; of an IPv6 address the host is in brackets."""
    host, colon, port = coordinator.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (colon and host and (bracketed or ":" not in host) and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator={coordinator}: expected host:port, e.g. 10.0.0.2:1234")
    return host.strip("[]"), int(port)


def _wait_for(address: tuple[str, int], seconds: float) -> None:
    """Returns once something listens there: JAX would end the process without an error that can be caught.

    Raises UserError after `seconds`.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(address, timeout=max(end - time.monotonic(), 0.1)).close()
            return
        except OSError as error:
            if time.monotonic() >= end:
                reason = error.strerror or error
                raise UserError(
                    f"--coordinator={COORDINATOR.value}: process 0 cannot be reached in {seconds:g} s ({reason})"
                ) from error
        time.sleep(min(0.5, max(end - time.monotonic(), 0)))


def watchdog() -> Watchdog | None:
    """Bounds start, steps and end of this process from now on, also before JAX's devices; None where it is alone."""
    if state.num_processes == 1:
        return None
    patience = COORDINATOR_PATIENCE if state.process_id == 0 else 0.0
    return Watchdog(START_TIMEOUT.value, STEP_TIMEOUT.value, stop_announced, STOP_TIMEOUT.value, patience)
