"""Joins the processes of a run: one process per host of a TPU slice or cluster, or several on one machine."""

import os
import socket
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from janus_jax.errors import UserError

if TYPE_CHECKING:
    from janus_jax.training.resilience.watchdog import Watchdog

MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Join the other hosts of the run, which TPU metadata, GKE or Slurm name."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Address host:port of process 0, on machines where nothing names the hosts."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes of the run; only with --coordinator.", lower_bound=1
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0; only with --coordinator.", lower_bound=0
)
COORDINATOR_TIMEOUT = flags.DEFINE_integer(
    "coordinator_timeout",
    300,
    "Seconds within which process 0 must be reachable and all processes must have joined it.",
    lower_bound=1,
)
PEER_TIMEOUT = flags.DEFINE_integer(
    "peer_timeout", 100, "Seconds without a heartbeat of another host after which this process ends.", lower_bound=1
)
START_TIMEOUT = flags.DEFINE_integer(
    "start_timeout",
    3600,
    "Seconds that one of several processes may take from joining the others to the end of its first step, and from the "
    "end of its last step to the end of the run. After that it exits with code 75.",
    lower_bound=1,
)
STEP_TIMEOUT = flags.DEFINE_integer(
    "step_timeout",
    1800,
    "Seconds that one of several processes may take from the end of one step to the end of the next. After that it "
    "exits with code 75.",
    lower_bound=1,
)
STOP_TIMEOUT = flags.DEFINE_integer(
    "stop_timeout",
    120,
    "Seconds that a step may take once one of several processes received a SIGTERM. After that the process exits with "
    "code 75.",
    lower_bound=1,
)
# Seconds that process 0 waits longer than the others before it ends. JAX (0.10.2) aborts a process that loses process
# 0, before that process can print why it ends.
COORDINATOR_PATIENCE = 5.0


def join() -> None:
    """Joins the other processes. Must be called before anything touches JAX's devices.

    From then on a process that dies or is stopped ends the others, since JAX's coordination service expects heartbeats
    from each. A process that hangs still sends them; the `watchdog` is for that case.

    Raises:
        UserError: Flags do not go together, the port of process 0 is in use, or the other hosts cannot be found or
            joined.
    """
    import jax

    limits: dict[str, Any] = {
        "heartbeat_timeout_seconds": PEER_TIMEOUT.value,
        "shutdown_timeout_seconds": PEER_TIMEOUT.value,
        "initialization_timeout": COORDINATOR_TIMEOUT.value,
    }
    coordinator, count, process = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
    if coordinator is None and count is None and process is None:
        if MULTIHOST.value:
            try:
                _require_free_port_if_first()
                jax.distributed.initialize(**limits)
            except UserError:
                raise
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
    if process == 0:
        _require_free_port(address[1], f"--coordinator={coordinator}")
    else:
        _wait_for(address, COORDINATOR_TIMEOUT.value)
    jax.distributed.initialize(coordinator, count, process, **limits)


def _require_free_port_if_first() -> None:
    """Checks the port that TPU metadata, GKE or Slurm give to process 0, if this is process 0."""
    from jax._src.clusters import ClusterEnv  # no public function tells what jax.distributed.initialize will find

    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, COORDINATOR_TIMEOUT.value)
    coordinator, _, process, _ = found
    if coordinator is not None and process == 0:
        _require_free_port(int(coordinator.rpartition(":")[2]), "--multihost")


def _require_free_port(port: int, flag: str) -> None:
    """Raises UserError when process 0 cannot listen there. JAX (0.10.2) would end by a segmentation fault."""
    dual = socket.has_dualstack_ipv6()
    try:
        socket.create_server(
            ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual
        ).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise UserError(
            f"{flag}: process 0 cannot listen on port {port} of this machine ({reason}); another run may still be "
            "there, or choose another port"
        ) from error


def _host_and_port(coordinator: str) -> tuple[str, int]:
    """Splits "host:port", where an IPv6 host stands in brackets. Raises UserError for anything else."""
    host, colon, port = coordinator.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (colon and host and (bracketed or ":" not in host) and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator={coordinator}: expected host:port, e.g. 10.0.0.2:1234")
    return host.strip("[]"), int(port)


def _wait_for(address: tuple[str, int], seconds: float) -> None:
    """Returns once something listens at the address. Raises UserError after `seconds`.

    JAX (0.10.2) itself would end the process without an error that can be caught.
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


def watchdog() -> "Watchdog | None":
    """Limits the time of start, steps and end of this process from now on; None if it is the only process.

    It may be called before JAX's devices are available.
    """
    from jax._src.distributed import global_state as state  # public functions would wait for all devices

    from janus_jax.training.resilience.preemption import stop_announced
    from janus_jax.training.resilience.watchdog import Watchdog

    if state.num_processes == 1:
        return None
    patience = COORDINATOR_PATIENCE if state.process_id == 0 else 0.0
    return Watchdog(START_TIMEOUT.value, STEP_TIMEOUT.value, stop_announced, STOP_TIMEOUT.value, patience)
